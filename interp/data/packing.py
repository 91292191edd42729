"""Documents to windows: tokens in a flow, cut into windows, each with the place to go on from. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from interp.data.documents import Document, TextSettings
from interp.errors import InputError

GROUP_CHARS, PIECE_CHARS = 2**18, 2**14
"""Characters tokenised at once, and where a document may be cut (`_cut`) a piece of one."""
PLACE = ("windows", "tokens", "document", "offset")


class Tokenizer(NamedTuple):
    """Texts to token ids, none of them special."""

    encode: Callable[[list[str]], list[list[int]]]
    bos: int | None
    cut: bool = False
    """Whether the pieces that `_cut` makes have the tokens of the whole."""
    file: str | None = None
    """tokenizer.json, for the worker; None where only the model's own tokenizer, in Python, does it."""


@dataclass(frozen=True)
class Windows:
    """Windows in the order of the text. Padding, where `lengths` < context, is BOS (0 without one) on the right."""

    tokens: Int32[np.ndarray, "window context"]
    lengths: Int32[np.ndarray, " window"]
    document: Int64[np.ndarray, "window context"]
    """Number of each token's document among the kept ones of the corpus; -1 at padding."""
    places: Int64[np.ndarray, "window 4"]
    """After each window: windows and tokens so far; document, and how much of it is used up."""
    reports: dict[int, dict[str, Any]]
    """`Documents.report` up to each document in which one of these windows ends."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> Windows:
        places = self.places[rows]
        reports = {number: self.reports[number] for number in np.unique(places[:, 2]).tolist()}
        return Windows(self.tokens[rows], self.lengths[rows], self.document[rows], places, reports)

    def __add__(self, other: Windows) -> Windows:
        pairs = zip(self.arrays, other.arrays, strict=True)
        return Windows(*(np.concatenate(pair) for pair in pairs), self.reports | other.reports)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.tokens, self.lengths, self.document, self.places

    @property
    def report(self) -> dict[str, Any]:
        """What was read up to the document in which the last window ends (`Documents.report`)."""
        return self.reports[int(self.places[-1, 2])]

    def place(self, window: int = -1) -> dict[str, Any]:
        """Where to go on from after `window`: `stream(..., start=place)`. Small, and JSON can hold it."""
        numbers = dict(zip(PLACE, self.places[window].tolist(), strict=True))
        return numbers | {"digest": self.reports[numbers["document"]]["digest"]}


def fast_tokenizer(file: str, bos: int | None) -> Tokenizer:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return Tokenizer(encode, bos, _can_cut(json.loads(file)), file)


_BORDER = re.compile(r"[ \n](?=[^\W\d])")


def _can_cut(file: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is known to begin a word at every `_BORDER`, whatever else the text holds: BPE of bytes,
    split by GPT-2's expression (gpt2, the bundled model), digits split off before or not.

    The border is the last space before a letter. What comes before it in a run of spaces is one word, matched by
    `\\s+(?!\\S)`, as it is where the text ends there, and nothing looks behind. Where the run is the end of what the
    expression sees (an added token, or a digit split off, follows), all of it is one word: no border there. An added
    token could also span a border, if it has a space or takes in those beside it. NFC joins no letter to a space.
    """
    splits = file["pre_tokenizer"] or {}
    *before, last = splits.get("pretokenizers", [splits])
    return (
        file["model"]["type"] == "BPE"
        and (last.get("type"), last.get("use_regex"), last.get("add_prefix_space")) == ("ByteLevel", True, False)
        and all(split.get("pattern") in [{"Regex": rf"\d{n}"} for n in ("", "{1,2}", "{1,3}")] for split in before)
        and all(split["behavior"] == "Isolated" and not split["invert"] for split in before)
        and file["normalizer"] in (None, {"type": "NFC"})
        and not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in file["added_tokens"])
        and not any(re.search(r"^\w|\s", token["content"]) for token in file["added_tokens"])
    )


def _cut(text: str) -> list[str]:
    """Pieces of `PIECE_CHARS` and somewhat more: in one piece a book takes twice the time and 500 bytes a token."""
    ends = [0]
    while border := _BORDER.search(text, ends[-1] + PIECE_CHARS):
        ends.append(border.start())
    return [text[begin:end] for begin, end in zip(ends, [*ends[1:], len(text)], strict=True)]


