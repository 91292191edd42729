"""Gradient estimates: exact where the model is linear, equal to finite differences where it is not."""

import numpy as np
import pytest
import torch


def attention_only(folder, n_layers, queries):
    """A random model of attention alone, without layer norms; `queries` scales W_Q."""
    import json

    from safetensors.torch import save_file

    from interp import load_model

    folder.mkdir()
    config = {"format": "transformer_lens", "n_layers": n_layers, "n_heads": 3, "d_model": 12, "d_head": 4, "n_ctx": 8,
              "d_vocab": 20, "d_vocab_out": 20, "attn_only": True, "act_fn": "relu",
              "normalization_type": None}  # fmt: skip
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw) / 3

    state = {"embed.W_E": normal(20, 12), "pos_embed.W_pos": normal(8, 12), "unembed.W_U": normal(12, 20),
             "unembed.b_U": torch.zeros(20)}  # fmt: skip
    for layer in range(n_layers):
        for name, shape in {"W_Q": (3, 12, 4), "W_K": (3, 12, 4), "W_V": (3, 12, 4), "W_O": (3, 4, 12)}.items():
            state[f"blocks.{layer}.attn.{name}"] = normal(*shape) * (queries if name == "W_Q" else 1)
        for name, shape in {"b_Q": (3, 4), "b_K": (3, 4), "b_V": (3, 4), "b_O": (12,)}.items():
            state[f"blocks.{layer}.attn.{name}"] = torch.zeros(*shape)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return load_model(str(folder), dtype="float64")


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Queries of 0: every pattern is uniform whatever the keys are, and the model is linear."""
    return attention_only(tmp_path_factory.mktemp("linear") / "linear", 2, 0)


@pytest.fixture(scope="module")
def task():
    from interp.data.tasks import Prompt, Task

    draw = torch.Generator().manual_seed(1)
    pairs = [torch.randint(0, 20, (2, 6), generator=draw).tolist() for _ in range(4)]
    return Task("pairs", [Prompt(a, [(5, 3 + i)], b, 9 + i) for i, (a, b) in enumerate(pairs)])


def exact(model, task, **settings):
    """Worsening of logit_diff by each edge alone, [sender, receiver]."""
    from interp import find_circuit

    return find_circuit(model, task, method="exact", force=True, metric="logit_diff", **settings).scores


@pytest.mark.parametrize("baseline", ["counterfactual", "mean"])
@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-activations"])
def test_on_a_linear_model_every_estimate_is_the_exact_patch(linear, task, method, baseline):
    from interp.causal.attribution import edge_scores

    found = edge_scores(linear, task, method=method, baseline=baseline)
    truth = exact(linear, task, baseline=baseline)
    assert np.abs(truth).max() > 0.01
    np.testing.assert_allclose(found, truth, atol=1e-6)  # metrics are kept as float32


@pytest.mark.parametrize("method", ["denoise", "noise"])
@pytest.mark.parametrize(("site", "by"), [("z", "head"), ("v", "head"), ("resid_pre", "position"), ("k", "head")])
def test_on_a_linear_model_atp_is_the_exact_patch(linear, task, site, by, method):
    from interp import attribute, patch

    settings = {"site": site, "by": ("layer", by), "method": method}
    found, truth = attribute(linear, task, **settings), patch(linear, task, **settings)
    np.testing.assert_allclose(found.table().effect, truth.table().effect, atol=1e-6)
    np.testing.assert_allclose(found.table().normalized, truth.table().normalized, atol=1e-5)
    assert list(found.table().component) == list(truth.table().component)
    assert list(found.table().position.astype(str)) == list(truth.table().position.astype(str))


def test_the_slope_of_every_receiver_is_the_finite_difference(tiny_dir, pairs):
    """float64: each place's input moved by a little along a random direction, exactly, for that place alone."""
    from interp import load_model
    from interp.causal.attribution import metric_value, slopes
    from interp.causal.edges import Split, single, written_sites
    from interp.causal.graph import Graph
    from interp.decoder.hooks import captured
    from interp.decoder.sites import layer_site

    model = load_model(str(tiny_dir), dtype="float64")
    graph, prompts = Graph.of(model), torch.arange(3)
    tokens = pairs.tokens()[prompts]
    with torch.no_grad(), captured(model, [*written_sites(model), layer_site(1, "resid_post")]) as here:
        model(tokens)
    value = metric_value(model, pairs, prompts, "logit_diff", here[layer_site(1, "resid_post")])
    found = {}
    with torch.no_grad():
        for places, slope in slopes(model, graph, tokens, value, {}):
            for number, receiver in enumerate(range(*places.indices(len(graph.receivers)))):
                found[graph.receivers[receiver]] = slope[:, :, number]
    step, draw = 1e-6, torch.Generator().manual_seed(0)
    direction = torch.randn(3, tokens.shape[1], model.d_model, generator=draw, dtype=torch.float64)
    site = layer_site(0, "resid_pre")  # the input says a little more: to one place alone by removing its edge
    for receiver in ["a0.h1<q>", "a1.h2<k>", "a1.h0<v>", "m0", "m1", "logits"]:
        ends = []
        for sign in (1, -1):
            elsewhere = here | {site: here[site] - sign * step * direction}
            split = Split(model, graph, tokens, {name: elsewhere[name] for name in written_sites(model)})
            ends.append(value(split.run(single(graph, [f"input->{receiver}"]))[0]))
        slope = (ends[1] - ends[0]) / (2 * step)
        torch.testing.assert_close((found[receiver] * direction).sum((1, 2)), slope, rtol=1e-5, atol=1e-6)


