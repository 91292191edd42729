"""TrainConfig: the settings of one training, with the papers that the defaults are from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from interp.errors import InputError, UnknownKey, nearest
from sae.dictionary import Architecture, check_architecture

PENALTIES = ("target", "step", "tanh")
CENTRES = ("median", "mean", "none")
DATA = ("n_tokens", "batch_size", "shuffle_seed", "held_out")
"""Settings that dictionaries trained on one pass over the activations have in common."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training. Inputs and outputs are scaled to E|x - centre|^2 = 1 while it lasts."""

    site: str
    """Full hook point name; several, with "+" between, make a crosscoder."""
    out_site: str | None = None
    """What is predicted: another site makes a transcoder; None reconstructs `site`."""
    skip: bool = False
    """A transcoder's linear path beside the latents, W_skip. arXiv:2501.18823."""
    architecture: str = "topk"
    d_sae: int = 4096
    """Number of latents."""
    k: int = 32
    """Latents active at a token: at most in topk and abstopk, on average in batchtopk, the target of jumprelu."""
    n_tokens: int = 1_000_000
    """Rows seen, counting each epoch's; rounded down to whole batches."""
    batch_size: int = 1024
    accumulate: int = 1
    """Parts that a batch is cut in, their gradients summed: less memory. BatchTopK then chooses within a part."""
    lr: float = 4e-4
    """Adam's step after warm-up."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0, at most 1000 steps."""
    decay: float = 0.2
    """Share of the steps, the last ones, over which it falls to 0."""
    weight_decay: float = 0.0
    """Above 0: AdamW (Loshchilov and Hutter, arXiv:1711.05101). The dictionary papers use none."""
    clip: float = 1.0
    """Largest norm of the gradient over all weights; 0 clips nothing."""
    bf16: bool = False
    """The encoder's product in bfloat16. It chooses which latents are active; their values are computed in float32."""
    sparsity: float | None = None
    """Weight of the sparsity penalty, in the units of losses.py; None is the architecture's own."""
    sparsity_warmup: float = 0.05
    """Share of the steps over which that weight rises from 0 (Anthropic, April 2024 update: 5%)."""
    penalty: str = "target"
    """Of jumprelu: "target" brings L0 to k; "step" is the paper's own; "tanh" is Anthropic's of January 2025."""
    bandwidth: float = 0.001
    """Of jumprelu: width of the band around a threshold in which it has a gradient. arXiv:2407.14435, section 4."""
    threshold: float = 0.001
    """Of jumprelu: every threshold at the start. arXiv:2407.14435, appendix."""
    prefixes: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
    """Of matryoshka_batchtopk: shares of the latents that reconstruct alone. arXiv:2503.17547 has five nested sizes."""
    aux_weight: float | None = None
    """Weight of AuxK; None is the architecture's own: 1/32 for the top-k family, else 0."""
    k_aux: int = 0
    """Dead latents that AuxK uses at a token; 0 means half of d_in, as in arXiv:2406.04093, appendix A.2."""
    dead_after: int = 0
    """Tokens without firing after which a latent is dead; 0 means a tenth of n_tokens, at most 10 million."""
    centre: str = "median"
    """Where b_dec starts: the geometric "median" (Bricken et al. 2023), the "mean", or at 0 with "none"."""
    scale: bool = True
    """Whether inputs are scaled; the scale is folded into the weights at the end. One factor a site."""
    seed: int = 0
    """Of the first weights."""
    shuffle_seed: int = 0
    """Of the order of the rows."""
    held_out: float = 0.01
    """Share of the sequences that are never trained on, the same ones whatever the seeds."""

    def __post_init__(self) -> None:
        check_architecture(self.architecture)
        for name in ("d_sae", "k", "n_tokens", "batch_size", "accumulate"):
            _demand(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.k > self.d_sae:
            raise InputError(f"k ({self.k}) is more than d_sae ({self.d_sae}): use at most {self.d_sae}.")
        for name in ("lr", "bandwidth", "threshold"):
            _demand(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0")
        for name in ("weight_decay", "clip", "sparsity", "aux_weight", "k_aux", "dead_after"):
            _demand(0 <= (getattr(self, name) or 0) < math.inf, name, getattr(self, name), "at least 0")
        for name in ("warmup", "decay", "sparsity_warmup"):
            _demand(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share from 0 to 1")
        _demand(0 <= self.held_out < 1, "held_out", self.held_out, "a share from 0 to less than 1")
        _choose("penalty", self.penalty, PENALTIES)
        _choose("centre", self.centre, CENTRES)
        if self.n_tokens < self.batch_size:
            raise InputError(f"n_tokens ({self.n_tokens}) is less than one batch ({self.batch_size}).")
        if self.batch_size % self.accumulate:
            raise InputError(f"batch_size ({self.batch_size}) is no multiple of accumulate ({self.accumulate}).")
        if self.skip and not self.is_transcoder:
            raise InputError("skip goes with an out_site: an autoencoder that skips to its output learns nothing.")
        rises = all(0 < a < b for a, b in zip(self.prefixes, self.prefixes[1:], strict=False))
        if not self.prefixes or not rises or self.prefixes[-1] != 1:
            raise InputError(f"prefixes must rise from above 0 to 1; {self.prefixes} was given.")

    @classmethod
    def checked(cls, **settings: Any) -> TrainConfig:
        """A config of these settings; UnknownKey, with the nearest, for a name that is none."""
        for name in settings:
            if name not in cls.__dataclass_fields__:
                raise UnknownKey(f'no setting "{name}". Nearest: {nearest(name, cls.__dataclass_fields__)}.')
        return cls(**settings)

    def with_sites(self, full: Any) -> TrainConfig:
        """The same with sites as full names: `full` makes one of a short one."""
        sites = {"site": "+".join(map(full, self.sites))}
        if self.out_site is not None:
            sites["out_site"] = "+".join(map(full, self.out_sites))
        return replace(self, **sites)

    @property
    def row(self) -> Architecture:
        return check_architecture(self.architecture)

    @property
    def sites(self) -> list[str]:
        return self.site.split("+")

    @property
    def out_sites(self) -> list[str]:
        return self.sites if self.out_site is None else self.out_site.split("+")

    @property
    def is_transcoder(self) -> bool:
        return self.sites != self.out_sites

    @property
    def n_steps(self) -> int:
        return self.n_tokens // self.batch_size

    @property
    def dead_tokens(self) -> int:
        return self.dead_after or min(10_000_000, self.n_tokens // 10)

    def rate(self, step: int) -> float:
        """The learning rate of a step, the first being 0."""
        rise = min(1000, self.warmup * self.n_steps)
        left = (self.n_steps - step) / max(1.0, self.decay * self.n_steps)
        return self.lr * min(1.0, (step + 1) / max(1.0, rise), left)

    def sparsity_at(self, step: int) -> float:
        """The weight of the sparsity penalty of a step, the first being 0."""
        weight = self.row.sparsity if self.sparsity is None else self.sparsity
        return weight * min(1.0, (step + 1) / max(1.0, self.sparsity_warmup * self.n_steps))

    @property
    def auxk_weight(self) -> float:
        return self.row.aux_weight if self.aux_weight is None else self.aux_weight

    @property
    def borders(self) -> list[int]:
        """Where the nested dictionaries of Matryoshka end; the last is d_sae."""
        return sorted({max(1, round(share * self.d_sae)) for share in self.prefixes})


def _demand(holds: bool, name: str, value: Any, wanted: str) -> None:
    if not holds:
        raise InputError(f"{name} must be {wanted}; {value} was given.")


def _choose(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise InputError(f'{name} "{value}" is not known. Nearest: {nearest(value, options)}.')
