"""A mixture of experts, taken apart: where a token is sent, with what weight, and what each expert writes.

    router_logits    what the router gives                                                 [prompt pos expert]
    router_probs     their softmax over all experts                                        [prompt pos expert]
    expert_indices   whom the model's rule chooses by them, best first or not              [prompt pos chosen]
    expert_weights   what a chosen expert's output is multiplied with; 0 of the others     [prompt pos expert]
    expert_out       what an expert writes: weight times output; 0 of the others           [prompt pos expert d_model]
    what is written  the sum over experts, and a shared expert's output, which is none of them and gets every token

Edited logits are chosen by as the model chooses (the best few, groups, renormalised or not): -inf forbids an expert.
Edited weights are used as they stand, an expert's that was not chosen too; the indices then are of those with weight,
and of any others where these are fewer than the model chooses. Probabilities and indices are read only.
A layer of which nothing is asked runs as it always does.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from interp.decoder.sites import READ_ONLY, layer_site
from interp.errors import InputError

READ = ("router_logits", "router_probs")
"""What is known where the router is a matrix and a rule; the others of any experts."""

MIXED = ("expert_weights", "expert_indices", "expert_out")


class Mixture:
    """The experts of one layer: `n` of them, `n_chosen` for a token. `points` are its hook points by full name."""

    def __init__(self, layer: int, block: Module, point: type):
        self.router, self.experts = (_plain(module) for module in (_router(block), block.experts))
        self.n, self.layer = int(self.experts.num_experts), layer
        rule = _tried(self)
        self.n_chosen = int(self.router.top_k) if rule is None else rule
        self.points = {layer_site(layer, name): point() for name in (READ if rule else ()) + MIXED}
        self.shape: tuple[int, ...] = ()
        block.register_forward_pre_hook(self._enter, with_kwargs=True)
        if rule:
            _router(block).register_forward_hook(self._route)
        self._run, self.experts.forward = self.experts.forward, self._mix

    def rule(self, logits: Float[Tensor, "token expert"]) -> tuple[Tensor, Tensor, Tensor]:
        """What the router makes of other logits: these, the weights and the indices of the chosen.

        It is the router itself with the identity for its matrix. Where it adds a bias for the choice alone
        (DeepSeek-V3), a forbidden expert's is as low as its logit.
        """
        lowest = torch.finfo(logits.dtype).min
        logits = logits.clamp(lowest, -lowest)  # 0 * inf is no number
        if bool((logits == lowest).all(-1).any()):
            raise InputError(f"every expert of layer {self.layer} is forbidden to a token: leave it one.")
        router = copy.copy(self.router)
        like = {"dtype": logits.dtype, "device": logits.device}
        router._parameters = {
            name: None if old is None else torch.eye(self.n, **like) if old.ndim == 2 else torch.zeros(self.n, **like)
            for name, old in self.router._parameters.items()
        }
        router._buffers = {
            name: old.to(logits.device).expand(logits.shape).masked_fill(logits == lowest, lowest)
            for name, old in self.router._buffers.items()
        }
        router.hidden_dim = self.n
        return router.forward(logits)

    def _enter(self, block: Module, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else next(iter(kwargs.values()))
        self.shape = tuple(hidden.shape[:-1])

    def _asked(self, *names: str) -> bool:
        points = (self.points.get(layer_site(self.layer, name)) for name in names)
        return any(point is not None and point.fwd_hooks for point in points)

    def _shown(self, name: str, value: Tensor) -> Tensor:
        """What the hook point makes of a value [token ...]; the value itself where it is not changed and no slope is
        asked for, which is of what the hook point has seen."""
        shaped = value.reshape(*self.shape, *value.shape[1:])
        seen = self.points[layer_site(self.layer, name)](shaped)
        same = seen is shaped and not torch.is_grad_enabled()
        return value if same else seen.reshape(value.shape).to(value)

    def _route(self, router: Module, args: tuple, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._asked(*READ):
            logits = self._shown("router_logits", out[0])
            self._shown("router_probs", logits.softmax(-1, torch.promote_types(logits.dtype, torch.float32)))
            out = out if logits is out[0] else self.rule(logits)
        return out

    def _mix(
        self, hidden: Float[Tensor, "token d_model"], indices: Int[Tensor, "token chosen"],
        weights: Float[Tensor, "token chosen"],
    ) -> Float[Tensor, "token d_model"]:  # fmt: skip
        if self._asked("expert_weights"):
            every = weights.new_zeros(len(hidden), self.n).scatter(1, indices.long(), weights)
            edited = self._shown("expert_weights", every)
            if edited is not every:
                n_chosen = max(indices.shape[1], int((edited != 0).sum(1).max()))
                indices = edited.abs().topk(n_chosen).indices.to(indices)
                weights = edited.gather(1, indices.long())
        if self._asked("expert_indices"):
            self._shown("expert_indices", indices)
        if not self._asked("expert_out"):
            return self._run(hidden, indices, weights)
        n_chosen = indices.shape[1]  # each token once for each of its experts, to which it is sent alone
        alone = hidden.repeat_interleave(n_chosen, 0), indices.reshape(-1, 1), weights.reshape(-1, 1)
        each = self._run(*alone).unflatten(0, (-1, n_chosen))
        to = indices.long()[..., None].expand_as(each)
        return self._shown("expert_out", each.new_zeros(len(hidden), self.n, each.shape[2]).scatter(1, to, each)).sum(1)


class Mixtures(dict[int, Mixture]):
    """Layer -> its experts, of the layers of a bridge that have experts which can be taken apart: called with tokens,
    the indices of those chosen and their weights, as all of transformers' are but a few (Llama 4, JetMoe)."""

    def __init__(self, bridge: Any):
        super().__init__()
        point = type(next(iter(bridge.hook_dict.values())))
        for layer, block in enumerate(bridge.blocks):
            mixed = getattr(block._modules.get("mlp"), "original_component", None)
            if mixed is not None and _fits(mixed):
                self[layer] = Mixture(layer, mixed, point)
        self.points = {name: point for mixture in self.values() for name, point in mixture.points.items()}
        whole = [layer for layer, block in enumerate(bridge.blocks) if layer not in self and _has_experts(block)]
        self.not_offered = dict.fromkeys(
            READ + MIXED if whole and not self else (),
            "its experts are not called with tokens, those chosen and their weights: they are not taken apart",
        )
        """Kind of hook point -> why there is none, of a model whose experts stay whole."""
        if self and not any(name.endswith("hook_router_logits") for name in self.points):
            self.not_offered = dict.fromkeys(
                READ, "its router is not a matrix and a rule: expert_weights can be edited"
            )

    @property
    def read_only(self) -> list[str]:
        """Hook points that can be read and not edited: an edit would change nothing."""
        return [name for name in self.points if name.rpartition("hook_")[2] in READ_ONLY]

    @property
    def counts(self) -> dict[int, int]:
        """Layer -> how many experts it has."""
        return {layer: mixture.n for layer, mixture in self.items()}


def _has_experts(block: Module) -> bool:
    return any("expert" in name for name, _ in block.original_component.named_modules())


def _fits(block: Module) -> bool:
    experts, router = block._modules.get("experts"), _router(block)
    if experts is None or router is None or not hasattr(_plain(experts), "num_experts"):
        return False
    names = [name for name in inspect.signature(type(_plain(experts)).forward).parameters if name != "self"]
    return len(names) == 3 and "ind" in names[1] and "weights" in names[2]


def _router(block: Module) -> Module | None:
    return block._modules.get("gate", block._modules.get("router"))


def _plain(module: Module) -> Module:
    """The module of transformers within a bridge's."""
    while isinstance(inside := getattr(module, "original_component", None), Module):
        module = inside
    return module


def _tried(mixture: Mixture) -> int | None:
    """How many are chosen, of a router whose rule is understood: some logits come back as they are, with as many
    weights as indices. None for another router."""
    logits = torch.linspace(-1, 1, mixture.n)[None]
    try:
        same, weights, indices = mixture.rule(logits)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None
    right = torch.equal(same.float().cpu(), logits) and weights.shape == indices.shape
    return indices.shape[1] if right and not indices.is_floating_point() else None