def test_more_steps_settle_and_both_ends_count(tiny_model, pairs):
    """The trapezoid rule: its error falls with the square of the steps, so 9 is near 33 and 2 is not."""
    from interp.causal.attribution import edge_scores

    two, nine, many = (edge_scores(tiny_model, pairs, method="eap-ig", steps=steps) for steps in (2, 9, 33))
    assert np.abs(nine - many).sum() < 0.3 * np.abs(two - many).sum()


@pytest.mark.parametrize("by", ["head", "position"])
@pytest.mark.parametrize("site", ["q", "k"])
def test_atp_star_is_exact_where_only_the_softmax_is_curved(task, tmp_path, site, by):
    """One layer of attention: the logits are linear in the pattern, and the pattern is computed again."""
    from interp import attribute, patch

    model = attention_only(tmp_path / "one", 1, 30)
    settings = {"site": site, "by": ("layer", by)}
    plain, fixed = (attribute(model, task, fix_qk=fix, **settings).table().effect for fix in (False, True))
    truth = patch(model, task, **settings).table().effect
    np.testing.assert_allclose(fixed, truth, atol=1e-6)
    assert np.abs(plain - truth).max() > 0.02


def test_chunks_give_the_same_scores(tiny_model, pairs, monkeypatch):
    from interp.causal import attribution

    whole = attribution.edge_scores(tiny_model, pairs)
    monkeypatch.setattr(attribution, "WRITTEN", 1)
    np.testing.assert_allclose(attribution.edge_scores(tiny_model, pairs), whole, atol=1e-5)


def test_prompts_that_are_finished_are_not_run_again_and_the_scores_are_the_same_to_the_bit(
    tiny_model, pairs, monkeypatch, tmp_path
):
    from interp.causal import attribution, finished

    monkeypatch.setattr(attribution, "WRITTEN", 1)
    monkeypatch.setattr(finished, "EVERY", -1.0)
    whole, slopes, seen = attribution.edge_scores(tiny_model, pairs, method="eap"), attribution.slopes, []

    def stopping(*given):
        seen.append(given)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return slopes(*given)

    monkeypatch.setattr(attribution, "slopes", stopping)
    with pytest.raises(KeyboardInterrupt):
        attribution.edge_scores(tiny_model, pairs, method="eap", finished=finished.Finished(tmp_path))
    again = attribution.edge_scores(tiny_model, pairs, method="eap", finished=finished.Finished(tmp_path))
    assert again.tobytes() == whole.tobytes() and len(seen) == len(pairs) + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "accuracy"}, "no slope"),
        ({"metric": "kl", "method": "eap"}, "no slope on the clean run"),
        ({"method": "eap-gi"}, "Nearest: eap-ig"),
        ({"steps": 1}, "both ends"),
        ({"baseline": "zero"}, "Nearest: "),
    ],
)
def test_wrong_settings_name_what_would_be_right(tiny_model, pairs, given, message):
    from interp import InputError
    from interp.causal.attribution import edge_scores

    with pytest.raises(InputError, match=message):
        edge_scores(tiny_model, pairs, **given)
