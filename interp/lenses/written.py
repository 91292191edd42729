"""What each part wrote to the last residual stream, as its component along a direction: the parts of a sum.

The stream is the embeddings, plus what each layer's heads and its MLP wrote, plus their biases. Where a norm stands
between a layer's heads and the stream (Gemma 2, OLMo 2), its scale is held too. A dictionary breaks one piece of the
sum up further: what it reads of it, into its latents, its bias, and its error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from interp.decoder import parts
from interp.decoder.hooks import edited
from interp.decoder.model import Model
from interp.decoder.sites import MODEL_SITES, layer_site, short
from interp.errors import InputError

BY = ("layer", "component", "neuron")
"""How finely the sum is taken apart. "layer" sums components again."""

Stage = tuple[int, str]
"""A layer and what writes there: (-1, "embed"), then of each layer "z" (its heads), "b_O", "mlp"."""


@dataclass(frozen=True)
class Part:
    """A row of an attribution; `group` is what it belongs to by layer."""

    component: str
    kind: str
    layer: int
    index: int
    group: str


Block = tuple[list[Part], Float[Tensor, "read part"]]


def stages(model: Model) -> list[Stage]:
    """What writes, in order."""
    written = ("z", "b_O", "mlp") if model.has_mlp else ("z", "b_O")
    return [(-1, "embed"), *((layer, which) for layer in range(model.n_layers) for which in written)]


def explained(model: Model, name: str, dictionary: Any) -> set[Stage]:
    """The stages whose sum is what a dictionary reconstructs. InputError where it is no such sum."""
    if len(dictionary.sites) > 1 or len(dictionary.out_sites) > 1:
        raise InputError(f'the dictionary "{name}" reads or writes several sites: attribution takes one of each.')
    site = dictionary.out_sites[0]
    number, _, kind = short(site).partition(".")
    layer = int(number) if number.isdigit() else -1
    found = {
        "resid_pre": {stage for stage in stages(model) if stage[0] < layer},
        "resid_mid": {stage for stage in stages(model) if stage[0] <= layer and stage != (layer, "mlp")},
        "resid_post": {stage for stage in stages(model) if stage[0] <= layer},
        "attn_out": {(layer, "z"), (layer, "b_O")},
        "z": {(layer, "z")},
        "mlp_out": {(layer, "mlp")},
    }
    if kind not in found:
        raise InputError(
            f'the dictionary "{name}" is of {short(site)}, which is not written to the residual stream: one of '
            f"{', '.join(found)} is needed."
        )
    return found[kind]


def owners(model: Model, dictionaries: Mapping[str, Any]) -> dict[Stage, str]:
    """Which dictionary explains a stage. InputError where two would."""
    owner: dict[Stage, str] = {}
    for name, dictionary in dictionaries.items():
        mine = explained(model, name, dictionary)
        if both := mine & owner.keys():
            raise InputError(
                f'the dictionaries "{owner[min(both)]}" and "{name}" both explain what layer {min(both)[0]} wrote: '
                "give one of them."
            )
        owner |= dict.fromkeys(mine, name)
    return owner


def sites(model: Model, by: str, dictionaries: Mapping[str, Any]) -> list[str]:
    """Hook points from which all contributions follow, the last residual stream among them. InputError where the
    neurons cannot be told apart, and as `owners`."""
    owners(model, dictionaries)
    layers = range(model.n_layers)
    found = [layer_site(0, "resid_pre"), layer_site(model.n_layers - 1, "resid_post")]
    found += [MODEL_SITES["pos_embed"]] if MODEL_SITES["pos_embed"] in model.sites else []
    found += [layer_site(layer, "z") for layer in layers]
    found += [layer_site(layer, "mlp_out") for layer in layers if model.has_mlp]
    if by == "neuron":
        if layer_site(0, "post") not in model.sites:
            raise InputError(f'"{model.name}" has no neurons that write one by one: use by="component".')
        found += [layer_site(layer, "post") for layer in layers]
    return list(dict.fromkeys(found + [site for d in dictionaries.values() for site in (*d.sites, *d.out_sites)]))


def contributions(
    model: Model,
    given: Mapping[str, Tensor],
    u: Float[Tensor, "read d_model"],
    by: str,
    dictionaries: Mapping[str, Any],
) -> Iterator[Block]:
    """The component along `u` of what each part wrote, of activations `given` by hook point, [read ...]; in float64."""
    owner = owners(model, dictionaries)
    for number, stage in enumerate(stages(model)):
        if stage in owner:
            name = owner[stage]
            if name not in {owner.get(later) for later in stages(model)[number + 1 :]}:
                yield _latents(model, name, dictionaries[name], given, u)
        elif stage[1] == "embed":
            yield _embeddings(model, given, u)
        elif stage[1] == "z":
            yield _heads(model, stage[0], given, u)
        elif stage[1] == "b_O":
            bias = parts.head_bias(model, stage[0])
            if isinstance(bias, Tensor):
                part = Part(f"L{stage[0]}.b_O", "attn_bias", stage[0], -1, f"L{stage[0]}.attn")
                yield [part], _along(bias, _before_heads_norm(model, stage[0], given, u))
        else:
            yield from _mlp(model, stage[0], given, u, neurons=by == "neuron")


def _along(written: Float[Tensor, "*read d_model"], u: Float[Tensor, "read d_model"]) -> Float[Tensor, "read 1"]:
    return (written.double() * u).sum(-1, keepdim=True)


def _embeddings(model: Model, given: Mapping[str, Tensor], u: Tensor) -> Block:
    """Of the token and, where it is learned, of the position; what goes into the first block is their sum."""
    whole, pos = given[layer_site(0, "resid_pre")], given.get(MODEL_SITES["pos_embed"])
    embed = Part("embed", "embed", -1, -1, "embed")
    if pos is None:
        return [embed], _along(whole, u)
    both = [_along(whole.double() - pos.double(), u), _along(pos, u)]
    return [embed, Part("pos_embed", "pos_embed", -1, -1, "embed")], torch.cat(both, 1)


def _heads(model: Model, layer: int, given: Mapping[str, Tensor], u: Tensor) -> Block:
    z, through = given[layer_site(layer, "z")].double(), _through_W_O(model, layer, given, u)
    found = einsum(z, through, "read head d_head, read head d_head -> read head")
    return [Part(f"L{layer}H{h}", "head", layer, h, f"L{layer}.attn") for h in range(model.n_heads)], found


def _through_W_O(
    model: Model, layer: int, given: Mapping[str, Tensor], u: Float[Tensor, "read d_model"]
) -> Float[Tensor, "read head d_head"]:
    """The direction of each head's z that is written along u."""
    W_O = parts.W_O(model, layer).double()
    u = _before_heads_norm(model, layer, given, u)
    return einsum(W_O, u, "head d_head d_model, read d_model -> read head d_head")


