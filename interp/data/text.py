"""Documents to windows of tokens: tokenised ahead of the model in a worker process, packed, resumable at any window.

`stream` is the road for a corpus of any size; `read_text` and `windows` walk it for a small one. Every token knows its
document (the BOS between two belongs to the one that follows) and its position, every window the place to go on from.
The worker imports this module and must start fast: no torch here. It is a plain subprocess, since multiprocessing's
spawn would run an unguarded script of the user's a second time, and fork does not go with threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from interp import errors
from interp.data.documents import Document, Documents, TextSettings
from interp.data.packing import Tokenizer, Windows, fast_tokenizer, grouped, pack
from interp.errors import InputError

if TYPE_CHECKING:
    import torch

WORKER_BYTES = 4_000_000
"""From here on a worker process pays for its start of about a second."""


class Stream:
    """Windows in batches, to be iterated over once. Leaving the loop ends the worker, and so does `close`."""

    def __init__(
        self, documents: Documents, tokenizer: Tokenizer, start: dict[str, Any] | None, batch_size: int, worker: bool
    ):
        self._documents, self._tokenizer, self._start = documents, tokenizer, start
        self._batch_size, self._process = batch_size, None
        self.worker = worker
        self.files: list[dict[str, Any]] = documents.files
        """Path and bytes of every source file, in order."""
        self.report: dict[str, Any] = documents.report()
        """`Documents.report` as of the last batch; when the stream has ended, as of all that was read for it."""

    def __iter__(self) -> Iterator[Windows]:
        here = _batches(self._documents, self._tokenizer, self._start, self._batch_size)
        with contextlib.closing(self._from_worker() if self.worker else here) as batches:
            for one in batches:
                self.report = one.report if isinstance(one, Windows) else one
                if isinstance(one, Windows):
                    yield one

    def _from_worker(self) -> Iterator[Windows | dict[str, Any]]:
        job = {"settings": asdict(self._documents.settings), "tokenizer": self._tokenizer.file,
               "bos": self._tokenizer.bos, "start": self._start, "batch_size": self._batch_size}  # fmt: skip
        command = [sys.executable, "-P", "-c", "from interp.data.text import serve; serve()"]
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        pipe = subprocess.PIPE  # a session of its own: the terminal's Ctrl-C reaches only us, and we end it
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=paths, start_new_session=True) as self._process:
            try:
                self._process.stdin.write(json.dumps(job).encode() + b"\n")
                self._process.stdin.flush()
                one = None
                while not isinstance(one, dict):
                    one = _received(self._process.stdout)
                    yield one
            finally:
                self._process.kill()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stream(
    model: interp.decoder.model.Model,
    settings: TextSettings,
    *,
    start: dict[str, Any] | None = None,
    batch_size: int = 64,
    worker: bool | None = None,
) -> Stream:
    """The windows of a corpus from `start` on, in batches of `batch_size`; only the last may be smaller.

    `start` is a `Windows.place`: the same windows, places and reports follow as in an undisturbed stream. Documents
    before it are read and hashed again, so that duplicates are known, but not tokenised.
    `worker`: tokenise in a process of its own; None: if some 4 MB or more are to be read. Standard input, pipes and
    tokenizers that are not the `tokenizers` library's stay in this process whatever is asked.
    InputError at once for missing files, a context beyond the model's, a model without tokenizer, and a data file whose
    first document is wrong; while iterating for what is wrong further on, and where not one window comes.
    """
    _check_context(model, settings.context)
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} given: one window or more.")
    tokenizer, documents = _tokenizer(model), Documents(settings)
    if worker is None:
        about = documents.bytes_total if settings.n_tokens is None else 4 * settings.n_tokens
        worker = min(about, documents.bytes_total) >= WORKER_BYTES
    return Stream(documents, tokenizer, start, batch_size, worker and documents.regular and tokenizer.file is not None)


def _check_context(model: interp.decoder.model.Model, context: int) -> None:
    if not 2 <= context <= model.n_ctx:
        raise InputError(f'context {context} given: "{model.name}" reads 2 to {model.n_ctx} tokens.')


def serve() -> None:
    """The worker: a job on standard input, windows on standard output, eight batches ahead. Ends with its parent."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no window
    job = json.loads(sys.stdin.buffer.readline())
    ahead: queue.Queue[bytes | None] = queue.Queue(8)

    def end_with_parent() -> None:
        os.read(0, 1)  # its end of the pipe closes however it ends
        os._exit(1)

    def send() -> None:
        try:
            while (message := ahead.get()) is not None:
                out.write(message)
                out.flush()
        except BrokenPipeError:
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        documents, tokenizer = Documents(TextSettings(**job["settings"])), fast_tokenizer(job["tokenizer"], job["bos"])
        for one in _batches(documents, tokenizer, job["start"], job["batch_size"]):
            ahead.put(_message(one))
    except InputError as error:
        ahead.put(json.dumps({"error": type(error).__name__, "message": str(error)}).encode() + b"\n")
    finally:
        ahead.put(None)
        sender.join()


