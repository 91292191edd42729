"""Edges and paths, exactly: against a slow twin that knows no stacks, no resuming and no projections of its own."""

import re

import numpy as np
import pytest
import torch
from test_sweeps import FAMILIES

ATOL = 2e-5
"""float32, sums in another order; differences are of size 1."""


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, make_model):
    """A random model of each family."""
    return make_model(request.param)


@pytest.fixture(scope="module")
def task():
    """Five prompt pairs of two lengths."""
    from interp.data.tasks import Prompt, Task

    generator = torch.Generator().manual_seed(3)

    def tokens(n):
        return torch.randint(1, 200, (n,), generator=generator).tolist()

    lengths = [6, 4, 6, 4, 6]
    return Task("two lengths", [Prompt(tokens(n), [(n - 1, tokens(1)[0])], tokens(n), tokens(1)[0]) for n in lengths])


def diff(model, task, tokens):
    """The logit difference [prompt] by whole passes."""
    with torch.no_grad():
        logits = model(tokens)
    prompt, pos, answer, wrong = task.reads()
    return (logits[prompt, pos, answer] - logits[prompt, pos, wrong]).numpy()


def slow(model, prompt, removed):
    """Last logits of one prompt with these edges removed: place by place, a whole pass each, all else held by hooks."""
    from interp.causal.graph import Graph
    from interp.decoder.hooks import captured, edited
    from interp.decoder.sites import layer_site

    graph = Graph.of(model)
    clean, corrupted = torch.tensor([prompt.clean_tokens]), torch.tensor([prompt.corrupted_tokens])
    sites = [layer_site(0, "resid_pre")]
    for layer in range(model.n_layers):
        sites += [layer_site(layer, "z"), layer_site(layer, "mlp_out")]

    def written(cache, sender):
        if sender == "input":
            return cache[layer_site(0, "resid_pre")]
        kind, layer, head = re.fullmatch(r"([am])(\d+)(?:\.h(\d+))?", sender).groups()
        if kind == "m":
            return cache[layer_site(int(layer), "mlp_out")]
        W_O = model.bridge.blocks[int(layer)].attn.W_O[int(head)]
        return cache[layer_site(int(layer), "z")][:, :, int(head)] @ W_O

    def run(tokens, edits, names):
        fixed = {site: lambda _, value=value: value for site, value in edits.items()}
        with torch.no_grad(), edited(model, fixed), captured(model, names) as cache:
            logits = model(tokens)
        return logits, cache

    _, other = run(corrupted, {}, sites)
    held = {}
    for receiver in graph.receivers:
        edges = [edge for edge in removed if edge.endswith(f"->{receiver}")]
        if not edges:
            continue
        kind, layer, head, which = re.match(r"([aml])(\d*)(?:.*\.(?:h|kv)(\d+)<([qkv])>)?", receiver).groups()
        site, out = {
            "a": (layer and layer_site(int(layer), "resid_pre"), layer and layer_site(int(layer), which or "q")),
            "m": (layer and layer_site(int(layer), "resid_pre" if graph.parallel else "resid_mid"),
                  layer and layer_site(int(layer), "mlp_out")),
            "l": (layer_site(model.n_layers - 1, "resid_post"),) * 2,
        }[kind]  # fmt: skip
        _, here = run(clean, held, [*sites, site, out])
        x = here[site] - sum(written(here, e.split("->")[0]) - written(other, e.split("->")[0]) for e in edges)
        if kind == "l":
            held[site] = x
            continue
        # an edit of the stream goes on to the rest of the block: only this place's reading of it is kept
        _, there = run(clean, held | {site: x} if out not in held else
                       {k: v for k, v in held.items() if k != out} | {site: x}, [out])  # fmt: skip
        value = here[out].clone()
        if kind == "m":
            value = there[out]
        else:
            value[:, :, int(head)] = there[out][:, :, int(head)]
        held[out] = value
    logits, _ = run(clean, held, [sites[0]])
    return (logits[0, -1, prompt.targets[0][1]] - logits[0, -1, prompt.wrong_token]).item()


def patcher(model, task, **settings):
    from interp.causal.edges import Patcher

    return Patcher(model, task, metrics=["logit_diff"], **settings)


def test_all_edges_kept_is_clean_and_none_kept_is_corrupted(model, task):
    every, none = (end["logit_diff"] for end in patcher(model, task).ends())
    np.testing.assert_allclose(every, diff(model, task, task.tokens("clean")), atol=ATOL)
    np.testing.assert_allclose(none, diff(model, task, task.tokens("corrupted")), atol=ATOL)


def test_single_edges_equal_the_slow_twin(model, task):
    from interp.causal.edges import single

    run = patcher(model, task)
    draw = np.random.default_rng(0).choice(len(run.graph.edges), 3, replace=False)
    last = ["input->logits", "a1.h2->a2.h1<q>", "a1.h2->logits", "m0->m2"]
    edges = [*dict.fromkeys([*last, *(run.graph.edges[k] for k in draw)])]
    found = run.score(single(run.graph, edges))["logit_diff"]
    expected = [[slow(model, prompt, [edge]) for prompt in task.prompts[:1]] for edge in edges]
    np.testing.assert_allclose(found[:, :1], expected, atol=ATOL)


