"""Which runs a node takes part in: by name, one by each name, whatever the server calls the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.engines.flower.allowed import FILE, Allowed
from capfl.errors import CheckpointError, ConfigError, RunError

FIRST, SECOND = "winter-0123456789abcdef", "winter-00000000000000ff"


@pytest.mark.parametrize(
    ("names", "run", "why"),
    [
        (["winter"], FIRST, ""),
        (["winter", "summer"], "summer-0123456789abcdef", ""),
        (["winter"], "summer-0123456789abcdef", "again with --run summer as well"),
        (["winter"], "winter-2-0123456789abcdef", "again with --run winter-2 as well"),
        (["winter"], "winter", "does not take part in run"),  # a name without its digest could be given again and again
        (["winter"], FIRST.upper(), "does not take part in run"),
        ([FIRST], FIRST, ""),
        ([FIRST], SECOND, "does not take part in run"),
        (
            [FIRST],
            f"{FIRST}-0123456789abcdef",
            "does not take part in run",
        ),  # of a folder that is called like the one run
        (["a" * 60], f"{'a' * 50}-0123456789abcdef", ""),  # as long as it is in the name of a run
        ([], FIRST, ""),
    ],
)
def test_what_is_allowed(names: list[str], run: str, why: str, tmp_path: Path) -> None:
    if not why:
        Allowed(names, tmp_path).check(run, malicious=False)
        return
    with pytest.raises(RunError, match=why):
        Allowed(names, tmp_path).check(run, malicious=False)


def test_a_second_run_of_a_name_is_refused_until_it_is_allowed_itself(tmp_path: Path) -> None:
    Allowed([], tmp_path).remember(FIRST)  # also when the name was not asked for then
    node = Allowed(["winter"], tmp_path)
    for _ in range(2):
        node.check(FIRST, malicious=True)  # it goes on, however often the node is started
        node.remember(FIRST)
    assert node.known() == [FIRST]
    with pytest.raises(RunError, match=f"is not {FIRST}, .* again with --run {SECOND}$"):
        node.check(SECOND, malicious=False)
    again = Allowed(["winter", SECOND], tmp_path)
    again.check(SECOND, malicious=False)
    again.remember(SECOND)
    again.check(FIRST, malicious=False)
    assert again.said() == f"takes part in winter ({FIRST}, {SECOND}), {SECOND} ({SECOND}), and in no other run"


def test_without_names_a_node_takes_part_in_no_run_against_a_malicious_server(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="start the node with --run NAME"):
        Allowed([], tmp_path).check(FIRST, malicious=True)


@pytest.mark.parametrize("name", ["runs/winter", "", "a b", "../x", "a\nb"])
def test_what_is_no_name_of_a_run_is_said_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--run: .* is no name of a run; give the last part"):
        Allowed([name], tmp_path)


def test_what_cannot_be_read_lets_nothing_in(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="write the names of the folders in runs/ into it"):
        Allowed(["winter"], tmp_path).check(FIRST, malicious=False)
