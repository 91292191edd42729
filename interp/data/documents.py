"""Files, folders, data sets and standard input to documents: in order, filtered, without duplicates, each drop counted.

A document is a .txt file (all of "-", standard input, too), a line of a .jsonl file, or a row of a .parquet file or of
a Hugging Face data set saved on disk. Nothing bigger than a document, or 256 rows, is held in memory; what grows with
the corpus is 16 bytes of hash for each document (about 100 in a Python set).
"""

from __future__ import annotations

import functools
import glob
import gzip
import json
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from interp.errors import InputError, MissingFile, nearest

BUNDLED = Path(__file__).parent.parent / "bundled" / "text"
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet", ".arrow")
"""What is taken from a folder. A file named itself may have any name: what has no known suffix is read as .txt."""
COUNTS = (
    "read", "too_short", "too_long", "duplicate", "script", "held_out", "train", "other_shard", "kept"
)  # fmt: skip
"""What becomes of the documents read: the first reason, in this order, for which one is left out, or "kept".
"held_out" are those held out of the training split, "train" those left out of the held-out split."""


@dataclass(frozen=True)
class TextSettings:
    """Which text, which of its documents, and how they are cut into windows. The same settings, the same windows."""

    sources: str | Path | Sequence[str | Path]
    """Files, folders, globs, "bundled", or "-" for standard input; kept as a tuple of str, read in this order. A saved
    DatasetDict gives all its splits: name the folder of one to have that alone."""
    field: str = "text"
    """Of a jsonl object; column of parquet and Arrow. null is an empty document."""
    context: int = 128
    """Tokens a window, BOS included."""
    n_tokens: int | None = None
    """At least this many in all (of this shard, BOS included), or everything."""
    packing: str = "packed"
    """"packed": documents follow one another, BOS between, and what does not fill the last window is left out.
    "document": a document begins a window, and fills as many as it needs; the last is padded on the right."""
    min_chars: int = 1
    max_chars: int | None = None
    script: str | None = None
    """"latin", "cyrillic", "cjk": at least half of a document's letters are of it, by their Unicode names."""
    held_out: float = 0.0
    """Share of the documents that is held out, chosen by the hash of their text."""
    split: str = "train"
    """"train" leaves out what is held out, "held_out" the rest, "all" nothing."""
    shard: Sequence[int] = (0, 1)
    """(i, n): the documents whose number is i mod n. Even in documents to within one, not in tokens. The numbers are
    those of the whole corpus, so that shards can be joined."""

    def __post_init__(self) -> None:
        one = isinstance(self.sources, (str, Path))
        object.__setattr__(self, "sources", (str(self.sources),) if one else tuple(map(str, self.sources)))
        object.__setattr__(self, "shard", tuple(self.shard))
        (i, n), least, most = self.shard, self.min_chars, self.max_chars
        for wrong, message in (
            (not self.sources, 'no text named: give files, folders, globs, "bundled" or "-".'),
            (self.sources.count("-") > 1, '"-" given twice: standard input can be read once.'),
            (self.context < 2, f"context {self.context} given: a window has two tokens or more."),
            (self.n_tokens is not None and self.n_tokens < 1, f"n_tokens {self.n_tokens} given: one or more."),
            (self.packing not in ("packed", "document"), f'packing "{self.packing}" given: packed or document.'),
            (least < 0, f"min_chars {least} given: 0 or more."),
            (most is not None and most < least, f"max_chars {most} is below min_chars {least}."),
            (not 0 <= self.held_out < 1, f"held_out {self.held_out} given: a share from 0 to below 1."),
            (self.split not in ("train", "held_out", "all"), f'split "{self.split}" given: train, held_out or all.'),
            (self.split == "held_out" and self.held_out == 0, 'split "held_out" of held_out 0: give a share above 0.'),
            (not 0 <= i < n, f"shard {i}/{n} given: i/n with i from 0 to n - 1."),
        ):  # fmt: skip
            if wrong:
                raise InputError(message)
        if self.script is not None:
            _check_script(self.script)

    @property
    def named(self) -> str:
        """The sources, for a message."""
        more = len(self.sources) - 3
        return ", ".join(self.sources[:3]) + (f" and {more} more" if more > 0 else "")


