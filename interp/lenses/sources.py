"""What a tuned lens is trained and judged on: streams of the residual of running text, computed or from a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash
from jaxtyping import Int
from torch import Tensor

from interp.data.prompts import Prompt, Task
from interp.data.text import read_text, windows
from interp.decoder.model import Model
from interp.decoder.sites import short
from interp.errors import InputError, WrongModel
from interp.lenses.curves import Asked, asked
from interp.lenses.reading import Seen, at_least_float, look, sites
from interp.store.manifest import file_hash
from interp.store.reading import Store, open_finished

if TYPE_CHECKING:
    from interp.lenses.tuned import TunedConfig

JUDGED = 256
"""Windows held out that are looked at, at most."""


def source_of(
    model: Model, source: str | Path | Sequence[str | Path] | Store, config: TunedConfig
) -> TextSource | StoreSource:
    """A store where `source` is one, or a folder of one; else text."""
    if isinstance(source, Store) or (isinstance(source, (str, Path)) and (Path(source) / "store.json").exists()):
        return StoreSource(model, open_finished(source), config)
    return TextSource(model, source, config)


class TextSource:
    """Windows of text, run through the model when they are asked for."""

    def __init__(self, model: Model, text: str | Path | Sequence[str | Path], config: TunedConfig):
        context = min(config.context, model.n_ctx)
        rows = torch.as_tensor(windows(model, read_text(text), context=context, n_tokens=config.n_tokens))
        n_out = max(1, round(config.held_out * len(rows)))
        self.at_once = max(1, config.batch_size // context)
        if len(rows) - n_out < self.at_once:
            raise InputError(
                f"{len(rows)} windows of {context} tokens, {n_out} of them held out, are too few for batches of "
                f"{self.at_once} windows: give more text, or a smaller batch_size."
            )
        self.model, self.rows, self.out = model, rows[:-n_out], rows[-n_out:][:JUDGED]
        self.layers = tuple(sites(model))
        self.digest = xxhash.xxh3_64_hexdigest(rows.numpy().tobytes())
        """Of what is trained on: a training that goes on finds the same."""
        self.name = text if isinstance(text, str) else ", ".join(map(str, [text] if isinstance(text, Path) else text))

    def batches(self, config: TunedConfig, first: int) -> Iterator[Seen]:
        """The batches of steps `first` to the last: windows in an order that the seed and the epoch fix."""
        an_epoch = len(self.rows) // self.at_once
        order, epoch = None, None
        for step in range(first, config.steps):
            if epoch != step // an_epoch:
                epoch = step // an_epoch
                order = np.random.default_rng([config.seed, epoch]).permutation(len(self.rows))
            start = step % an_epoch * self.at_once
            yield self._seen(self.rows[torch.from_numpy(order[start : start + self.at_once])])

    def _seen(self, tokens: Int[Tensor, "prompt pos"]) -> Seen:
        prompt, pos = torch.meshgrid(*map(torch.arange, tokens.shape), indexing="ij")
        return look(self.model, tokens, prompt.flatten(), pos.flatten())

    def held_out(self) -> tuple[Iterator[Asked], int]:
        """The windows never trained on, and how many."""
        prompts = [Prompt(row, list(enumerate(row[1:]))) for row in self.out.tolist()]
        return asked(self.model, Task("held-out text", prompts)), len(prompts)


class StoreSource:
    """The rows of a store with the residual stream; the output is the model's head on the last layer."""

    def __init__(self, model: Model, store: Store, config: TunedConfig):
        if store.model.get("fingerprint") != model.fingerprint:
            raise WrongModel(
                f'the store {store.name} was recorded from "{store.model.get("name")}", not "{model.name}".'
            )
        self.model, self.store, self.name = model, store, f"store {store.name}"
        self.at = {layer: site for layer, site in sites(model).items() if site in store.sites}
        self.layers = tuple(self.at)
        self.digest = file_hash(store.path / "manifest.jsonl")
        if model.n_layers - 1 not in self.at or len(self.at) < 2:
            needed = short(sites(model)[model.n_layers - 1])
            raise InputError(
                f"the store {store.name} needs {needed} and a layer below it: record with --sites '*.resid_post'."
            )
        sequence = store.sequence[:]
        numbers = np.unique(sequence)
        n_out = max(1, round(config.held_out * len(numbers)))
        self.rows = np.flatnonzero(sequence < numbers[-n_out])
        self.out = [np.flatnonzero(sequence == number) for number in numbers[-n_out:][:JUDGED]]
        if len(self.rows) < config.batch_size:
            raise InputError(
                f"batch_size {config.batch_size} given: {store.path} has {len(self.rows)} rows to train on."
            )

    def batches(self, config: TunedConfig, first: int) -> Iterator[Seen]:
        """The batches of steps `first` to the last, in an order that the seed and the epoch fix."""
        an_epoch, step = len(self.rows) // config.batch_size, first
        while step < config.steps:
            epoch, start = divmod(step, an_epoch)
            for tensors in self.store.shuffled_batches(
                list(self.at.values()), config.batch_size, seed=config.seed, epoch=epoch, first=start, rows=self.rows,
                device=str(self.model.device),
            ):  # fmt: skip
                yield self._seen(tensors)
                step += 1
                if step == config.steps:
                    return

    @torch.no_grad()
    def _seen(self, tensors: Sequence[Tensor]) -> Seen:
        hidden = {layer: x.to(self.model.dtype) for layer, x in zip(self.at, tensors, strict=True)}
        return Seen(hidden, at_least_float(self.model.head(hidden[self.model.n_layers - 1])))

    def held_out(self) -> tuple[Iterator[Asked], int]:
        """The sequences never trained on, and how many."""

        def each() -> Iterator[Asked]:
            for number, rows in enumerate(self.out):
                tensors = [torch.from_numpy(np.asarray(self.store[site][rows])) for site in self.at.values()]
                seen, none = self._seen([x.to(self.model.device) for x in tensors]), torch.zeros(len(rows), dtype=int)
                yield Asked(seen, none + number, none, none - 1, (none[:, None], none[:, None] - 1))

        return each(), len(self.out)