def _message(one: Windows | dict[str, Any]) -> bytes:
    """A line of JSON, then the bytes of the arrays."""
    if not isinstance(one, Windows):
        return json.dumps({"report": one}).encode() + b"\n"
    head = {"shape": one.tokens.shape, "reports": list(one.reports.items())}
    return b"".join([json.dumps(head).encode(), b"\n", *(array.tobytes() for array in one.arrays)])


def _received(pipe: BinaryIO) -> Windows | dict[str, Any]:
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise RuntimeError("the process that reads the text ended before its work: killed, or out of memory?")
    head = json.loads(line)
    if "error" in head:
        raise getattr(errors, head["error"])(head["message"])
    if "report" in head:
        return head["report"]
    n, context = head["shape"]
    shapes = ((n, context), np.int32), ((n,), np.int32), ((n, context), np.int64), ((n, 4), np.int64)
    arrays = [np.empty(shape, dtype) for shape, dtype in shapes]
    if any(pipe.readinto(array.data) < array.nbytes for array in arrays):
        raise RuntimeError("the process that reads the text ended in the middle of a batch: killed, or out of memory?")
    return Windows(*arrays, dict(map(tuple, head["reports"])))


def _tokenizer(model: interp.decoder.model.Model) -> Tokenizer:
    """The model's, by the `tokenizers` library alone where that gives the same ids."""
    probe = f" It's 12,345 naïve—\n\n\ttests  {model.token_text([model.bos or 0])[0]} end\n"
    ids = model.to_tokens(probe, prepend_bos=False)
    if getattr(model.tokenizer, "is_fast", False):
        fast = fast_tokenizer(model.tokenizer.backend_tokenizer.to_str(), model.bos)
        if fast.encode([probe])[0] == ids:
            return fast
    return Tokenizer(lambda texts: [model.to_tokens(text, prepend_bos=False) for text in texts], model.bos)


def _from(documents: Documents, start: dict[str, Any] | None) -> Iterator[Document]:
    """The documents from the one on in which `start` is, with a check that the text up to there is what it was."""
    each = iter(documents)
    first = next((document for document in each if start is None or document.number >= start["document"]), None)
    if first is None and start is None:
        raise documents.nothing()
    if start and (first is None or (first.number, first.report["digest"]) != (start["document"], start["digest"])):
        raise InputError(
            f"{documents.settings.named}: its first {start['document'] + 1} documents are not those read before. "
            "Go on with the same text and settings, or start anew."
        )
    yield first
    yield from each


def _batches(
    documents: Documents, tokenizer: Tokenizer, start: dict[str, Any] | None, batch_size: int
) -> Iterator[Windows | dict[str, Any]]:
    """Batches of windows; at the end, a report of all that was read for them."""
    n_tokens, held, enough = documents.settings.n_tokens, None, False
    if start and n_tokens is not None and start["tokens"] >= n_tokens:
        yield next(_from(documents, start)).report
        return
    for some in pack(grouped(_from(documents, start), tokenizer.cut), tokenizer, documents.settings, start):
        held = some if held is None else held + some
        for begin in range(0, len(held) - batch_size + 1, batch_size):
            yield held[begin : begin + batch_size]
        held = held[len(held) // batch_size * batch_size :]
        enough = n_tokens is not None and some.places[-1, 1] >= n_tokens
    if held:
        yield held
    yield some.report if enough else documents.report()


@dataclass(frozen=True)
class Corpus:
    """Documents in memory, and where each one stands."""

    files: list[str]
    documents: list[str]

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of each document, by file."""
        return {f: hashlib.sha256(d.encode()).hexdigest() for f, d in zip(self.files, self.documents, strict=True)}


def read_text(text: str | Path | Sequence[str | Path]) -> Corpus:
    """The documents that `text` names (`TextSettings.sources`), all in memory. MissingFile if there are none."""
    documents = Documents(TextSettings(text))
    kept = list(documents)
    if not kept:
        raise documents.nothing()
    return Corpus([document.where for document in kept], [document.text for document in kept])


def windows(
    model: interp.decoder.model.Model, corpus: Corpus, *, context: int = 128, n_tokens: int | None = None
) -> torch.Tensor:
    """The corpus packed into windows of `context` tokens, BOS first in each: int64 [window, pos].

    At least `n_tokens` in all, or everything. Documents follow one another with a BOS between. What does not fill the
    last window is left out. InputError where there is not one full window, or `context` is more than the model reads.
    """
    import torch

    _check_context(model, context)
    settings = TextSettings(corpus.files, context=context, n_tokens=n_tokens)
    tokenizer = _tokenizer(model)
    documents = (Document(n, text, "", {}) for n, text in enumerate(corpus.documents))
    packed = pack(grouped(documents, tokenizer.cut), tokenizer, settings, None)
    return torch.from_numpy(np.concatenate([some.tokens for some in packed])).long()
