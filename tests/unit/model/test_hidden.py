"""The cache of hidden states: another place, the same bits, never more than it may take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from capfl.config.schema import TrainConfig
from capfl.errors import CheckpointError
from capfl.model.hidden import BLOCK, HiddenCache, Rows
from capfl.model.lora import AdaptedModel
from capfl.model.score import Scorable, score
from capfl.model.shared import SharedBlocks
from capfl.model.tokens import Example, Row
from capfl.model.train import local_steps
from capfl.types import Adapter


def rows(n: int = 70, seed: int = 0) -> list[Row]:
    """Rows of many lengths, with one to three targets each."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        ids = generator.integers(1, 250, generator.integers(4, 20)).astype(np.int32)
        made.append(Row(ids, generator.integers(1, 250, generator.integers(1, 4)).astype(np.int32)))
    return made


ROWS = rows()
PLAN = [[0, 60, 33], [5, 41, 69], [1, 2, 3], [60, 0, 33]]
BLOCK_BYTES = 4 * 32 * sum(sorted(len(row.ids) for row in ROWS)[:BLOCK])  # the first block: the shortest rows

MODES = [
    ("memory", 1 << 30), ("disk", 1 << 30), ("off", 1 << 30), ("memory", BLOCK_BYTES), ("disk", BLOCK_BYTES),
    ("memory", 10),
]  # fmt: skip


def work(model: AdaptedModel, start: Adapter, mode: str, limit: int, folder: Path) -> tuple[object, ...]:
    """Two visits of training and one of scoring."""
    data = Rows("c/train", ROWS)
    scorable = Scorable("c/test", [Example(row, 0) for row in rows(40, seed=1)])
    with HiddenCache(mode, limit, folder) as cache:
        adapter, losses = start, []
        for _ in range(2):
            trained = local_steps(model, cache, data, PLAN, adapter, TrainConfig(learning_rate=0.01))
            adapter, losses = trained.adapter, [*losses, *trained.losses]
            cache.end_visit()
        found = score(model, cache, scorable, adapter, 7)
        assert cache.used_bytes <= cache.limit_bytes
    return [t.numpy().tobytes() for t in adapter.values()], losses, found


def test_every_place_and_every_bound_gives_the_same_bits(adapt, wander, tmp_path):
    model = adapt()
    start = wander(model)
    expected = work(model, start, *MODES[0], tmp_path)
    for mode, limit in (MODES[2], MODES[4]):
        assert work(model, start, mode, limit, tmp_path) == expected


def test_what_fits_is_computed_once(adapt, tmp_path):
    counts = {}
    for mode, limit in MODES:
        with HiddenCache(mode, limit, tmp_path) as cache:
            data, model = Rows("c/train", ROWS), adapt()
            for _ in range(3):
                for batch in data.by_length(16):
                    data.batch(model, cache, batch)
                cache.end_visit()
            counts[mode, limit] = cache.computed
            assert cache.used_bytes <= limit
    # 70 rows are three blocks, and each of three visits needs them all
    assert counts["memory", 1 << 30] == counts["disk", 1 << 30] == 3
    assert counts["off", 1 << 30] == counts["memory", 10] == 9
    assert counts["memory", BLOCK_BYTES] == counts["disk", BLOCK_BYTES] == 7  # one block is kept


def block(n: int, value: float = 1.0) -> torch.Tensor:
    return torch.full((n, 4), value)


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_the_bound_is_kept_to_the_byte_and_more_lives_until_the_end_of_the_visit(tmp_path, mode):
    with HiddenCache(mode, 100, tmp_path) as cache:
        cache.put(("a", 0), block(5))  # 80 bytes
        cache.put(("a", 1), block(2))  # 32 more would be too many
        cache.put(("a", 2), block(1))  # 16 more still fit
        cache.put(("a", 3), block(1))
        assert (cache.used_bytes, cache.computed, cache.reused) == (96, 4, 0)
        assert all(cache.get(("a", i)) is not None for i in range(4))
        cache.end_visit()
        assert [cache.get(("a", i)) is not None for i in range(4)] == [True, False, True, False]
        assert cache.reused == 6
    assert list(tmp_path.iterdir()) == []  # the file has no name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_come_back_from_disk_exactly(tmp_path, dtype):
    with HiddenCache("disk", 1 << 20, tmp_path) as cache:
        blocks = {("a", i): torch.randn(i + 1, 8).to(dtype) for i in range(5)}
        for key, value in blocks.items():
            cache.put(key, value)
        for key, value in reversed(blocks.items()):
            found = cache.get(key)
            assert found.dtype == dtype
            assert torch.equal(found, value)
        assert cache.get(("b", 0)) is None


# -- blocks that runs share ----------------------------------------------------------------------------