def _check_script(script: str) -> None:
    letters = filter(str.isalpha, map(chr, range(0x30000)))
    names = dict.fromkeys(unicodedata.name(letter, "").partition(" ")[0].lower() for letter in letters)
    if script.split(" ")[0].lower() not in names:
        raise InputError(f'no script "{script}". Nearest: {nearest(script.lower(), names)}.')


@functools.cache
def _is_script(letter: str, script: str) -> bool:
    return letter.isalpha() and unicodedata.name(letter, "").startswith(script.upper() + " ")


def _files(settings: TextSettings) -> list[Path]:
    found: list[Path] = []
    for source in settings.sources:
        paths = [BUNDLED if source == "bundled" else Path(source)]
        if source != "-" and not paths[0].exists():
            paths = sorted(map(Path, glob.glob(source, recursive=True)))
        here = [file for path in paths for file in _inside(path)]
        if not here:
            folder = paths[0] if paths else Path(source).parent
            beside = [str(p) for p in folder.glob("*") if p.is_dir() or p.name.endswith(SUFFIXES)]
            raise MissingFile(f'no text at "{source}". Nearest: {nearest(source, [*sorted(beside), "bundled"])}.')
        found += here
    return found


def _inside(path: Path) -> list[Path]:
    """A file itself; the text files of a folder by name; those of a saved data set in its own order."""
    if not path.is_dir():
        return [path]
    try:
        if (path / "dataset_dict.json").exists():
            splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            return [file for split in splits for file in _inside(path / split)]
        if (path / "state.json").exists():
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return [path / file["filename"] for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no data set as `datasets` saves one: its JSON files are damaged.") from None
    return sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))


def _size(path: Path) -> int:
    try:
        return 0 if str(path) == "-" else path.stat().st_size
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing.") from None


def _reader(path: Path) -> Callable[[Path, str], Iterator[tuple[str, Any, int]]]:
    kind = Path(path.name.removesuffix(".gz")).suffix
    return {".jsonl": _jsonl, ".parquet": _parquet, ".arrow": _arrow}.get(kind, _whole)


def _read(path: Path, field: str) -> Iterator[tuple[str, str, int]]:
    """Each document of a file: where it stands, its text, the bytes read so far. The one file at fault is named."""
    import pyarrow as pa

    try:
        for where, value, read in _reader(path)(path, field):
            if not isinstance(value, (str, type(None))):
                raise InputError(f'{where}: "{field}" is {type(value).__name__}, not text.')
            yield where, value or "", read
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = error.start
        raise InputError(f"{where} is not UTF-8 text: byte {at:,} is 0x{data[at]:02x}. Save it as UTF-8.") from None


def _whole(path: Path, field: str) -> Iterator[tuple[str, str, int]]:
    if str(path) == "-":
        where, data = "standard input", sys.stdin.buffer.read()
    else:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            where, data = str(path), file.read()
    yield where, _decoded(data, where).replace("\r\n", "\n").replace("\r", "\n"), _size(path)


