"""Files of every kind: the same rows from each, and a helpful word where there is something wrong with one."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfl.config import load_config
from capfl.config.data import DataConfig
from capfl.data import deal, load_items, task_of
from capfl.data.formats import check_file, read_file, read_held
from capfl.errors import ConfigError, DataError

ROWS = [
    {"prompt": "What is\u2028it?", "completion": ' "it", he said', "site": "a"},
    {"prompt": "Two\nlines", "completion": "é, 日本\n語", "site": "b"},
    {"prompt": "x;y\tz", "completion": "'", "site": "a"},
]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[Any], delimiter: str = ",", end: str = "\n") -> bytes:
    made = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(made, rows[0], delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return made.getvalue().encode()


def parquet(rows: list[Any]) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), made)
    return made.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "north.jsonl": lambda: lines(ROWS),
    "north.JSONL": lambda: b"\xef\xbb\xbf\r\n" + lines(ROWS).replace(b"\n", b"\r\n"),
    "mac/north.jsonl": lambda: lines(ROWS).replace(b"\n", b"\r"),
    "north.ndjson": lambda: lines(ROWS).rstrip(),
    "north.json": lambda: json.dumps(ROWS).encode(),
    "pretty/north.json": lambda: b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).replace("\n", "\r\n").encode(),
    "lines/north.json": lambda: lines(ROWS),
    "north.csv": lambda: table(ROWS),
    "excel/north.csv": lambda: b"\xef\xbb\xbf" + table(ROWS, ";", "\r\n"),
    "sep/north.csv": lambda: b"sep=;\r\n" + table(ROWS, ";", "\r\n"),
    "mac/north.csv": lambda: table(ROWS, end="\r"),
    "tabs/north.csv": lambda: table(ROWS, "\t"),
    "north.tsv": lambda: table(ROWS, "\t"),
    "index/north.csv": lambda: table([{"": k} | row for k, row in enumerate(ROWS)]),
    "mac and semicolons/north.csv": lambda: table(ROWS, ";", end="\r"),
    "commas in a name/north.csv": lambda: table([{"a, b, c, d": "x"} | row for row in ROWS], ";").replace(
        b"a, b, c, d", b'"a, b, c, d"'
    ),
    "bars/north.csv": lambda: table(ROWS, "|"),
    "json/north.csv": lambda: lines(ROWS),
    "array/north.csv": lambda: json.dumps(ROWS, indent=1).encode(),
    "north.parquet": lambda: parquet(ROWS),
    "north.jsonl.gz": lambda: gzip.compress(lines(ROWS)),
    "north.json.gz": lambda: gzip.compress(json.dumps(ROWS).encode()),
    "north.csv.gz": lambda: gzip.compress(table(ROWS)[:40]) + gzip.compress(table(ROWS)[40:]),
    "named/north.jsonl": lambda: gzip.compress(lines(ROWS)),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_rows_from_every_kind_of_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(KINDS[name]())
    items = read_file(path)
    assert [(item.question, item.completion, item.fields["site"]) for item in items] == [
        (row["prompt"], row["completion"], row["site"]) for row in ROWS
    ]
    assert {item.fields["task"] for item in items} == {task_of(str(path))} == {"north"}
    assert items[0].place.startswith(str(path))


def test_a_row_of_csv_is_named_by_the_line_on_which_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(table([*ROWS, {"prompt": "p", "completion": "", "site": "a"}]))
    with pytest.raises(DataError, match=r"1 of 4 rows[\s\S]*own\.csv:7: field 'completion' is empty"):
        read_file(path)


WRONG: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "empty.jsonl": (b" \n\r\n", "has no rows; write one JSON object a line"),
    "cut.jsonl": (lines(ROWS)[:-9], r"1 of 3 rows[\s\S]*cut\.jsonl:3: is not JSON \(Unterminated string"),
    "commas.jsonl": (
        lines(ROWS).replace(b"\n", b",\n"),
        r"3 of 3 rows[\s\S]*commas\.jsonl:1: is not JSON \(Extra data",
    ),
    "csv.jsonl": (
        table(ROWS),
        r"none of its 6 lines is JSON, such as b'prompt,.*CSV needs a name that ends with \.csv",
    ),
    "lists.jsonl": (b'["a", "b"]\n["c", "d"]', r"lists.jsonl: is not one JSON array \(Extra data: line 2"),
    "twice.jsonl": (b'{"prompt": "a", "completion": "b", "prompt": "c"}', "it has the key 'prompt' twice"),
    "latin.jsonl": ('{"prompt": "é"}'.encode("latin-1"), r"latin\.jsonl:1: byte 13 is not UTF-8; save the file"),
    "wide.jsonl": (
        lines(ROWS).decode().encode("utf-16"),
        r"is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8 wide",
    ),
    "narrow.csv": (
        table(ROWS).decode().encode("utf-16-le"),
        r"is UTF-16; save it as UTF-8: iconv -f UTF-16LE -t UTF-8 narrow\.csv > utf8-narrow\.csv$",
    ),
    "big.jsonl": (lines(ROWS).decode().encode("utf-16-be"), "is UTF-16; .* iconv -f UTF-16BE "),
    "32.csv": (table(ROWS).decode().encode("utf-32"), "is UTF-32; .* iconv -f UTF-32 "),
    "32-le.csv": (table(ROWS).decode().encode("utf-32-le"), "is UTF-32; .* iconv -f UTF-32LE "),
    "wide.csv.gz": (gzip.compress(table(ROWS).decode().encode("utf-16")), "is UTF-16; unpack it and save it as UTF-8$"),
    "lfs.csv": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "is a pointer of Git LFS .*: git lfs pull",
    ),
    "a.tgz": (
        lambda: gzip.compress(b"a.jsonl".ljust(257, b"\0") + b"ustar\x0000"),
        "is a tar archive; unpack it, and give",
    ),
    "a.pkl": (b"\x80\x04\x95\x01", "is a pickle of Python, which capfl never loads"),
    "a.arrow": (b"\xff\xff\xff\xff\x10", "is an Arrow file; give the folder"),
    "twice.json": (
        b'[{"prompt": "a, b"},\n {"prompt": "a", "prompt": "b"}]',
        "row 2: it has the key 'prompt' twice; keep one",
    ),
    "spaces.csv": (
        b'text, label\n"a, b", "c"\nd,e\n',
        r"1 of 2[\s\S]*spaces\.csv:2: has spaces before quotes, .*behind each ','",
    ),
    "head.csv": (b'"text", "label"\na,b\n', "head.csv:1: has spaces before quotes"),
    "bare head.csv": (b"say it,yes\nsend it,no\n", "keys say it, yes; .*, put one above it that names the columns$"),
    "choices.csv": (
        b'question,choices,answer\nq,"{""text"": [""a""], ""text"": [""b""]}",A\n',
        "field 'choices' is no JSON list .it has the key 'text' twice",
    ),
    "deep.jsonl": (b'{"prompt": ' + b"[" * 99999, r"deep\.jsonl:1: is not JSON \(.*recursion"),
    "half.jsonl": (b'{"prompt": "\\ud83d", "completion": "x"}', r"field 'prompt' has half of a character, \\ud83d"),
    "number.jsonl": (b"1\n2\n", "is a JSON int; write one JSON object a line"),
    "one.json": (
        json.dumps({"data": ROWS, "v": 1}, indent=1).encode(),
        "if the rows are its 'data', write that list al",
    ),
    "flat.json": (
        json.dumps({"data": ROWS}).encode(),
        r"no known format has the keys data.*its 'data', write that list",
    ),
    "column.json": (
        json.dumps({"prompt": {"0": "a"}, "completion": {"0": "b"}}).encode(),
        "field 'prompt' is {'0': 'a'}",
    ),
    "none.json": (b"[]", "has no rows"),
    "cut.json": (json.dumps(ROWS, indent=1).encode()[:-5], r"is not one JSON array \(.*line 15"),
    "mixed.json": (
        json.dumps([*ROWS, "x"]).encode(),
        r"mixed\.json: row 4: is a JSON str; write one JSON object a row",
    ),
    "half.json": (b'[{"prompt": "a", "completion": "\\udc00"}]', r"half\.json: row 1: field 'completion' has half"),
    "wide.json": (b"\xfe\xff" + json.dumps(ROWS).encode("utf-16-be"), "is UTF-16; save it as UTF-8"),
    "nested.json": (json.dumps([ROWS]).encode(), "row 1: is a JSON list; write one JSON object a row"),
    "latin.json": (
        json.dumps(ROWS, indent=1, ensure_ascii=False).encode("latin-1", "replace"),
        r":9: byte \d+ of the fi",
    ),
    "header.csv": (b"prompt,completion\n", "has no rows; .* or a header and lines of CSV"),
    "short.csv": (
        table(ROWS) + b"a,b\n",
        r"short\.csv:7: has 2 cells, and the header 3; put quotes around texts with ','",
    ),
    "bare.csv": (table(ROWS) + b"one, two, b, c\n", r"1 of 4 rows.*[\s\S]*bare\.csv:7: has 4 cells, and the header 3"),
    "open.csv": (table(ROWS) + b'"a,b,c\n', r"open\.csv:7: is not CSV \(unexpected end of data\); put quotes"),
    "quote.csv": (table(ROWS) + b'"a" "b",c,d\n', r"quote\.csv:7: is not CSV \(',' expected after '\"'\)"),
    "twice.csv": (b"prompt,completion,prompt\na,b,c\n", r"twice\.csv:1: the header has 'prompt' twice; rename one"),
    "blank.csv": (b"prompt,completion\na,b\n,\n", r"blank\.csv:3: field 'prompt' is empty"),
    "latin.csv": (
        table(ROWS).decode().encode("latin-1", "replace"),
        r"latin\.csv:4: byte \d+ of the file is not UTF-8",
    ),
    "wide.csv": (table(ROWS).decode().encode("utf-16"), "is UTF-16"),
    "names.csv": (b"Question,Answer\na,b\n", r"--data\.columns prompt=Question,completion=Answer$"),
    "none.csv": (b"a,b\nc,d\n", r"none\.csv:2: no known format has the keys a, b"),
    "spaces.tsv": (b"prompt  completion\na  b\n", r"spaces\.tsv:2: no known format has the keys prompt  completion"),
    "book.csv": (b"PK\x03\x04\x14\x00", "is a zip archive or a workbook; .* save its sheet as CSV"),
    "old.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1", "is a workbook; save its sheet as CSV"),
    "cut.parquet": (lambda: parquet(ROWS)[:-8], r"cut\.parquet: cannot be read as Parquet \(.*\); write it again"),
    "text.parquet": (lines(ROWS), r"text\.parquet: cannot be read as Parquet"),
    "bytes.parquet": (
        lambda: parquet([{"prompt": b"a", "completion": b"b"}]),
        "row 1: field 'prompt' is b'a'; it must be",
    ),
    "null.parquet": (
        lambda: parquet([*ROWS, {"prompt": "a"}]),
        "row 4: field 'completion' is null; fill it in or delete the row",
    ),
    "none.parquet": (lambda: parquet(ROWS)[:0], "cannot be read as Parquet"),
    "number.parquet": (lambda: parquet([{"prompt": 1, "completion": 2}]), "row 1: field 'prompt' is 1"),
    "parts.parquet": (
        lambda: parquet([{"messages": [{"role": "user", "content": [{"type": "image", "text": ""}]}]}]),
        r"row 1: field 'messages\[0\]\.content\[0\]' is of the type 'image'",
    ),
    "arrow.parquet": (b"ARROW1\x00\x00", "is an Arrow file; give the folder that `datasets` saved it in"),
    "keys.parquet": (lambda: parquet([{"Text": "a", "Label": "b"}]), "--data.columns text=Text,label=Label"),
    "lists.parquet": (
        lambda: parquet([{"prompt": ["a"], "completion": ["b"]}]),
        "field 'prompt' is a list of texts; write one row for each",
    ),
    "cut.jsonl.gz": (gzip.compress(lines(ROWS))[:-12], r"is damaged gzip \(.*\); copy it again"),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(lines(ROWS))), "what is compressed in it is no text; unpack it"),
    "noise.csv.gz": (b"\x1f\x8b\x08\x00noise", "is damaged gzip"),
    "a.jsonl.bz2": (b"BZh91AY&SY", "is compressed with bzip2; unpack it, or use gzip"),
    "a.jsonl.xz": (b"\xfd7zXZ\x00", "is compressed with xz"),
    "a.jsonl.zst": (b"\x28\xb5\x2f\xfd\x00", "is compressed with zstd"),
    "a.sqlite": (b"SQLite format 3\x00", "is an SQLite database; export its table as CSV"),
    "a.pdf": (b"%PDF-1.7", "is a PDF; write its text as rows"),
    "half.csv.gz": (gzip.compress(b'text,label\n"a,b\n'), r"half\.csv\.gz:2: is not CSV"),
    "a.txt": (
        b"Dear all,\nhello\n",
        r"none of its 2 lines is JSON, such as b'Dear all,'; capfl reads JSON Lines, a JSON",
    ),
}
"""A file, its content, and what is said of it."""


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_file_is_said(name: str, tmp_path: Path) -> None:
    content, said = WRONG[name]
    path = tmp_path / name
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(DataError, match=said) as caught:
        read_file(path)
    assert str(path) in str(caught.value)


# -- what datasets saved, and the Hub ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a data set, one with two splits, and one with neither."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    label = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_list([{"text": f"t{k}", "label": k % 2} for k in range(20)], features=label)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select(range(4))}).save_to_disk(tmp_path / "both")
    data.to_parquet(tmp_path / "names.parquet")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.csv").touch()
    (tmp_path / "other" / "dataset_infos.json").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    return tmp_path


def test_a_folder_that_datasets_saved(saved: Path) -> None:
    for name in ("one", "both", "names.parquet"):
        items = read_file(saved / name)
        assert len(items) == 20
        assert items[1].fields == {"label": "yes", "task": name.removesuffix(".parquet")}
    assert len(load_items(DataConfig(sets=(str(saved / "both"),), split="test"), 0)) == 4
    for name, said in {
        "both": "has no split 'dev'; take one of train, test: --data.split NAME",
        "other": rf"that `datasets` did not save.*; give its files, each a client: {saved}/other/a\.csv$",
        "link.csv": "is a link to .*gone.csv, which does not exist; repair it, or give the file",
        "x" * 300 + ".csv": r"cannot be read \(.*\); give the path of a file",
        "broken": r"cannot be loaded as a saved data set \(\w+: .*\); save it again",
    }.items():
        with pytest.raises(DataError, match=said):
            read_file(saved / name, split="dev")
    config = load_config(None, {"data.sets": [str(saved / "one"), str(saved / "both")]})
    assert sorted(deal(config.data, config.partition, 0)[1]) == ["both", "one"]
    check_file(saved / "one")


def test_a_data_set_is_read_as_it_is_stored(tmp_path: Path) -> None:
    """Whatever its format; nothing is decoded, for which packages may be missing; what is wrong is said."""
    datasets = pytest.importorskip("datasets")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    for kind in ("torch", "numpy", "pandas", "arrow", None):
        assert [item.fields["label"] for item in read_held("a", data.with_format(kind))] == ["no", "yes"], kind
    shouted = data.with_transform(lambda rows: {"text": [text + "!" for text in rows["text"]], "label": rows["label"]})
    assert [item.question for item in read_held("a", shouted)] == ["a!", "b!"]
    stored = {"prompt": ["a"], "completion": ["b"], "clip": [{"bytes": b"no sound", "path": None}], "label": [2],
              "day": [datetime.date(2026, 11, 30)]}  # fmt: skip
    described = {"prompt": {"dtype": "string", "_type": "Value"}, "completion": {"dtype": "string", "_type": "Value"},
                 "clip": {"_type": "Audio"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
                 "day": {"dtype": "date32", "_type": "Value"}}  # fmt: skip
    path = tmp_path / "a.parquet"
    for kept, said in {
        ("prompt", "completion", "clip", "day"): "",
        ("prompt", "completion", "label"): "row 1: field 'label' is 2, and the data set names 2 classes",
        ("prompt", "completion", "new"): r"cannot be read \(ValueError: Feature type 'New' not found",
    }.items():
        info = {"info": {"features": {key: described.get(key, {"_type": "New"}) for key in kept}}}
        table = pa.table({key: stored[key] for key in kept if key in stored})
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)
        if said:
            with pytest.raises(DataError, match=said):
                read_file(path)
        else:
            assert read_file(path)[0].fields["day"] == "2026-11-30"


def test_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> object:
        asked.append((name, config, split))
        if name != "tatsu-lab/alpaca":
            raise FileNotFoundError("no such data set")
        row = {"instruction": "Add", "input": "1 + 1", "output": "2", "text": "### Instruction: ..."}
        return datasets.Dataset.from_list([row] * 12)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {"data.sets": "tatsu-lab/alpaca:first", "data.split": "train[:12]"})
    assert config.partition.kind == "iid"
    items = load_items(config.data, 0)
    assert asked == [("tatsu-lab/alpaca", "first", "train[:12]")]
    assert (items[0].messages, items[0].completion) == ((("user", "Add\n\n1 + 1"),), "2")
    assert (items[0].fields["task"], items[0].place) == ("alpaca-first", "tatsu-lab/alpaca first train[:12]: row 1")
    with pytest.raises(DataError, match=r"a/b train: cannot be loaded from the Hub .*check the name, the network and"):
        load_items(DataConfig(sets=("a/b",)), 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "north.jsonl").write_bytes(lines(ROWS))
    with pytest.raises(DataError, match=r"a/nort train: .*, or, if it is to be a file here; did you mean a/north"):
        load_items(DataConfig(sets=("a/nort",)), 0)
    (tmp_path / "a" / "b").write_bytes(lines(ROWS))  # what is here is not looked for elsewhere
    assert len(load_items(DataConfig(sets=("a/b",)), 0)) == 3
    (tmp_path / "north").write_bytes(lines(ROWS))
    with pytest.raises(ConfigError, match=r"called 'north' \(if you mean the file or folder of that name: \./north\)"):
        load_items(DataConfig(sets=("north",)), 0)
