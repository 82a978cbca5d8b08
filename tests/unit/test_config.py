"""The config: defaults, files, pairs and flags; all mistakes at once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.config import Config, load_config, to_toml
from capfl.config.keys import PUBLISHED, WORDS, all_keys, as_flag, flags, shortest
from capfl.config.load import changed, load_command
from capfl.data import deal, remarks
from capfl.errors import ConfigError, DataError


def mistakes(*arguments: str, sets: tuple[str, ...] = (), file: Path | None = None) -> list[str]:
    """The lines of the error that a command ends with."""
    with pytest.raises(ConfigError) as caught:
        load_command(file, list(sets), list(arguments))
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str) -> Path:
        path = tmp_path / "own.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


# -- keys and flags ---------------------------------------------------------------------------------


def test_every_key_is_described_has_a_default_and_is_a_flag_in_both_spellings():
    config = load_config()
    assert config == Config() == Config.model_validate(config.model_dump())
    assert (config.method.name, config.codec.values, config.model.path) == ("ca-pfl", "ternary", "smollm2")
    assert len(all_keys()) <= 87  # 70 are the aim: before one is added, take one away
    for path, key in all_keys().items():
        assert key.info.description, path
        assert not key.info.is_required(), path
        assert flags()[path] == flags()[path.replace(".", "_")] == flags()[shortest()[path]] == path
    aliases = PUBLISHED | WORDS
    assert set(aliases.values()) <= set(all_keys())
    assert not set(aliases) & set(all_keys())  # no alias hides a key
    with pytest.raises(ValueError, match="frozen"):
        config.lora.rank = 3


@pytest.mark.parametrize("words", ["--lora.rank 3", "--lora.rank=3", "--lora_rank 3", "--lora-rank=3", "--rank 3"])
def test_ways_to_write_one_flag(words):
    assert load_command(None, [], words.split()).lora.rank == 3


def test_a_leaf_of_two_sections_is_no_flag_of_its_own():
    assert mistakes("--alpha", "1") == ["--alpha: no such flag; did you mean --lora.alpha or --partition.alpha?"]


def test_flags_lie_over_pairs_and_pairs_over_the_file(write):
    file = write("seed = 1\n[lora]\nrank = 1\nalpha = 1.5\n[train]\nsteps = 1\n")
    config = load_command(file, ["lora.rank=2", "train.steps=2", "out=a=b"], ["--steps", "3"])
    assert (config.seed, config.lora.rank, config.lora.alpha, config.train.steps) == (1, 2, 1.5, 3)
    assert (config.out, load_command(None, [], ["--out=a=b"]).out) == ("a=b", "a=b")


OTHER = {
    "seed": st.integers(0, 2**40),
    "out": st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
    "lora.alpha": st.floats(1e-6, 1e6),
    "lora.targets": st.lists(st.sampled_from(["q_proj", "k_proj", "up_proj"]), min_size=1, max_size=3),
    "data.sets": st.sampled_from([["boolq"], ["a.jsonl", "b.jsonl"]]),
    "partition.kind": st.sampled_from(["iid", "by:site", "by_task", "dirichlet:task"]),
    "evaluation.references": st.lists(st.sampled_from(["local", "centralised"]), unique=True),
    "runtime.threads": st.one_of(st.none(), st.integers(1, 64)),
}


@settings(max_examples=30)
@given(st.fixed_dictionaries({}, optional=OTHER))
def test_toml_is_read_back_to_an_equal_config(tmp_path_factory, given_settings):
    config = load_config(None, given_settings)
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path) == config


# -- values from text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--data", "a,b c"], ["--data", " a , b c ,"], ["--data=a,,b c"], ["--data", "a", "b c"], ["--data", "a,", "b c"],
     ["--data", "a", "--data", "b c"], ["--data", '["a", "b c"]'], ["--data", "['a', 'b c',]"],
     ["--data", '["a"]', "b c"]],
)  # fmt: skip
def test_ways_to_write_a_list(words):
    assert load_command(None, [], [*words, "--seed", "1"]).data.sets == ("a", "b c")
    assert load_config(None, {"lora.targets": '["q, k", "v"]'}).lora.targets == ("q, k", "v")


def test_a_file_whose_name_has_a_comma(tmp_path):
    (tmp_path / "north, east.jsonl").touch()
    paths = [str(tmp_path / "north, east.jsonl"), str(tmp_path / "south.jsonl")]
    assert load_command(None, [], ["--data", *paths]).data.sets == tuple(paths)


LABELS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda label: label == label.strip()), min_size=2, max_size=4, unique=True)  # fmt: skip


@given(LABELS)
def test_a_list_that_is_printed_as_a_flag_can_be_pasted_back(labels):
    printed = as_flag("data.labels", labels)
    assert load_command(None, [], shlex.split(printed)).data.labels == tuple(labels)
    if all(label.isascii() and label.isalnum() for label in labels):
        assert printed == f"--data.labels {','.join(labels)}"


def test_empty_lists_and_wrong_ones():
    assert load_config(None, {"evaluation.references": ""}).evaluation.references == ()
    assert mistakes(sets=("lora.targets=",))[0].startswith("lora.targets: ")
    for wrong in (mistakes("--data", "[a, b]"), mistakes(sets=("data.sets=[a, b]",))):
        assert wrong[0].startswith("data.sets: [a, b] is not a JSON or TOML list")
    assert mistakes("--data.labels", "a,a")[0].startswith("data: labels a, a are not two or more different ones")


def test_none_unsets_a_key_that_may_be_unset(write):
    file = write('[train]\nsteps = 3\n[data]\nlabels = ["a", "b"]\n')
    config = load_command(file, ["train.steps=none"], ["--data.labels", "None"])
    assert (config.train.steps, config.data.labels) == (None, None)
    assert load_config(None, {"model.quantization": "none"}).model.quantization == "none"
    assert mistakes("--lora.rank", "none")[0].startswith("lora.rank: ")
    assert load_config(None, {"evaluation.personal": "no"}).evaluation.personal is False


# -- the published code's command ----------------------------------------------------------------------

PUBLISHED_COMMAND = (
    "--model_path X --num_clients 10 --server_epochs 2 --lora_rank 8 --alpha_s 0.01 --alpha_p 0.01 --rff_output_dim 256"
)


@pytest.mark.parametrize("command", [PUBLISHED_COMMAND, PUBLISHED_COMMAND.replace("_", "-")])
def test_the_published_command_runs_ca_pfl_on_openbookqa(command, tmp_path):
    config = load_command(None, [], [*command.split(), "--data_dir", str(tmp_path)])
    expected = Config().model_dump()
    expected["model"]["path"] = "X"
    expected["data"] |= {"sets": ("openbookqa",), "dir": str(tmp_path)}
    expected["partition"] |= {"kind": "iid", "clients": 10}
    expected["federation"]["rounds"] = 2
    expected["method"] |= {"name": "ca-pfl", "alpha_s": 0.01, "alpha_p": 0.01, "rff_output_dim": 256}
    assert config.model_dump() == expected
    with pytest.raises(DataError, match=r"openbookqa/train.jsonl: no such file; .* holds no NAME/SPLIT.jsonl at all"):
        deal(config.data, config.partition, 0)
    row = {"choices": {"text": ["w", "x"], "label": ["A", "B"]}, "answerKey": "B"}
    (tmp_path / "openbookqa").mkdir()
    lines = [json.dumps({"question_stem": f"q{k}", **row}) for k in range(120)]
    (tmp_path / "openbookqa" / "train.jsonl").write_text("\n".join(lines))
    items, splits = deal(config.data, config.partition, 0)
    assert {len(own.all) for own in splits.values()} == {12}
    assert remarks(config.data, config.partition, items, splits) == [
        f"data: openbookqa (split train, from {tmp_path}), partition.kind iid; 120 items at 10 clients"
    ]


def test_without_the_hub_the_published_command_says_what_to_do(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise ConnectionError("offline mode")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    config = load_command(None, [], PUBLISHED_COMMAND.split())
    remedy = r"offline mode.*give --data-dir FOLDER with openbookqa/train.jsonl in it, or .* data: --data helpdesk"
    with pytest.raises(DataError, match=remedy):
        deal(config.data, config.partition, 0)


def test_data_that_are_named_are_taken_whatever_the_flags(write):
    for words in (["--num_clients", "4", "--data", "boolq"], ["--server_epochs=1", "--data.sets", "boolq"]):
        assert load_command(None, [], words).data.sets == ("boolq",)
    assert load_command(write('[data]\nsets = ["boolq"]\n'), [], ["--client_epochs", "1"]).data.sets == ("boolq",)
    assert load_command(None, ["data.sets=boolq"], ["--client_epochs", "1"]).data.sets == ("boolq",)
    assert load_command(None, [], ["--batch_size", "4", "--lora_rank", "8"]).data.sets == ("helpdesk",)
    assert load_command(None, [], ["--base_sparsity_ratio", "0.15"]).codec.density == 0.15


# -- mistakes -----------------------------------------------------------------------------------------


def test_all_mistakes_at_once(write):
    file = write('sed = 1\nseed = -1\n[lora]\nrank = 0\nranks = 4\nlayers = "l"\n[train]\nrounds = 3\n[lore]\na = 1\n')
    lines = mistakes("stray", "--dropuot", "1", "--steps", sets=("train.steps", "train.step=2", "xyzzyq=1"), file=file)
    starts = [
        "--set train.steps: write it as key=value", "train.step: no such key; did you mean train.steps",
        "stray: not a flag", "--dropuot: no such flag; did you mean ", "--steps: needs a value", "seed: ",
        "sed: no such key; did you mean seed?", "lora.rank: ", "lora.layers: ", "lora.ranks: no such key; did you",
        "train.rounds: no such key; did you mean federation.rounds?", "lore: no such key", "xyzzyq: no such key",
    ]  # fmt: skip
    assert len(lines) == len(starts)
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)
    assert "xyzzyq: no such key" in lines  # nothing is suggested for what is like nothing


def test_flags_without_values_and_values_without_flags():
    assert mistakes("--rank", "--seed", "1") == ["--rank: needs a value"]
    (line,) = mistakes("--rank", "3", "7")
    assert line.startswith("7: not a flag")
    lines = mistakes("--nope", "7", "--nope2=7", "--nope3", "--seed", "1")
    assert [line.partition(":")[0] for line in lines] == ["--nope", "--nope2", "--nope3"]
    (line,) = mistakes("--rank", "eight")
    assert line.startswith("lora.rank: ")
    assert line.endswith("(given: 'eight')")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora.layers", "top:0"), ("lora.layers", "1,"), ("partition.kind", "by:"), ("partition.kind", "dirichlet:"),
        ("train.learning_rate", "nan"), ("lora.alpha", "inf"), ("lora.dropout", "1"), ("partition.test", "0"),
        ("evaluation.references", "fedit"), ("method.alpha_f", "-1"), ("data.sites", "13"), ("runtime.threads", "0"),
        ("codec.values", "int8"), ("method.rank_shares", ""), ("method.rank_shares", "1.5"),
    ],
)  # fmt: skip
def test_values_out_of_bounds(key, value):
    assert mistakes(sets=(f"{key}={value}",))[0].startswith(key)


def test_what_does_not_go_together():
    (line,) = mistakes(sets=("partition.validation=0.5", "partition.test=0.5"))
    assert line == "partition: validation 0.5 + test 0.5 leave nothing to train on"
    (line,) = mistakes(sets=("runtime.workers=2", "runtime.clients_per_pass=2"))
    assert line.startswith("runtime: workers train one client at a time each")
    assert load_command(None, [], ["--rank-shares", "1,0.5"]).method.rank_shares == (1.0, 0.5)
    train = load_config(None, {"train.epochs": 2, "train.batch_size": 8}).train
    assert (train.steps_of(17), changed(Config(), {"train.steps": 5}).train.steps_of(17)) == (6, 5)


def test_a_config_is_changed_as_by_flags():
    config = load_config(None, {"data.sets": ["boolq"], "seed": 3})
    other = changed(config, {"train.steps": 7, "lora.targets": "a,b"})
    assert (other.seed, other.train.steps, other.lora.targets) == (3, 7, ("a", "b"))
    assert other.partition == config.partition
    with pytest.raises(ConfigError, match=r"train.stepz: no such key; did you mean train.steps"):
        changed(config, {"train.stepz": 7})


def test_files_that_cannot_be_read(write, tmp_path):
    (line,) = mistakes("--rank", "3", file=write("lora = 3\n"))
    assert line.startswith("lora: ")
    (line,) = mistakes(file=tmp_path / "gone.toml")
    assert line == f"{tmp_path / 'gone.toml'}: there is no such config file"
    (line,) = mistakes(file=write("seed = \n"))
    assert "own.toml: is not valid TOML: " in line
    assert "line 1" in line
    (tmp_path / "latin.toml").write_bytes(b'out = "\xe9"')
    for path in (tmp_path, tmp_path / "latin.toml"):
        (line,) = mistakes(file=path)
        assert line.startswith(f"{path}: cannot be read")