class Piece(NamedTuple):
    document: Document
    text: str
    first: bool
    last: bool


def grouped(documents: Iterable[Document], cut: bool) -> Iterator[list[Piece]]:
    """Pieces to be tokenised at once. A document that cannot be cut is one piece, however long."""
    group: list[Piece] = []
    size = 0
    for document in documents:
        texts = _cut(document.text) if cut else [document.text]
        for n, text in enumerate(texts, 1):
            group.append(Piece(document, text, n == 1, n == len(texts)))
            size += len(text) + 64
            if size >= GROUP_CHARS:
                yield group
                group, size = [], 0
    if group:
        yield group


def pack(
    groups: Iterable[list[Piece]], tokenizer: Tokenizer, settings: TextSettings, start: dict[str, Any] | None
) -> Iterator[Windows]:
    """All windows, those of one group of pieces at a time, until there are `n_tokens`.

    The text is a flow of tokens, each with its document and its offset in that; packed, every document's first is BOS,
    but the flow's own first BOS is left out, since every window begins with one.
    """
    bos, packed = tokenizer.bos, settings.packing == "packed"
    body = settings.context - (bos is not None)
    n_windows, n_tokens = (start["windows"], start["tokens"]) if start else (0, 0)
    flow, offset = np.empty((3, 0), np.int64), 0
    for group in groups:
        parts = [flow]
        for piece, ids in zip(group, tokenizer.encode([piece.text for piece in group]), strict=True):
            ids = [bos, *ids] if packed and piece.first and bos is not None else ids
            offset = 0 if piece.first else offset
            numbers = np.full(len(ids), piece.document.number)
            parts.append(np.stack([np.array(ids, np.int64), numbers, np.arange(offset, offset + len(ids))]))
            offset += len(ids)
        flow = np.concatenate(parts, axis=1)
        if start:
            flow = flow[:, (flow[1] != start["document"]) | (flow[2] >= start["offset"])]
        elif n_windows == 0 and packed and bos is not None:
            flow = flow[:, np.cumsum(flow[2]) > 0]
        rows, lengths, flow = _rows(flow, body, packed, group[-1].last, 0 if bos is None else bos)
        if not len(lengths):
            continue
        tokens, document, used = rows
        last = np.arange(len(lengths)), lengths - 1
        if bos is not None:
            tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=bos)
            document, lengths = np.concatenate([document[:, :1], document], axis=1), lengths + 1
        so_far = n_windows + np.arange(1, len(lengths) + 1), n_tokens + np.cumsum(lengths)
        places = np.stack([*so_far, rows[1][last], used[last] + 1], axis=1)
        n_windows, n_tokens = places[-1, :2].tolist()
        reports = {piece.document.number: piece.document.report for piece in group}
        windows = Windows(tokens.astype(np.int32), lengths.astype(np.int32), document, places, reports)
        if settings.n_tokens is not None and n_tokens >= settings.n_tokens:
            yield windows[: np.searchsorted(places[:, 1], settings.n_tokens) + 1]
            return
        yield windows[:]  # with the reports that are needed
    if n_windows == 0:
        raise InputError(f"{settings.named}: {flow.shape[1]} tokens, fewer than one window of {settings.context}.")


def _rows(
    flow: Int64[np.ndarray, "3 token"], body: int, packed: bool, whole: bool, pad: int
) -> tuple[Int64[np.ndarray, "3 window body"], Int64[np.ndarray, " window"], Int64[np.ndarray, "3 rest"]]:
    """The flow in rows of `body`, the tokens in each, and what is left over until more comes.

    One document a window: a row ends with its document too; `whole` says that the last document goes on no further.
    """
    if packed:
        n = flow.shape[1] // body
        return flow[:, : n * body].reshape(3, n, body), np.full(n, body), flow[:, n * body :]
    begins = np.flatnonzero(flow[2] % body == 0)
    end = flow.shape[1]
    if not whole and len(begins) and end - begins[-1] < body:
        end = begins[-1]
    flow, rest = flow[:, :end], flow[:, end:]
    row = np.cumsum(flow[2] % body == 0) - 1
    lengths = np.bincount(row)
    rows = np.stack([np.full((len(lengths), body), fill) for fill in (pad, -1, 0)])
    rows[:, row, flow[2] % body] = flow
    return rows, lengths, rest
