"""Whether the bytes of a file are text in UTF-8, and what else they are likely to be."""

from __future__ import annotations

import shlex
from pathlib import Path

from capfl.errors import DataError

BOM = b"\xef\xbb\xbf"
WIDE = {  # byte order marks
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
FOREIGN = {  # what files begin with that are often taken for rows, and what to do
    b"PK\x03\x04": "is a zip archive or a workbook; unpack it, or save its sheet as CSV",
    b"7z\xbc\xaf": "is a 7z archive; unpack it",
    b"Rar!": "is a RAR archive; unpack it",
    b"\xd0\xcf\x11\xe0": "is a workbook; save its sheet as CSV",
    b"BZh": "is compressed with bzip2; unpack it, or use gzip",
    b"\xfd7zXZ": "is compressed with xz; unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it, or use gzip",
    b"SQLite format 3": "is an SQLite database; export its table as CSV",
    b"ARROW1": "is an Arrow file; give the folder that `datasets` saved it in",
    b"\xff\xff\xff\xff": "is an Arrow file; give the folder that `datasets` saved it in",
    b"%PDF": "is a PDF; write its text as rows",
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "is a pickle of Python, which capfl never loads; write its rows as JSON Lines",
    ),
    b"version https://git-lfs": "is a pointer of Git LFS in place of the file; fetch that: git lfs pull",
}
CONTROL = bytes({*range(32), 127} - {*b"\t\n\v\f\r\x1b"})  # bytes that no text has
LOOKED_AT = 4096  # bytes


def refuse_foreign(path: Path, raw: bytes) -> None:
    """Raises DataError: the bytes begin like a kind of file that is often taken for rows."""
    for start, problem in FOREIGN.items():
        if raw.startswith(start):
            raise DataError(f"{path}: {problem}")
    if raw[257:262] == b"ustar":
        raise DataError(f"{path}: is a tar archive; unpack it, and give the files in it")


def refuse_no_text(path: Path, raw: bytes, packed: bool, kinds: str) -> None:
    """Raises DataError: the bytes are text of another kind than UTF-8, or none.

    Args:
        packed: ``raw`` is what gzip had in it.
        kinds: the kinds of file that are read.
    """
    if wide := _wide(raw):
        own, other = shlex.quote(path.name), shlex.quote(f"utf8-{path.name}")
        remedy = "unpack it and save it as UTF-8" if packed else f"save it as UTF-8: iconv -f {wide} -t UTF-8 {own}"
        raise DataError(f"{path}: is {wide[:6]}; {remedy}" + ("" if packed else f" > {other}"))
    start = raw[:LOOKED_AT]
    if start.translate(None, CONTROL) != start and not _is_utf8(raw):
        within = "what is compressed in it is" if packed else "is"
        raise DataError(f"{path}: {within} no text; unpack it or export its rows. capfl reads {kinds}")


def text_in(path: Path, raw: bytes) -> str:
    """The text of a file. Raises DataError: it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: byte {error.start + 1} of the file is not UTF-8; save it as UTF-8") from error


def without_marks(raw: bytes) -> bytes:
    """The bytes behind byte order marks, of which files that programs have joined may have several."""
    while raw.startswith(BOM):
        raw = raw[len(BOM) :]
    return raw


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _wide(raw: bytes) -> str:
    """The encoding of text with more than a byte for each letter, as iconv calls it; empty: another one."""
    if marked := next((name for mark, name in WIDE.items() if raw.startswith(mark)), ""):
        return marked
    zeros = [byte == 0 for byte in raw[:4]]
    if zeros == [True] * 3 + [False] or zeros == [False] + [True] * 3:
        return "UTF-32BE" if zeros[0] else "UTF-32LE"
    return "UTF-16BE" if zeros[:2] == [True, False] else "UTF-16LE" if zeros[:2] == [False, True] else ""
