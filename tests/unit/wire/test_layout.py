"""An adapter as one vector: rank by rank, in the template's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import filled, same, templates
from capfl.errors import WireError
from capfl.wire.layout import Layout

PAIR = {"q.A": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "q.B": torch.tensor([[7.0, 9.0], [8.0, 10.0]])}


def test_rows_of_a_then_columns_of_b():
    layout = Layout.of(PAIR, PAIR)
    assert layout.flatten(PAIR).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert (layout.sizes.tolist(), layout.starts.tolist(), layout.size) == ([6, 4], [0, 6], 10)
    assert layout.rank_starts.tolist() == [0, 3, 6, 8]


@given(filled(st.floats(width=32, allow_nan=False)))
def test_there_and_back(adapter):
    layout = Layout.of(adapter, adapter)
    assert same(layout.unflatten(layout.flatten(adapter)), adapter)


@given(templates())
def test_a_rank_is_a_run_of_the_vector(template):
    """So that one importance, one scale, or one drop serves B's column and A's row."""
    numbered = {name: torch.arange(t.numel(), dtype=torch.float32).reshape(t.shape) for name, t in template.items()}
    layout = Layout.of(template, template)
    runs = np.split(layout.flatten(numbered), layout.rank_starts[1:])
    ranks = [rank for name, t in numbered.items() for rank in (t.T if name.endswith("B") else t)]
    assert [run.tolist() for run in runs if run.size] == [rank.tolist() for rank in ranks]


def test_the_order_and_the_shapes_are_the_templates():
    shuffled = dict(reversed(PAIR.items()))
    assert Layout.of(shuffled, PAIR) == Layout.of(PAIR, PAIR)
    assert Layout.of({"q.B": PAIR["q.B"]}, PAIR).shapes == (("q.B", (2, 2)),)


def test_no_tensors_are_a_vector_of_nothing():
    layout = Layout.of({}, PAIR)
    assert (layout.size, layout.flatten({}).shape, layout.rank_starts.shape) == (0, (0,), (0,))
    assert layout.unflatten(np.zeros(0, np.float32)) == {}


def test_any_memory_layout_dtype_and_graph_is_read_and_left_alone():
    wide = torch.tensor([[1.0, 9.0, 2.0, 9.0, 3.0, 9.0], [4.0, 9.0, 5.0, 9.0, 6.0, 9.0]], requires_grad=True)
    other = {"q.A": wide[:, ::2], "q.B": PAIR["q.B"].to(torch.bfloat16)}
    layout = Layout.of(other, PAIR)
    flat = layout.flatten(other)
    assert flat.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    flat += 1
    assert wide[0, 0] == 1.0


@pytest.mark.parametrize("names", [["q.A"], ["q.B"], ["q.A", "q.B"]])
def test_the_vector_and_the_tensors_have_memory_of_their_own(names):
    part = {name: PAIR[name].clone() for name in names}
    layout = Layout.of(part, PAIR)
    flat = layout.flatten(part)
    back = layout.unflatten(flat)
    flat += 1
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
