"""Data sets by name, path or from memory, and what is found wrong with them before anything else is loaded."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest

from capfl.config import Config, load_config
from capfl.config.data import DataConfig, PartitionConfig
from capfl.config.load import load_command
from capfl.data import deal, deal_one, deal_rows, digest, load_items
from capfl.errors import ConfigError, DataError

ROW = {"question": "is it", "passage": "It is.", "answer": True}


def labelled(*labels, n=1):
    return [{"text": f"t{k} {label}", "label": label} for k in range(n) for label in labels]


def test_sets_follow_each_other(write, tmp_path):
    write(*[ROW] * 5, name="boolq/train.jsonl")
    own = str(write({"prompt": "a", "completion": "b"}))
    items = load_items(DataConfig(sets=(own, "boolq", "helpdesk"), dir=str(tmp_path), sites=3, items=20), 0)
    assert [item.fields["task"] for item in items] == ["own"] + ["boolq"] * 5 + ["helpdesk"] * 60
    assert {item.fields.get("site") for item in items} == {None, "hospital", "bank", "airline"}


def test_limit_takes_some_at_random(write):
    path = str(write(*[{"prompt": f"p{k}", "completion": "c"} for k in range(50)]))

    def questions(seed, limit):
        return [item.question for item in load_items(DataConfig(sets=(path,), limit=limit), seed)]

    assert len(set(questions(0, 10))) == 10
    assert questions(0, 10) == questions(0, 10) != questions(1, 10)
    assert questions(0, 99) == [f"p{k}" for k in range(50)]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("helpdesk", "helpdesk"), "helpdesk, helpdesk are one task, 'helpdesk'; name it once or rename a file"),
        (("a/x.jsonl", "b/x.jsonl"), "a/x.jsonl, b/x.jsonl are one task, 'x'"),
        (("boolqq", "zzz"), r"called 'boolqq' \(did you mean 'boolq'\?\); choose from helpdesk[\s\S]*called 'zzz'"),
    ],
)
def test_wrong_names(sets, message):
    with pytest.raises(ConfigError, match=message):
        load_items(DataConfig(sets=sets), 0)
    for path in ("gone.jsonl", "gone.json", "./gone"):
        with pytest.raises(DataError, match="no such file"):
            load_items(DataConfig(sets=(path,)), 0)


def pasted(message):
    """The config that comes of the flags that an error says to give."""
    (words,) = re.findall(r"(--data\.labels .*?)(?:;|$)", message)
    return load_command(None, [], shlex.split(words))


@pytest.mark.parametrize("labels", [("billing", "delivery", "refund"), ("[e", "a, b", "c'd"), ("1", "2", "10")])
def test_a_label_has_one_letter_wherever_its_letter_is_learnt(write, labels):
    """The second file lacks a label of the first, so its letters would be others. The remedy can be pasted."""
    north, south = (str(write(*labelled(*own), name=f"{name}.jsonl"))
                    for name, own in {"north": labels, "south": labels[1:]}.items())  # fmt: skip
    both = DataConfig(sets=(north, south))
    with pytest.raises(DataError, match=r"is option 2 in .*north.jsonl and 1 in .*south.jsonl") as caught:
        load_items(both, 0)
    whole = both.model_copy(update={"labels": pasted(str(caught.value)).data.labels})
    assert whole.labels == labels
    assert {item.choices.index(item.fields["label"]) for item in load_items(whole, 0)[3:]} == {1, 2}
    assert load_items(both.model_copy(update={"scoring": "text"}), 0)[3].choices == labels[1:]  # words are the same


def test_labels_that_are_likely_one_are_named_across_files_too(write):
    paths = [write(*labelled("no", label), name=f"{name}.jsonl") for name, label in (("a", "yes"), ("b", "Yes"))]
    data = DataConfig(sets=tuple(map(str, paths)), scoring="text")
    with pytest.raises(DataError, match=r"labels 'yes' \(.*a.jsonl\) and 'Yes' \(.*b.jsonl\) differ in case") as caught:
        load_items(data, 0)
    listed = pasted(str(caught.value)).data.labels
    assert len(load_items(data.model_copy(update={"labels": listed}), 0)) == 4


def test_more_options_than_letters_are_found_before_anything_is_loaded(write):
    rows = [{"question": "q", "choices": [str(k) for k in range(27)], "answer": 1}]
    for path in (write(*labelled(*(f"l{k}" for k in range(30)))), write(*rows, name="choice.jsonl")):
        data = DataConfig(sets=(str(path),))
        with pytest.raises(DataError, match=r"(30 of 30|1 of 1) items have more options than there are letters.*text$"):
            load_items(data, 0)
        assert load_items(data.model_copy(update={"scoring": "text"}), 0)


# -- who holds what, where nobody says so ----------------------------------------------------------------


def test_several_own_files_are_a_client_each_and_pooled_only_if_asked(write):
    paths = [str(write(*labelled("x", "y", n=10), name=f"{name}.jsonl")) for name in ("all", "south")]
    config = load_command(None, [], ["--data", *paths])
    _, splits = deal(config.data, config.partition, 0)
    assert list(splits) == ["all", "south"]  # whatever a file is called, it is a name like any other
    assert sorted(splits["all"].all) == list(range(20))
    assert deal_one(config.data, config.partition, 0, "all")[1]["all"] == splits["all"]
    pooled = load_command(None, [], ["--data", *paths, "--partition", "iid", "--clients", "4"])
    assert list(deal(pooled.data, pooled.partition, 0)[1]) == ["00", "01", "02", "03"]
    conflict = pooled.partition.model_copy(update={"kind": "conflict"})
    assert {item.fields["cluster"] for item in deal(pooled.data, conflict, 0)[0]} == {"0", "1"}
    single = load_command(None, [], ["--data", paths[0], "--clients", "4"])
    with pytest.raises(ConfigError, match=r"no item has the field 'site'.*--partition.kind iid --partition.clients 2"):
        deal(single.data, single.partition, 0)


@pytest.mark.parametrize(
    ("sets", "kind"),
    [("helpdesk", "by:site"), ("a.jsonl", "by:site"), ("a.jsonl,b.json", "by_task"), ("a.jsonl,boolq", "by_task"),
     ("openbookqa", "iid"), ("openbookqa,boolq", "iid")],
)  # fmt: skip
def test_the_kind_of_partition_follows_from_the_data(sets, kind):
    assert load_config(None, {"data.sets": sets}).partition.kind == kind
    assert load_config(None, {"data.sets": sets, "partition.kind": "by:x"}).partition.kind == "by:x"
    assert Config(data=DataConfig(sets=tuple(sets.split(","))), partition=PartitionConfig(clients=3)).partition == (
        PartitionConfig(kind=kind, clients=3)
    )


# -- rows in memory ------------------------------------------------------------------------------------------

HELD = {"south": labelled("x", "y", n=8), "a b": labelled("x", "y", n=12)}


def test_rows_in_memory_are_dealt_out_as_from_files(write):
    paths = [str(write(*rows, name=f"{client}.jsonl")) for client, rows in HELD.items()]
    config = load_config(None, {"data.sets": paths, "data.limit": 15})
    of_files = deal(config.data, config.partition, 3)
    unread = load_config(None, {"data.limit": 15})
    held = deal_rows({client: iter(rows) for client, rows in HELD.items()}, unread.data, unread.partition, 3)
    assert digest(*held) == digest(*of_files)
    assert list(held[1]) == ["a_b", "south"]
    assert [item.fields for item in held[0]] == [item.fields for item in of_files[0]]


def test_a_dataset_gives_the_names_of_its_classes():
    datasets = pytest.importorskip("datasets")
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    rows = [{"text": f"t{k}", "label": k % 2} for k in range(12)]
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    config = Config()
    numbers = [{"text": row["text"], "label": np.int64(row["label"])} for row in rows]  # as of a pandas table
    items, _ = deal_rows({"a": numbers}, config.data, config.partition, 0)
    assert items[1].fields["label"] == "1"
    items, splits = deal_rows({"a": table, "b": table}, config.data, config.partition, 0)
    assert (items[1].choices, items[1].fields["label"], list(splits)) == (("no", "yes"), "yes", ["a", "b"])


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({"a": [*HELD["south"], {"text": "", "label": "x"}]}, "client 'a': row 17: field 'text' is empty"),
        ({"a": [*HELD["south"], ["x"]]}, "client 'a': row 17: is a list; give one dict a row"),
        ({"a": []}, "client 'a': has no rows"),
        ({"a": None}, "client 'a': is a NoneType; give a list with one dict a row"),
        ({"a": {"text": ["x"], "label": ["y"]}}, "client 'a': is a dict; give a list with one dict a row"),
        ({"a": [{1: "x", "text": "y"}]}, "client 'a': row 1: has the key 1, which is no text; rename it"),
        ({"a": [{"prompt": "x", "completion": "y", "more": {(1, 2): ["\udc00"]}}]}, "field 'more' has half of a chara"),
        ({"a": [{"foo": 1}]}, "client 'a': row 1: no known format has the keys foo"),
        ({"a": labelled("x", "y"), "b": labelled("y", "z")}, "'y' is option 2 in client 'a' and 1 in client 'b'"),
        ({"a": labelled(*map(str, range(27)))}, "client 'a': 27 of 27 items have more options"),
        ({"a": HELD["south"], "b": HELD["south"][:5]}, r"1 of 2 clients have fewer than .*: b \(5\)"),
        ({}, "there are no clients; give their rows by name"),
        (HELD | {"c": HELD["south"]}, "partition.clients is 2, but there are rows for 3 clients"),
    ],
)
def test_wrong_rows_in_memory(clients, message):
    partition = PartitionConfig(clients=2) if len(clients) == 3 else PartitionConfig()
    with pytest.raises((DataError, ConfigError), match=message):
        deal_rows(clients, DataConfig(), partition, 0)
