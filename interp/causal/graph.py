"""A decoder as a graph: what each part writes to the residual stream, and which parts read it from there.

Nodes are named as the MIB benchmark names them (Mueller et al. 2025, arXiv:2504.13151): `input` (the embeddings), a
head `a3.h5`, an MLP `m3`, `logits`. A head reads three times: `a3.h5<q>`, `a3.h5<k>`, `a3.h5<v>`. An edge is a node
that writes and a later place that reads, `a0.h1->a3.h5<q>`: what the head's query sees of a0.h1, before the layer
norm.

Where several query heads share a key and a value (grouped keys), these are one place each, `a3.kv2<k>`, which all heads
of the group read; MIB's files name it once for each of its heads (`interp.causal.circuits`). No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from interp.errors import UnknownName, nearest

if TYPE_CHECKING:
    from interp.decoder.model import Model


def component(node: str) -> str:
    """What an ablation calls a node, or the node of a place that reads: `L3H5` of `a3.h5` and of `a3.h5<q>`, `L3.mlp`
    of `m3`; `embed` of the input; `logits`."""
    match = re.fullmatch(r"([am])(\d+)(?:\.h(\d+)(?:<[qkv]>)?)?", node)
    if match is None:
        return "embed" if node == "input" else node
    return f"L{match[2]}.mlp" if match[1] == "m" else f"L{match[2]}H{match[3]}"


def edge_title(edge: str) -> str:
    """An edge by what an ablation calls its ends: `L0H0 → L3H4 v` of `a0.h0->a3.h4<v>`."""
    sender, _, receiver = edge.partition("->")
    end, _, reads = receiver.removesuffix(">").partition("<")
    return f"{component(sender)} → {component(end)} {reads}".rstrip()


@dataclass(frozen=True)
class Graph:
    """The nodes of a model, and every edge that there can be. Matrices over edges are [sender, receiver]."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_mlp: bool
    parallel: bool
    """Attention and MLP of a layer read the same residual stream: no edge between them."""

    @classmethod
    def of(cls, model: Model) -> Graph:
        parallel = bool(getattr(model.bridge.cfg, "parallel_attn_mlp", False))
        return cls(model.n_layers, model.n_heads, model.n_kv_heads, model.has_mlp, parallel)

    @property
    def group(self) -> int:
        """Query heads that share a key and a value."""
        return self.n_heads // self.n_kv_heads

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Nodes that write, in the order of the forward pass."""
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)] + [f"m{layer}"] * self.has_mlp
        return tuple(names)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Places that read, in the order of the forward pass: q of all heads of a layer, then k, v, and the MLP."""
        key = "h" if self.group == 1 else "kv"
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}<q>" for head in range(self.n_heads)]
            names += [f"a{layer}.{key}{head}<{which}>" for which in "kv" for head in range(self.n_kv_heads)]
            names += [f"m{layer}"] * self.has_mlp
        return (*names, "logits")

    @property
    def nodes(self) -> tuple[str, ...]:
        return (*self.senders, "logits")

    @cached_property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """The nodes that a receiver belongs to: one, or the query heads of a group."""
        found = {}
        for name in self.receivers:
            match = re.fullmatch(r"a(\d+)\.kv(\d+)<[kv]>", name)
            heads = range(int(match[2]) * self.group, (int(match[2]) + 1) * self.group) if match else ()
            found[name] = tuple(f"a{match[1]}.h{head}" for head in heads) if match else (name.partition("<")[0],)
        return found

    def _stage(self, name: str) -> int:
        """When a node writes, or a place reads: attention of layer l at 2l, its MLP at 2l + 1; parallel ones at 2l."""
        if name in ("input", "logits"):
            return -1 if name == "input" else 2 * self.n_layers
        layer = int(re.match(r"[am](\d+)", name)[1])
        return 2 * layer + (name[0] == "m" and not self.parallel)

    @cached_property
    def allowed(self) -> Bool[np.ndarray, "sender receiver"]:
        """Where an edge can be: the sender has written before the receiver reads."""
        writes = np.array([self._stage(name) for name in self.senders])
        reads = np.array([self._stage(name) for name in self.receivers])
        return writes[:, None] < reads

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """All edges by name, in the order of `allowed`."""
        return tuple(f"{self.senders[s]}->{self.receivers[r]}" for s, r in np.argwhere(self.allowed))

    @cached_property
    def at(self) -> dict[str, tuple[int, int]]:
        """Edge -> (number of the sender, number of the receiver)."""
        return dict(zip(self.edges, map(tuple, np.argwhere(self.allowed).tolist()), strict=True))

    def edge(self, name: str) -> str:
        """An edge by its name, `a3.h5<k>` standing for its group's where keys are shared. UnknownName where there is
        none."""
        match = re.fullmatch(r"(.*->a\d+)\.h(\d+)(<[kv]>)", name)
        if match and self.group > 1 and int(match[2]) < self.n_heads:
            name = f"{match[1]}.kv{int(match[2]) // self.group}{match[3]}"
        if name not in self.at:
            raise UnknownName(f'no edge "{name}" in {self}. Nearest: {nearest(name, self._near(name))}.')
        return name

    def _near(self, name: str) -> Sequence[str]:
        """Edges among which a name like this one is looked for: those of its sender or of its receiver."""
        sender, _, receiver = name.partition("->")
        return [e for e in self.edges if e.startswith(f"{sender}->") or e.endswith(f"->{receiver}")] or self.edges

    def mask(self, edges: Iterable[str]) -> Bool[np.ndarray, "sender receiver"]:
        """True at these edges."""
        found = np.zeros_like(self.allowed)
        for name in edges:
            found[self.at[self.edge(name)]] = True
        return found

    def pruned(self, kept: Bool[np.ndarray, "sender receiver"]) -> Bool[np.ndarray, "sender receiver"]:
        """The edges on a path from the input to the logits: nodes without a parent or without a child lose the rest of
        theirs, until there is none."""
        kept = kept & self.allowed
        belongs = np.array([[name in self.readers[place] for place in self.receivers] for name in self.senders])
        is_input, is_logits = (np.array([n == end for n in names]) for names, end in (
            (self.senders, "input"), (self.receivers, "logits")))  # fmt: skip
        while True:
            alive_sender = (belongs & kept.any(0)).any(1) | is_input
            alive_receiver = (belongs & kept.any(1)[:, None]).any(0) | is_logits
            smaller = kept & alive_sender[:, None] & alive_receiver
            if smaller.sum() == kept.sum():
                return kept
            kept = smaller

    def __str__(self) -> str:
        return f"a graph of {self.n_layers} layers and {self.n_heads} heads ({len(self.edges):,} edges)"
