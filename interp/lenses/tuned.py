"""Tuned lenses: for each layer an affine map into the coordinates of the last one, so that the layer can be read there.

    h' = h + W h + b        W and b start at 0: an untrained tuned lens is the logit lens
    loss = KL(output || head(h')), the mean over tokens

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv:2303.08112, section 3.
The last layer is the output itself and has no map.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp import runs
from interp.decoder.model import Model
from interp.errors import InputError, MissingFile, WrongModel
from interp.lenses.curves import LensCurve, measure, table_of
from interp.lenses.reading import Seen, at_least_float, kl_divergence
from interp.lenses.sources import source_of
from interp.progress import Progress
from interp.store.reading import Store

WEIGHTS, SETTINGS, UNFINISHED = "tuned_lens.safetensors", "tuned_lens.json", "unfinished.safetensors"

CHECKPOINT_SECONDS = 20.0
"""How often a training that has a folder keeps its state there."""


@dataclass(frozen=True, eq=False)
class TunedLens:
    """The maps of `layers` (-1: of the embeddings), in their order: h' = h + W h + b. `model`: on what it was trained
    (name, fingerprint, ...); `curve`: KL to the output by layer, of this lens and of the logit lens, on what was held
    out of its training."""

    layers: tuple[int, ...]
    W: Float[Tensor, "layer d_model d_model"]
    b: Float[Tensor, "layer d_model"]
    model: dict[str, Any]
    name: str = "tuned"
    about: dict[str, Any] = field(default_factory=dict)
    curve: LensCurve | None = None

    def __call__(self, layer: int, hidden: Float[Tensor, "read d_model"]) -> Float[Tensor, "read d_model"]:
        at = self.layers.index(layer)
        return translated(hidden, self.W[at].to(hidden.device), self.b[at].to(hidden.device))

    def check(self, model: Model) -> None:
        """WrongModel unless it was trained on `model`."""
        if self.model.get("fingerprint") != model.fingerprint:
            raise WrongModel(
                f'the tuned lens "{self.name}" was trained on "{self.model.get("name")}", not on "{model.name}" '
                f"({model.fingerprint[:19]}): load that model, or train one with interp lens train."
            )

    def save(self, path: str | Path) -> None:
        """tuned_lens.safetensors, tuned_lens.json and the curve into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        _write(path / WEIGHTS, {"W": self.W, "b": self.b})
        runs.write_json(path / SETTINGS, {"layers": self.layers, "model": self.model, "about": self.about})
        if self.curve is not None:
            self.curve.save(path)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> TunedLens:
        """What `save` wrote; its name is the folder's. MissingFile where there is none, WrongModel where `model` is
        another than it was trained on."""
        path = Path(path)
        if not (path / WEIGHTS).exists():
            raise MissingFile(f"no {WEIGHTS} in {path}: train one with interp lens train.")
        said = runs.read_json(path / SETTINGS)
        try:
            weights = load_file(path / WEIGHTS)
            lens = cls(tuple(said["layers"]), weights["W"], weights["b"], said["model"], path.name, said["about"])
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{path} holds no tuned lens as it was written: {error}.") from None
        if model is not None:
            lens.check(model)
        curve = LensCurve.load(path) if (path / "curve.json").exists() else None
        return cls(lens.layers, lens.W, lens.b, lens.model, lens.name, lens.about, curve)


def translated(
    hidden: Float[Tensor, "read d_model"], W: Float[Tensor, "d_model d_model"], b: Float[Tensor, " d_model"]
) -> Float[Tensor, "read d_model"]:
    """h + W h + b, in the precision of W and then of h."""
    x = hidden.to(W.dtype)
    return (x + x @ W.T + b).to(hidden.dtype)


@dataclass(frozen=True)
class TunedConfig:
    """How a tuned lens is trained: Adam, its step falling linearly to 0."""

    steps: int = 250
    batch_size: int = 256
    """Tokens a step; of text whole windows."""
    lr: float = 3e-3
    context: int = 128
    """Tokens a window of text."""
    n_tokens: int | None = None
    """Of text: how many are read; all of it if None."""
    held_out: float = 0.1
    """Share of the windows, the last ones, on which the lens is judged and never trained."""
    seed: int = 0

    def __post_init__(self) -> None:
        for wrong, message in (
            (self.steps < 0, f"{self.steps} steps given: 0 or more."),
            (self.batch_size < 1, f"batch_size {self.batch_size} given: one token or more."),
            (not self.lr > 0, f"lr {self.lr} given: above 0."),
            (not 0 < self.held_out < 1, f"held_out {self.held_out} given: a share between 0 and 1."),
        ):
            if wrong:
                raise InputError(message)


