"""The cache of hidden states: another place, the same bits, never more than it may take."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from capfl.config.runtime import RuntimeConfig
from capfl.config.schema import TrainConfig
from capfl.errors import CheckpointError
from capfl.model.hidden import BLOCK, HiddenCache, Rows, open_cache
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.score import Scorable, score
from capfl.model.tokens import Example, Row
from capfl.model.train import local_steps
from capfl.model.written import Asked, write_answers
from capfl.types import Adapter
from capfl.vault import Vault


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
IDS = [row.ids for row in ROWS[:3]]
ROOM = 1 << 30
LONGEST = sorted(len(row.ids) for row in ROWS)[BLOCK - 1]
FIRST = 4 * 32 * BLOCK * LONGEST  # bytes of the states of the first block: the shortest rows


def work(model: AdaptedModel, start: Adapter, cache: HiddenCache) -> tuple[object, ...]:
    """Two visits of training and one of scoring."""
    data, scorable = Rows(ROWS), Scorable([Example(row, 0) for row in rows(40, seed=1)])
    adapter, losses = start, []
    for _ in range(2):
        trained = local_steps(model, cache, Job(data, PLAN, adapter), TrainConfig(learning_rate=0.01))
        adapter, losses = trained.adapter, [*losses, *trained.losses]
        cache.end_visit()
    found = score(model, cache, scorable, adapter, 7)
    return [t.numpy().tobytes() for t in adapter.values()], losses, found


def test_every_place_and_every_bound_gives_the_same_bits(adapt, wander, tmp_path):
    model = adapt()
    start = wander(model)
    expected = work(model, start, HiddenCache(ROOM))
    for limit, folder in ((0, None), (ROOM, tmp_path / "all"), (FIRST + 200, tmp_path / "one")):
        with HiddenCache(limit, folder) as cache:
            assert work(model, start, cache) == expected
            assert cache.usage()["bytes"] <= limit
            if folder is not None:
                assert sum(path.stat().st_size for path in folder.iterdir()) == cache.usage()["bytes"] > 0
    assert list(tmp_path.iterdir()) == []  # removed at the end


@pytest.mark.parametrize(
    ("limit", "on_disk", "computed"),
    # 70 rows are three blocks, and each of three visits needs them all
    [(ROOM, True, 3), (10, True, 9), (0, False, 9), (FIRST, False, 7)],
)
def test_what_fits_is_computed_once(adapt, tmp_path, limit, on_disk, computed):
    data, model = Rows(ROWS), adapt()
    with HiddenCache(limit, tmp_path / "hidden" if on_disk else None) as cache:
        for _ in range(3):
            for batch in data.by_length(16):
                data.batch(model, cache, batch)
            cache.end_visit()
        assert cache.usage()["computed"] == computed
        assert cache.usage()["computed"] + cache.usage()["reused"] == 15  # three visits of five batches
        assert cache.usage()["bytes"] <= limit


def states(cache: HiddenCache, model: AdaptedModel, ids: Sequence[np.ndarray] = IDS) -> tuple[int, torch.Tensor]:
    """How many blocks were computed for these rows, and what the cache has of them."""
    before = cache.usage()["computed"]
    found = cache.block(model, ids)
    return cache.usage()["computed"] - before, found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_run_finds_what_the_first_has_computed(adapt, tmp_path, dtype):
    vault = Vault(bytes(32))
    computed, first = states(HiddenCache(ROOM, tmp_path, shared=True, vault=vault), adapt(dtype))
    assert computed == 1
    with HiddenCache(ROOM, tmp_path, shared=True, vault=vault) as second:
        found = states(second, adapt(dtype, fresh=True))
    assert found[0] == 0
    assert found[1].dtype == first.dtype == getattr(torch, dtype)
    assert torch.equal(found[1], first)
    (file,) = tmp_path.iterdir()  # others may want it
    assert first[0, 0].view(torch.uint8).numpy().tobytes() not in file.read_bytes()  # it is encrypted


def test_other_rows_weights_layers_or_threads_are_not_mistaken_for_these(adapt, tmp_path):
    model = adapt()
    cache = HiddenCache(ROOM, tmp_path)
    assert states(cache, model)[0] == 1
    assert states(cache, model)[0] == 0
    joined = [np.concatenate(IDS[:2]), IDS[2]]
    for ids in ([*IDS[:2], IDS[2] + 1], IDS[:2], IDS[::-1], joined):
        assert states(cache, model, ids)[0] == 1
    assert states(cache, adapt(layers="top:1"))[0] == 1
    other = adapt(fresh=True)
    with torch.no_grad():
        next(other.layers[0].parameters()).add_(1e-3)
    assert states(cache, other)[0] == 1
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert states(HiddenCache(ROOM, tmp_path), model)[0] == 1
    finally:
        torch.set_num_threads(threads)


def test_a_full_folder_takes_no_more_and_a_damaged_file_is_made_again(adapt, tmp_path, monkeypatch):
    model = adapt()
    _, right = states(HiddenCache(ROOM, tmp_path), model)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    states(HiddenCache(ROOM, tmp_path / "other"), model, IDS[::-1])  # of the same shape
    (theirs,) = (tmp_path / "other").iterdir()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 40, len(whole) // 2, len(whole) - 1)]
    for damaged in (b"", whole[:50], whole[:-4], *flipped, theirs.read_bytes()):
        file.write_bytes(damaged)
        computed, found = states(HiddenCache(ROOM, tmp_path), model)
        assert computed == 1
        assert torch.equal(found, right)
        assert file.read_bytes() == whole
    states(HiddenCache(len(whole) + 10, tmp_path), model, IDS[:2])
    shutil.rmtree(theirs.parent)
    assert list(tmp_path.iterdir()) == [file]  # what is there already counts
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"cannot write .*; check the folder, then continue with"):
        states(HiddenCache(ROOM, blocked), model)


def test_a_config_says_where(tmp_path):
    def opened(**settings: object) -> tuple[int, Path | None]:
        cache = open_cache(RuntimeConfig.model_validate(settings | {"cache_gib": 1}), tmp_path / "run", Vault())
        return cache.limit_bytes, cache.folder

    assert opened() == (ROOM, tmp_path / "run")
    assert opened(cache=str(tmp_path / "all")) == (ROOM, tmp_path / "all")
    assert opened(cache="memory") == (ROOM, None)
    assert opened(cache="off") == (0, None)


# -- batches ---------------------------------------------------------------------------------------------


def test_a_batch_by_hand(adapt):
    model = adapt()
    data = Rows([
        Row(np.array([5, 6, 7], np.int32), np.array([8], np.int32)),
        Row(np.array([1, 2, 3, 4, 5], np.int32), np.array([4, 5, 6], np.int32)),
    ])  # fmt: skip
    batch = data.batch(model, HiddenCache(0), [1, 0])
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5], [5, 6, 7, 0, 0]]
    assert batch.positions.tolist() == [2, 3, 4, 7]
    assert batch.targets.tolist() == [4, 5, 6, 8]
    assert batch.counts == [3, 1]
    assert batch.hidden.shape == (2, 5, 32)
    torch.testing.assert_close(batch.hidden[1, :3], model.lower(torch.tensor([[5, 6, 7]]))[0])
    assert not batch.hidden[1, 3:].any()
    cache = HiddenCache(ROOM)
    assert data.batch(adapt(layers="all"), cache, [0]).hidden is None
    assert cache.usage()["computed"] == 0


def test_a_rows_state_does_not_depend_on_its_batch(adapt):
    model, data, cache = adapt(), Rows(ROWS), HiddenCache(0)
    alone = data.batch(model, cache, [7]).hidden[0]
    cache.end_visit()
    among = data.batch(model, cache, [60, 7, 33]).hidden[1]
    assert torch.equal(among[: len(alone)], alone)


def test_scoring_order_is_by_length_and_complete():
    data = Rows(ROWS)
    batches: list[list[int]] = data.by_length(16)
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(70))
    assert [data.lengths[i] for i in flat] == sorted(data.lengths)
    assert [len(batch) for batch in batches] == [16, 16, 16, 16, 6]


def test_runs_that_share_a_folder_let_the_base_answer_once(adapt, wander, tmp_path):
    model, asked = adapt(), [Asked(ids, "", 4) for ids in IDS]
    base, trained = model.initial_adapter(0), wander(model)

    def answers(model: AdaptedModel, adapter: Adapter, new: int = 4) -> tuple[list[str], int]:
        with HiddenCache(ROOM, tmp_path, shared=True) as cache:
            return write_answers(model, adapter, asked, new, 2, cache), cache.usage()["reused"]

    right = write_answers(model, base, asked, 4, 2)
    assert answers(model, base) == (right, 0)
    assert answers(model, base) == answers(model, model.initial_adapter(1)) == (right, 1)
    expected = write_answers(model, trained, asked, 4, 2)
    assert answers(model, trained) == answers(model, trained) == (expected, 0)
    assert answers(model, base, new=5)[1] == 0
    other = adapt(fresh=True)
    with torch.no_grad():
        other.base.module.get_output_embeddings().weight.add_(torch.randn(1)).neg_()  # above all adapted layers
    assert answers(other, base)[1] == 0
