"""An adapter as one vector: rank by rank, in the template's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters import SMALL, same
from capfl.errors import WireError
from capfl.wire.layout import Layout

PAIR = {"q.A": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "q.B": torch.tensor([[7.0, 9.0], [8.0, 10.0]])}


def test_rows_of_a_then_columns_of_b_in_the_order_of_the_template():
    layout = Layout.of(PAIR, PAIR)
    assert layout.flatten(PAIR).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert (layout.sizes.tolist(), layout.starts.tolist(), layout.size) == ([6, 4], [0, 6], 10)
    assert layout.rank_starts.tolist() == [0, 3, 6, 8]
    assert Layout.of(dict(reversed(PAIR.items())), PAIR) == layout
    assert Layout.of({"q.B": PAIR["q.B"]}, PAIR).shapes == (("q.B", (2, 2)),)
    none = Layout.of({}, PAIR)
    assert (none.size, none.flatten({}).shape, none.rank_starts.shape) == (0, (0,), (0,))


def test_every_element_has_its_rank():
    def owned(layout: Layout, whole: Layout) -> list[int]:
        return np.repeat(layout.owners(whole), layout.rank_sizes).tolist()

    whole = Layout.of(SMALL, SMALL)
    assert owned(whole, whole) == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 2, 2, 3, 3]
    part = Layout.of({"q.B": SMALL["q.B"], "v.A": SMALL["v.A"]}, SMALL)
    assert owned(part, whole) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert owned(Layout(()), whole) == []
    # ranks are in the order of the factors A
    mixed = {"v.B": torch.zeros(2, 1), "q.A": torch.zeros(2, 1), "v.A": torch.zeros(1, 3), "q.B": torch.zeros(1, 2)}
    layout = Layout.of(mixed, mixed)
    assert (layout.n_ranks, owned(layout, layout)) == (3, [2, 2, 0, 1, 2, 2, 2, 0, 1])


def test_any_memory_layout_dtype_and_graph_is_read():
    wide = torch.tensor([[1.0, 9.0, 2.0, 9.0, 3.0, 9.0], [4.0, 9.0, 5.0, 9.0, 6.0, 9.0]], requires_grad=True)
    other = {"q.A": wide[:, ::2], "q.B": PAIR["q.B"].to(torch.bfloat16)}
    assert Layout.of(other, PAIR).flatten(other).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("names", [["q.A"], ["q.B"], ["q.A", "q.B"]])
def test_the_vector_and_the_tensors_have_memory_of_their_own(names):
    part = {name: PAIR[name].clone() for name in names}
    layout = Layout.of(part, PAIR)
    flat = layout.flatten(part)
    back = layout.unflatten(flat)
    flat += np.float32(1)
    assert same(part, {name: PAIR[name] for name in names})
    assert same(back, part)
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in back.values())


def test_what_the_template_does_not_have_is_refused():
    for adapter, message in [
        ({"k.A": torch.zeros(2, 3)}, "'k.A' is not in the adapter"),
        ({"q.A": torch.zeros(3, 2)}, r"'q.A' has shape \(3, 2\), expected \(2, 3\)"),
        ({"q.A": torch.zeros(6)}, r"'q.A' has shape \(6,\)"),
    ]:
        with pytest.raises(WireError, match=message):
            Layout.of(adapter, PAIR)


@pytest.mark.parametrize("block", [1, 4, 7, 8, 23, 24, 100])
def test_blocks_are_whole_ranks_one_after_the_other(block, monkeypatch):
    monkeypatch.setattr("capfl.wire.layout.BLOCK", block)
    layout = Layout.of(SMALL, SMALL)
    blocks = list(layout.blocks())
    starts = [*layout.rank_starts.tolist(), layout.size]
    assert [i for own in blocks for i in range(own.ranks.start, own.ranks.stop)] == list(range(8))
    for own in blocks:
        assert (own.elements.start, own.elements.stop) == (starts[own.ranks.start], starts[own.ranks.stop])
        fits = own.elements.stop - own.elements.start <= block
        assert fits or own.ranks.stop - own.ranks.start == 1
        assert own.ranks.stop == 8 or starts[own.ranks.stop + 1] - own.elements.start > block
    assert not list(Layout(()).blocks())