def train_tuned_lens(
    model: Model,
    source: str | Path | Sequence[str | Path] | Store,
    config: TunedConfig | None = None,
    *,
    out: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> TunedLens:
    """A tuned lens, and its curve on what was held out.

    `source`: text ("bundled", files, globs), or a store with the residual stream (`*.resid_post`, and `0.resid_pre` for
    the embeddings; layers that it has not are left out). `settings`: fields of TunedConfig. `out`: a folder where it is
    saved, and from which a training that was killed goes on with the same numbers. InputError for a store without the
    last layer, WrongModel for one of another model.
    """
    config = config or TunedConfig(**settings)
    data = source_of(model, source, config)
    layers = tuple(layer for layer in data.layers if layer < model.n_layers - 1)
    said = asdict(config) | {"source": data.name}
    file = None if out is None else Path(out) / UNFINISHED
    training = _Training(model, layers, config, said | {"data": data.digest}, file)
    with Progress("training the lens", config.steps, progress, done=training.step) as bar:
        for seen in data.batches(config, training.step):
            bar.note(f"KL {training.advance(seen):.3f}")
            bar.advance()
    W, b = (torch.stack([tensor.detach() for tensor in which]).cpu() for which in (training.W, training.b))
    lens = TunedLens(layers, W, b, model.provenance(), "tuned" if out is None else Path(out).name, said)
    batches, n = data.held_out()
    with Progress("judging the lens", n, progress) as bar:
        values = measure(model, batches, {"logit": None, "tuned": lens}, ["kl"], n, bar.advance)
    about = {"model": model.provenance(), "held out of": data.name, "windows": n, "seed": config.seed}
    curve = LensCurve(table_of(model, values, config.seed), about)
    lens = TunedLens(layers, W, b, lens.model, lens.name, said | {"versions": runs.versions()}, curve)
    if out is not None:
        lens.save(out)
        for left in (UNFINISHED, _unwritten(UNFINISHED)):  # the second of a kill while it was written
            (Path(out) / left).unlink(missing_ok=True)
    return lens


class _Training:
    """The maps, Adam's moments, and how many steps were made; kept in `file`, from which it goes on."""

    def __init__(
        self, model: Model, layers: Sequence[int], config: TunedConfig, settings: dict[str, Any], file: Path | None
    ):
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        zeros = {"device": model.device, "dtype": dtype, "requires_grad": True}
        self.W = [torch.zeros(model.d_model, model.d_model, **zeros) for _ in layers]
        self.b = [torch.zeros(model.d_model, **zeros) for _ in layers]
        self.model, self.layers, self.config, self.file, self.step = model, layers, config, file, 0
        self.adam = torch.optim.Adam([*self.W, *self.b], lr=config.lr)
        self.header = {"settings": json.dumps(settings, sort_keys=True), "model": model.fingerprint}
        self._kept = monotonic()
        if file is not None and file.exists():
            self._restore(file)

    def advance(self, seen: Seen) -> float:
        """One step on these reads: the KL before it, mean over layers and tokens, in nats."""
        output, total = seen.logits.log_softmax(-1), 0.0
        for at, layer in enumerate(self.layers):
            with torch.enable_grad():
                hidden = translated(seen.hidden[layer], self.W[at], self.b[at])
                lens = at_least_float(self.model.head(hidden)).log_softmax(-1)
                loss = kl_divergence(output, lens).mean()
            self.W[at].grad, self.b[at].grad = torch.autograd.grad(loss, [self.W[at], self.b[at]])
            total += loss.item()
        for group in self.adam.param_groups:
            group["lr"] = self.config.lr * (1 - self.step / self.config.steps)
        self.adam.step()
        self.step += 1
        if self.file is not None and monotonic() - self._kept > CHECKPOINT_SECONDS:
            self._keep(self.file)
        return total / len(self.layers)

    def _keep(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"{key}.{n}": self.adam.state[p][key] for n, p in enumerate(self._params) for key in _MOMENTS}
        tensors |= {f"param.{n}": p for n, p in enumerate(self._params)}
        _write(file, tensors, self.header | {"step": str(self.step)})
        self._kept = monotonic()

    @property
    def _params(self) -> list[Tensor]:
        return [*self.W, *self.b]

    @torch.no_grad()
    def _restore(self, file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            header, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if any(header[key] != value for key, value in self.header.items()):
            raise InputError(
                f"{file.parent} holds an unfinished lens of other settings or other text: choose another name."
            )
        self.step = int(header["step"])
        for n, param in enumerate(self._params):
            param.copy_(tensors[f"param.{n}"])
            moments = {key: tensors[f"{key}.{n}"].to(param.device) for key in _MOMENTS}
            self.adam.state[param] = moments | {"step": torch.tensor(float(self.step))}


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _unwritten(name: str) -> str:
    return f".{name}.tmp"


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """By fsync and atomic rename, so that a kill leaves the old file or the new one."""
    temporary = path.with_name(_unwritten(path.name))
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary, header)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
