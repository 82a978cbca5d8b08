"""The config: defaults, files, pairs and flags; all mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.config import Config, load_config, to_toml
from capfl.config.keys import PUBLISHED, WORDS, all_keys, flags
from capfl.config.load import load_command
from capfl.config.schema import CodecConfig, MethodConfig
from capfl.errors import ConfigError
from capfl.methods import build


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


# -- defaults and round trip -----------------------------------------------------------------------


def test_defaults_are_a_valid_config():
    config = load_config()
    assert config == Config()
    assert Config.model_validate(config.model_dump()) == config
    assert (config.method.name, config.codec.values, config.model.path) == ("fedit", "ternary", "smollm2")


def test_every_key_has_a_default_and_a_description():
    for path, key in all_keys().items():
        assert key.info.description, path
        assert not key.info.is_required(), path


OTHER = {
    "seed": st.integers(0, 2**40),
    "out": st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
    "lora.alpha": st.floats(1e-6, 1e6),
    "lora.targets": st.lists(st.sampled_from(["q_proj", "k_proj", "up_proj"]), min_size=1, max_size=3),
    "lora.layers": st.sampled_from(["all", "top:2", "0,3"]),
    "data.limit": st.one_of(st.none(), st.integers(1, 99)),
    "partition.kind": st.sampled_from(["iid", "by:site", "by_task"]),
    "train.learning_rate": st.floats(1e-9, 1e3),
    "evaluation.personal": st.booleans(),
    "evaluation.references": st.lists(st.sampled_from(["local", "centralised"]), unique=True),
    "runtime.threads": st.one_of(st.none(), st.integers(1, 64)),
}


@given(st.fixed_dictionaries({}, optional=OTHER))
def test_toml_is_read_back_to_an_equal_config(tmp_path_factory, settings):
    config = load_config(None, settings)
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path) == config


def test_settings_lie_over_the_file(write):
    file = write("seed = 3\n[lora]\nrank = 4\nalpha = 1.5\n")
    config = load_config(file, {"lora.rank": "2", "train.steps": 5})
    assert (config.seed, config.lora.rank, config.lora.alpha, config.train.steps) == (3, 2, 1.5, 5)


def test_flags_lie_over_pairs_and_pairs_over_the_file(write):
    file = write("seed = 1\n[lora]\nrank = 1\n[train]\nsteps = 1\n")
    config = load_command(file, ["lora.rank=2", "train.steps=2"], ["--steps", "3"])
    assert (config.seed, config.lora.rank, config.train.steps) == (1, 2, 3)


# -- values from text ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["q_proj,v_proj", " q_proj , v_proj ,", "q_proj,,v_proj"])
def test_a_list_is_written_with_commas(text):
    assert load_config(None, {"lora.targets": text}).lora.targets == ("q_proj", "v_proj")


def test_an_empty_list_is_allowed_only_where_nothing_is_needed():
    assert load_config(None, {"evaluation.references": ""}).evaluation.references == ()
    assert any(line.startswith("lora.targets: ") for line in mistakes(sets=("lora.targets=",)))


@pytest.mark.parametrize("text", ["none", "None"])
def test_none_unsets_a_key_that_may_be_unset(write, text):
    file = write("[train]\nsteps = 3\n[partition]\nclients = 4\n")
    config = load_command(file, [f"train.steps={text}"], ["--partition.clients", text])
    assert (config.train.steps, config.partition.clients) == (None, None)


def test_none_is_a_plain_word_elsewhere():
    assert load_config(None, {"model.quantization": "none"}).model.quantization == "none"
    assert mistakes("--lora.rank", "none")[0].startswith("lora.rank: ")


def test_a_value_may_contain_an_equals_sign():
    assert load_command(None, ["out=a=b"], []).out == "a=b"
    assert load_command(None, [], ["--out=a=b"]).out == "a=b"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("no", False)])
def test_truth_values_from_text(text, value):
    assert load_config(None, {"evaluation.personal": text}).evaluation.personal is value


# -- flags -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--lora.rank", "3"], ["--lora.rank=3"], ["--lora_rank", "3"], ["--lora-rank", "3"], ["--lora-rank=3"],
        ["--rank", "3"],
    ],
)  # fmt: skip
def test_ways_to_write_one_flag(words):
    assert load_command(None, [], words).lora.rank == 3


def test_a_leaf_of_two_sections_is_no_flag_of_its_own():
    for leaf in ("alpha", "conflict", "max_items"):
        assert leaf not in flags()
    (line,) = mistakes("--alpha", "1")
    assert line == "--alpha: no such flag; did you mean --lora.alpha or --partition.alpha?"


def test_every_key_is_a_flag_in_both_spellings_and_every_alias_names_a_key():
    for path in all_keys():
        assert flags()[path] == flags()[path.replace(".", "_")] == path
    aliases = PUBLISHED | WORDS
    assert set(aliases.values()) <= set(all_keys())
    assert not set(aliases) & set(all_keys())  # no alias hides a key


PAPER = (
    "--model_path tiny --num_clients 4 --server_epochs 1 --client_epochs 1 --fraction 0.5 --batch_size 8 "
    "--learning_rate 1e-3 --lora_rank 4 --alpha_f 0.1 --max_length 64"
)


@pytest.mark.parametrize("command", [PAPER, PAPER.replace("_", "-")])
def test_the_command_of_the_ca_pfl_paper(command):
    config = load_command(None, [], command.split())
    expected = Config().model_dump()
    expected["model"]["path"] = "tiny"
    expected["partition"]["clients"] = 4
    expected["federation"] |= {"rounds": 1, "fraction": 0.5}
    expected["train"] |= {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
    expected["lora"]["rank"] = 4
    expected["method"]["alpha_f"] = 0.1
    expected["data"]["max_length"] = 64
    assert config.model_dump() == expected


# -- mistakes --------------------------------------------------------------------------------------


def test_unknown_keys_everywhere(write):
    file = write("sed = 1\n[lora]\nranks = 4\n[lore]\nrank = 4\n")
    lines = mistakes("--ranck", "3", sets=("train.step=2",), file=file)
    assert "sed: no such key; did you mean seed?" in lines
    assert any(line.startswith("lora.ranks: no such key; did you mean lora.rank") for line in lines)
    assert any(line.startswith("train.step: no such key; did you mean train.steps") for line in lines)
    assert any(line.startswith("lore: no such key") for line in lines)
    assert any(line.startswith("--ranck: no such flag; did you mean ") and "--rank" in line for line in lines)
    assert len(lines) == 5


def test_a_key_in_the_wrong_section_is_pointed_to_the_right_one(write):
    (line,) = mistakes(file=write("[train]\nrounds = 3\n"))
    assert line == "train.rounds: no such key; did you mean federation.rounds?"


def test_nothing_is_suggested_for_what_is_like_nothing():
    assert mistakes(sets=("xyzzyq=1",)) == ["xyzzyq: no such key"]


def test_all_mistakes_at_once(write):
    file = write('seed = -1\nnope = 1\n[lora]\nrank = 0\nlayers = "last"\n[federation]\nfraction = 0.0\n')
    lines = mistakes("stray", "--dropuot", "1", "--steps", sets=("train.steps",), file=file)
    starts = [
        "--set train.steps: write it as key=value", "stray: not a flag", "--dropuot: no such flag",
        "--steps: needs a value", "seed: ", "nope: no such key", "lora.rank: ", "lora.layers: ",
        "federation.fraction: ",
    ]  # fmt: skip
    assert len(lines) == len(starts)
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)


def test_a_wrong_value_is_shown():
    (line,) = mistakes("--rank", "eight")
    assert line.startswith("lora.rank: ")
    assert line.endswith("(given: 'eight')")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora.layers", "top:0"), ("lora.layers", "1,"), ("partition.kind", "by:"), ("partition.kind", "IID"),
        ("train.learning_rate", "nan"), ("train.learning_rate", "inf"), ("lora.alpha", "inf"), ("lora.dropout", "1"),
        ("partition.test", "0"), ("evaluation.references", "fedit"), ("method.alpha_f", "-1"), ("data.sites", "13"),
        ("runtime.threads", "0"), ("codec.values", "int8"), ("train.max_grad_norm", "inf"),
    ],
)  # fmt: skip
def test_values_out_of_bounds(key, value):
    (line,) = mistakes(sets=(f"{key}={value}",))
    assert line.startswith(key)


def test_validation_and_test_must_leave_something():
    (line,) = mistakes(sets=("partition.validation=0.5", "partition.test=0.5"))
    assert line == "partition: validation 0.5 + test 0.5 leave nothing to train on"


@pytest.mark.parametrize(
    ("words", "start"),
    [(["--rank"], "--rank: needs a value"), (["--rank", "--seed", "1"], "--rank: needs a value"),
     (["5"], "5: not a flag"), (["--rank", "3", "7"], "7: not a flag")],
)  # fmt: skip
def test_flags_without_values_and_values_without_flags(words, start):
    (line,) = mistakes(*words)
    assert line.startswith(start)


def test_an_unknown_flag_takes_its_value_with_it():
    assert len(mistakes("--nope", "7", "--nope2=7", "--nope3", "--seed", "1")) == 3


def test_a_section_that_is_a_value(write):
    lines = mistakes("--rank", "3", file=write("lora = 3\n"))
    assert len(lines) == 1
    assert lines[0].startswith("lora: ")


def test_files_that_cannot_be_read(write, tmp_path):
    (line,) = mistakes(file=tmp_path / "gone.toml")
    assert line == f"{tmp_path / 'gone.toml'}: there is no such config file"
    (line,) = mistakes(file=write("seed = \n"))
    assert "own.toml: is not valid TOML: " in line
    assert "line 1" in line
    (line,) = mistakes(file=tmp_path)
    assert line.startswith(f"{tmp_path}: cannot be read")
    (tmp_path / "latin.toml").write_bytes(b'out = "\xe9"')
    (line,) = mistakes(file=tmp_path / "latin.toml")
    assert "latin.toml: cannot be read" in line


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().lora.rank = 3


# -- flasc, whose codec is part of the method ---------------------------------------------------------------


def test_flasc_without_codec_settings_has_its_own():
    config = load_config(None, {"method.name": "flasc"})
    own = {"values": "fp32", "density": 0.25, "down_density": 1.0, "mask": "top", "scope": "global"}
    assert config.codec == CodecConfig(**own, compensation="off")
    assert Config(method=MethodConfig(name="flasc")).codec == config.codec
    assert load_config(None, {"method.name": "fedit"}).codec == CodecConfig()


def test_flasc_keeps_to_settings_that_are_given(write):
    given = {"method.name": "flasc", "codec.values": "ternary", "codec.compensation": "feedback", "codec.density": 0.1}
    codec = load_config(None, given).codec
    assert (codec.values, codec.compensation, codec.density) == ("ternary", "feedback", 0.1)
    assert (codec.mask, codec.scope, codec.down_density) == ("top", "global", 1.0)
    again = load_config(write(to_toml(load_config(None, given))))
    assert again.codec == codec
    assert Config(method=MethodConfig(name="flasc"), codec=CodecConfig(values="bf16")).codec.mask == "top"


def test_flasc_with_a_random_mask_is_a_contradiction():
    (line,) = mistakes("--method", "flasc", "--mask", "random")
    assert line == "codec.mask: flasc sends the largest values; use codec.mask = top, or leave it out"
    assert mistakes("--method", "flasc", sets=("codec=3",))


def test_shares_of_the_rank_are_a_list():
    config = load_command(None, [], ["--method", "hetlora", "--rank-shares", "1,0.5"])
    assert config.method.rank_shares == (1.0, 0.5)
    for wrong in ("", "0", "1.5", "half"):
        assert mistakes("--method", "hetlora", f"--rank-shares={wrong}")[0].startswith("method.rank_shares")
    with pytest.raises(
        ConfigError, match=r"method.rank_shares: fedit does not use it; .* use flora, flexlora, hetlora"
    ):
        build(load_command(None, [], ["--rank-shares", "1,0.5"]).method)