def shared_work(model: AdaptedModel, start: Adapter, shared: SharedBlocks) -> tuple[int, bytes]:
    with HiddenCache("memory", 1 << 30, shared=shared) as cache:
        trained = local_steps(model, cache, Rows("c/train", ROWS), PLAN, start, TrainConfig(learning_rate=0.01))
        return cache.computed, b"".join(t.numpy().tobytes() for t in trained.adapter.values())


def test_a_second_run_finds_what_the_first_has_computed(adapt, wander, tmp_path, monkeypatch):
    model = adapt()
    start = wander(model)
    first = shared_work(model, start, SharedBlocks(tmp_path / "blocks", 1 << 20))
    files = {path.name for path in (tmp_path / "blocks").iterdir()}
    assert len(files) == first[0] == 2  # the plan needs no row of the third
    second = adapt(fresh=True)
    fingerprint = SharedBlocks(tmp_path / "blocks", 1 << 20)
    fingerprint._fingerprint(second)
    monkeypatch.setattr(AdaptedModel, "lower", None)  # whoever calls it fails
    assert shared_work(second, start, fingerprint) == (0, first[1])


def test_other_weights_layers_or_threads_are_not_mistaken_for_these(adapt, tmp_path):
    ids = torch.arange(12).reshape(2, 6)
    shared = SharedBlocks(tmp_path, 1 << 20)
    model = adapt()
    shared.put(model, ids, torch.ones(12, 32))
    assert torch.equal(shared.get(model, ids), torch.ones(12, 32))
    assert shared.get(model, ids + 1) is None
    assert shared.get(model, ids.reshape(3, 4)) is None
    assert shared.get(adapt(layers="top:1"), ids) is None
    other = adapt(fresh=True)
    with torch.no_grad():
        next(other.layers[0].parameters()).add_(1e-3)
    assert shared.get(other, ids) is None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert SharedBlocks(tmp_path, 1 << 20).get(model, ids) is None
    finally:
        torch.set_num_threads(threads)


def test_a_full_folder_takes_no_more_and_a_damaged_file_is_named(adapt, tmp_path):
    ids, model = torch.arange(12).reshape(2, 6), adapt()
    SharedBlocks(tmp_path, 100).put(model, ids, torch.ones(12, 32))
    assert list(tmp_path.iterdir()) == []
    shared = SharedBlocks(tmp_path, 1 << 20)
    shared.put(model, ids, torch.ones(12, 32))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=rf"{file.name} cannot be read: .*remove it"):
        shared.get(model, ids)


# -- batches ---------------------------------------------------------------------------------------------


def test_a_batch_by_hand(adapt, tmp_path):
    model = adapt()
    data = Rows("c", [
        Row(np.array([5, 6, 7], np.int32), np.array([8], np.int32)),
        Row(np.array([1, 2, 3, 4, 5], np.int32), np.array([4, 5, 6], np.int32)),
    ])  # fmt: skip
    batch = data.batch(model, HiddenCache("off", 0), [1, 0])
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5], [5, 6, 7, 0, 0]]
    assert batch.positions.tolist() == [2, 3, 4, 7]
    assert batch.targets.tolist() == [4, 5, 6, 8]
    assert batch.counts == [3, 1]
    assert batch.hidden.shape == (2, 5, 32)
    torch.testing.assert_close(batch.hidden[1, :3], model.lower(torch.tensor([[5, 6, 7]]))[0])
    assert not batch.hidden[1, 3:].any()


def test_nothing_is_cached_where_all_layers_are_adapted(adapt):
    cache = HiddenCache("memory", 1 << 20)
    batch = Rows("c", ROWS).batch(adapt(layers="all"), cache, [0])
    assert batch.hidden is None
    assert cache.computed == 0


def test_a_rows_state_does_not_depend_on_its_batch(adapt):
    model, data, cache = adapt(), Rows("c", ROWS), HiddenCache("off", 0)
    alone = data.batch(model, cache, [7]).hidden[0]
    cache.end_visit()
    among = data.batch(model, cache, [60, 7, 33]).hidden[1]
    assert torch.equal(among[: len(alone)], alone)


def test_scoring_order_is_by_length_and_complete():
    data = Rows("c", ROWS)
    batches: list[list[int]] = data.by_length(16)
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(70))
    assert [data.lengths[i] for i in flat] == sorted(data.lengths)
    assert [len(batch) for batch in batches] == [16, 16, 16, 16, 6]


def test_a_short_read_is_continued_and_a_missing_end_is_noticed(tmp_path, monkeypatch):
    import os

    real: Callable[..., int] = os.preadv
    with HiddenCache("disk", 1 << 20, tmp_path) as cache:
        value = torch.randn(6, 4)
        cache.put(("a", 0), value)
        monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:7]], at))
        assert torch.equal(cache.get(("a", 0)), value)
        cache._file.truncate(50)
        with pytest.raises(OSError, match="ends before block"):
            cache.get(("a", 0))