def _before_heads_norm(model: Model, layer: int, given: Mapping[str, Tensor], u: Tensor) -> Tensor:
    z = given[layer_site(layer, "z")]
    return _before_norm(model, layer, "ln1_post", lambda: parts.head_outputs(model, layer, z).sum(1) +
                        parts.head_bias(model, layer), u)  # fmt: skip


def _before_norm(
    model: Model, layer: int, name: str, wrote: Callable[[], Float[Tensor, "read d_model"]], u: Tensor
) -> Float[Tensor, "read d_model"]:
    """The direction that a norm after attention or the MLP turns into u, its scale held; u where there is none. `wrote`
    is what goes into the norm."""
    block = model.bridge.blocks[layer]
    if name not in block._modules:
        return u
    with torch.enable_grad(), edited(model, {f"blocks.{layer}.{name}.hook_scale": lambda scale: scale.detach()}):
        x = wrote().detach().requires_grad_()
        (found,) = torch.autograd.grad(block._modules[name](x), x, u.to(x.dtype))
    return found.double()


def _mlp(model: Model, layer: int, given: Mapping[str, Tensor], u: Tensor, *, neurons: bool) -> Iterator[Block]:
    """What the MLP wrote, without its bias; or each neuron its activation times its row of W_out. Then the bias."""
    block, group = model.bridge.blocks[layer], f"L{layer}.mlp"
    bias = parts.mlp_bias(model, layer)
    if "ln2_post" in block._modules and not neurons:
        bias = None  # it goes through the norm with the rest
    whole = _along(given[layer_site(layer, "mlp_out")], u)
    if neurons:
        post, W_out = given[layer_site(layer, "post")], parts.W_out(model, layer)
        u = _before_norm(model, layer, "ln2_post", lambda: post @ W_out + (0 if bias is None else bias), u)
        found = post.double() * (u @ W_out.double().T)
        yield [Part(f"L{layer}N{n}", "neuron", layer, n, group) for n in range(post.shape[1])], found
    constant = None if bias is None else _along(bias, u)
    if not neurons:
        yield [Part(group, "mlp", layer, -1, group)], whole if constant is None else whole - constant
    if constant is not None:
        yield [Part(f"L{layer}.b_out", "mlp_bias", layer, -1, group)], constant


def _latents(model: Model, name: str, dictionary: Any, given: Mapping[str, Tensor], u: Tensor) -> Block:
    """Each latent its activation times its decoder row; what is added whatever is read; what is left over."""
    site = dictionary.out_sites[0]
    layer, _, kind = short(site).partition(".")
    x, y = given[dictionary.sites[0]].flatten(1), given[site].flatten(1).double()
    if kind == "z":
        u = rearrange(_through_W_O(model, int(layer), given, u), "read head d_head -> read (head d_head)")
    x = x.to(dictionary.W_dec)
    z, W_dec = dictionary.encode(x).double(), dictionary.W_dec.double()
    rest = dictionary.decode(torch.zeros_like(z).to(x), x).double()  # the bias, and what skips the latents
    found = [z * (u @ W_dec.T), _along(rest, u), _along(y - z @ W_dec - rest, u)]
    rows = [Part(f"{name}/{n}", "latent", int(layer), n, name) for n in range(z.shape[1])]
    rows += [Part(f"{name}/{which}", which, int(layer), -1, name) for which in ("bias", "error")]
    return rows, torch.cat(found, 1)