def _jsonl(path: Path, field: str) -> Iterator[tuple[str, Any, int]]:
    with open(path, "rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as lines:
        for n, line in enumerate(lines, 1):
            where = f"{path} line {n}"
            if not line.strip():
                continue
            try:
                record = json.loads(_decoded(line, where))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not JSON ({getattr(error, 'msg', error)}): one object a line.") from None
            if not isinstance(record, dict) or field not in record:
                there = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
                raise InputError(f'{where} has no field "{field}"; there is: {there}.')
            yield where, record[field], raw.tell()


def _parquet(path: Path, field: str) -> Iterator[tuple[str, Any, int]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=2**20) as file:
        size, n_rows = _size(path), file.metadata.num_rows
        _check_column(path, field, file.schema_arrow.names)
        columns = (batch.column(field) for batch in file.iter_batches(256, columns=[field]))
        for row, value in enumerate((value for column in columns for value in column.to_pylist()), 1):
            yield f"{path} row {row}", value, size * row // n_rows


def _arrow(path: Path, field: str) -> Iterator[tuple[str, Any, int]]:
    """The stream format, which `datasets` saves; mapped, so that a batch of any size costs no memory."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as raw, pa.ipc.open_stream(raw) as batches:
        _check_column(path, field, batches.schema.names)
        columns = (batch.column(field) for batch in batches)
        parts = (column.slice(begin, 256) for column in columns for begin in range(0, len(column), 256))
        for row, value in enumerate((value for part in parts for value in part.to_pylist()), 1):
            yield f"{path} row {row}", value, raw.tell()


def _check_column(path: Path, field: str, names: Sequence[str]) -> None:
    if field not in names:
        raise InputError(f'{path} has no column "{field}"; there is: {", ".join(names)}.')


class Document(NamedTuple):
    """A kept document. `report` says what was read up to it (see `Documents.report`)."""

    number: int
    text: str
    where: str
    report: dict[str, Any]


class Documents:
    """The kept documents of a corpus, in order. InputError at once for what is wrong with the head of a file."""

    def __init__(self, settings: TextSettings):
        self.settings, self.paths = settings, _files(settings)
        self.files = [{"path": str(path), "bytes": _size(path)} for path in self.paths]
        self.regular = all(path.is_file() for path in self.paths)
        self.bytes_total = sum(file["bytes"] for file in self.files)
        for path in self.paths:
            if path.is_file() and _reader(path) is not _whole:
                next(_read(path, settings.field), None)
        self._begin()

    def _begin(self) -> None:
        self._bytes, self._number = 0, -1
        self._counts, self._seen, self._digest = dict.fromkeys(COUNTS, 0), set[bytes](), xxhash.xxh3_128()

    def report(self) -> dict[str, Any]:
        """So far: bytes read of bytes_total (packed ones where a file is), counts (COUNTS), and the digest of what was
        kept: xxh3-128 over the xxh3-128 of each document's UTF-8 text, in order. It needs no second pass over the files
        and says exactly which text came out, whatever the files were called or how they were cut up."""
        return {"bytes": self._bytes, "bytes_total": self.bytes_total, "digest": self._digest.hexdigest(),
                "counts": dict(self._counts)}  # fmt: skip

    def __iter__(self) -> Iterator[Document]:
        self._begin()
        for path, file in zip(self.paths, self.files, strict=True):
            before = self._bytes
            for where, text, read in _read(path, self.settings.field):
                self._bytes = before + read
                key = _hash(text, where)
                fate = self._fate(text, key)
                self._counts["read"] += 1
                self._counts[fate] += 1
                if fate == "kept":
                    self._digest.update(key)
                    yield Document(self._number, text, where, self.report())
            self._bytes = before + file["bytes"]

    def _fate(self, text: str, key: bytes) -> str:
        settings = self.settings
        if len(text) < settings.min_chars:
            return "too_short"
        if settings.max_chars is not None and len(text) > settings.max_chars:
            return "too_long"
        if key in self._seen:
            return "duplicate"
        self._seen.add(key)
        if settings.script is not None and not _written_in(text, settings.script):
            return "script"
        side = "held_out" if int.from_bytes(key) < settings.held_out * 2.0**128 else "train"
        if settings.split not in (side, "all"):
            return side
        self._number += 1
        i, n = settings.shard
        return "kept" if self._number % n == i else "other_shard"

    def nothing(self) -> InputError:
        """Why no document came."""
        n = self._counts["read"]
        left_out = ", ".join(f"{n} {fate}" for fate, n in self._counts.items() if n and fate != "read")
        why = f"none of {n} documents is left ({left_out})." if n else "no document in it."
        return InputError(f"{self.settings.named}: {why}")


def _hash(text: str, where: str) -> bytes:
    try:
        return xxhash.xxh3_128_digest(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: character {error.start:,} is half of a surrogate pair, which is no text.") from None


def _written_in(text: str, script: str) -> bool:
    """At least half of the letters, by the names Unicode gives them; so is a text without a letter."""
    letters = Counter({letter: n for letter, n in Counter(text).items() if letter.isalpha()})
    return 2 * sum(n for letter, n in letters.items() if _is_script(letter, script)) >= letters.total()