def test_a_third_of_all_edges_removed_equals_the_slow_twin(model, task):
    run = patcher(model, task)
    removed = run.graph.allowed & (np.random.default_rng(1).random(run.graph.allowed.shape) < 1 / 3)
    edges = [edge for edge in run.graph.edges if removed[run.graph.at[edge]]]
    found = run.score(removed[None])["logit_diff"][0]
    np.testing.assert_allclose(found[0], slow(model, task.prompts[0], edges), atol=ATOL)


def test_sets_in_one_stack_do_not_touch_each_other(model, task):
    run = patcher(model, task)
    sets = np.random.default_rng(2).random((5, *run.graph.allowed.shape)) < 0.2
    together = run.score(sets)["logit_diff"]
    alone = np.concatenate([run.score(one[None])["logit_diff"] for one in sets])
    np.testing.assert_allclose(together, alone, atol=ATOL)


@pytest.mark.parametrize("frozen", ["all", "heads", "none"])
def test_a_path_to_the_logits_of_the_last_head_is_its_direct_edge(model, task, frozen):
    """After the last layer's attention only its MLP stands between a head and the logits."""
    from interp import path_patch
    from interp.causal.edges import single

    found = path_patch(model, task, receiver="logits", senders=["a2.h1"], frozen=frozen)
    run = patcher(model, task)
    edges = ["a2.h1->logits", "a2.h1->m2"]
    sets = single(run.graph, edges[:1]) if frozen == "all" or run.graph.parallel else run.graph.mask(edges)[None]
    if frozen != "all" and not run.graph.parallel:
        direct = run.score(single(run.graph, edges[:1]))["logit_diff"][0]
        assert np.abs(found.values["path", "logit_diff"][0] - direct).max() > ATOL  # the MLP hears the head
    np.testing.assert_allclose(found.values["path", "logit_diff"][0], run.score(sets)["logit_diff"][0], atol=ATOL)


def test_an_open_path_to_a_query_carries_more_than_the_direct_edge(model, task):
    from interp import path_patch
    from interp.causal.edges import single

    run, receiver = patcher(model, task), "a2.h0<q>"
    settings = {"receiver": receiver, "senders": ["a0.h1"]}
    one, heads, none = (
        path_patch(model, task, frozen=frozen, **settings).values["path", "logit_diff"][0]
        for frozen in ("all", "heads", "none")
    )
    np.testing.assert_allclose(one, run.score(single(run.graph, ["a0.h1->" + receiver]))["logit_diff"][0], atol=ATOL)
    assert np.abs(none - one).max() > ATOL and np.abs(heads - none).max() > ATOL


def test_a_path_with_nothing_frozen_to_every_reader_is_activation_patching(model, task):
    """A head whose change every later place hears, by all paths, is a head noised."""
    from interp import path_patch
    from interp.decoder.hooks import captured, edited
    from interp.decoder.sites import layer_site

    site, values = layer_site(0, "z"), []
    for prompt in task.prompts:
        with torch.no_grad(), captured(model, site) as cache:
            model(torch.tensor([prompt.corrupted_tokens]))

        def noise(value, other=cache[site]):
            value = value.clone()
            value[:, :, 1] = other[:, :, 1]
            return value

        with torch.no_grad(), edited(model, {site: noise}):
            logits = model(torch.tensor([prompt.clean_tokens]))[0, -1]
        values.append((logits[prompt.targets[0][1]] - logits[prompt.wrong_token]).item())
    found = path_patch(model, task, receiver="logits", senders="a0.h1", frozen="none")
    np.testing.assert_allclose(found.values["path", "logit_diff"][0], values, atol=ATOL)
    assert list(found.table().component) == ["L0H1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"receiver": "a9.h0<q>"}, "no receiver"),
        ({"receiver": "a1.h0<q>", "senders": "a1.h0"}, "no sender"),
        ({"receiver": "logits", "frozen": "mlps"}, "Nearest: "),
        ({"receiver": "logits", "baseline": "men"}, "Nearest: mean"),
        ({"receiver": ["logits", "m1"]}, "alone"),
    ],
)
def test_wrong_paths_name_what_would_be_right(tiny_model, pairs, given, message):
    from interp import InputError, path_patch

    with pytest.raises(InputError, match=message):
        path_patch(tiny_model, pairs, **given)


def test_a_model_whose_parts_do_not_add_up_is_refused(tiny_dir, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

    from interp import InputError, load_model
    from interp.data.tasks import Prompt, Task

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=32, sliding_window=16, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pair = Task("pair", [Prompt([1, 2, 3, 4], [(3, 5)], [1, 6, 3, 4], 7)])
    with pytest.raises(InputError, match="has no graph of edges: a norm stands after attention"):
        patcher(load_model(str(tmp_path)), pair)
