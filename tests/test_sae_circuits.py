"""Sparse feature circuits: estimates exact where the model is linear, node sets against loops written by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

FIRST, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model64(tiny_dir):
    from interp import load_model

    return load_model(str(tiny_dir), dtype="float64")


@pytest.fixture
def three(make_dictionary):
    """Heads, a transcoder and the residual stream, in float64; given in another order than the model's."""
    return {
        "end": make_dictionary("jumprelu", d_sae=24, site=LAST).double(),
        "heads": make_dictionary(d_sae=20, site="blocks.0.attn.hook_z", seed=1).double(),
        "mlp": make_dictionary(
            "standard", d_sae=16, seed=2, site="blocks.1.hook_resid_mid", out_site="blocks.1.hook_mlp_out"
        ).double(),
    }


@pytest.fixture
def two(make_dictionary):
    return {"a": make_dictionary(site=FIRST), "b": make_dictionary("gated", site=LAST, seed=3)}


def patcher_of(model, task, dictionaries, baseline="counterfactual", metric="logit_diff"):
    from sae.nodes import Patcher, places_of

    return Patcher(model, task, places_of(model, dictionaries), metric=metric, baseline=baseline)


def nodes_of(model, task, dictionaries, **settings):
    """Score of every node, by name."""
    from sae.attribution import Settings, node_scores
    from sae.nodes import places_of

    places = places_of(model, dictionaries)
    scores = node_scores(model, task, places, Settings(**settings))
    return pd.Series(scores, [name for place in places for name in place.names])


def metric_of(model, task, edits, which="clean"):
    """The logit difference of each prompt, by a plain pass with these edits."""
    from interp.decoder.hooks import edited

    with torch.no_grad(), edited(model, edits):
        logits = model(task.tokens(which))
    prompt, pos, answer, wrong = task.reads()
    return (logits[prompt, pos, answer] - logits[prompt, pos, wrong]).double().numpy()


def cache_of(model, task, sites, which="clean"):
    from interp.decoder.hooks import captured

    with torch.no_grad(), captured(model, sites) as cache:
        model(task.tokens(which))
    return cache


@pytest.mark.parametrize("baseline", ["counterfactual", "mean"])
@pytest.mark.parametrize("method", ["atp", "ig"])
def test_where_all_above_the_site_is_linear_every_score_is_the_exact_patch(method, baseline, make_dictionary, tmp_path):
    from test_attribution import attention_only

    from interp.data.tasks import Prompt, Task

    model = attention_only(tmp_path / "linear", 2, 0)
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 20, (2, 6), generator=draw).tolist() for _ in range(4)]
    task = Task("pairs", [Prompt(a, [(5, 3 + i)], b, 9 + i) for i, (a, b) in enumerate(prompts)])
    dictionaries = {"d": make_dictionary("standard", d_in=12, d_sae=30, site=FIRST).double()}
    patcher = patcher_of(model, task, dictionaries, baseline)
    kept = np.concatenate([np.ones((1, 31), bool), ~np.eye(31, dtype=bool)])
    values = patcher.score(kept).astype(np.float64).mean(1)
    found = nodes_of(model, task, dictionaries, method=method, baseline=baseline)
    assert np.abs(values[1:-1] - values[0]).max() > 0.01
    np.testing.assert_allclose(found, values[0] - values[1:], atol=2e-6)  # metrics are kept as float32


def test_all_nodes_kept_is_the_clean_run_and_none_the_corrupted_one(tiny_model, pairs, two, three):
    patcher = patcher_of(tiny_model, pairs, two)
    whole, nothing = patcher.score(np.array([[True], [False]]).repeat(patcher.n_nodes, 1))
    np.testing.assert_allclose(whole, metric_of(tiny_model, pairs, {}), atol=1e-4)
    np.testing.assert_allclose(nothing, metric_of(tiny_model, pairs, {}, "corrupted"), atol=1e-4)
    # computed at every place in the stack that loses a node elsewhere, it is still the clean run
    one = np.ones((2, patcher.n_nodes), bool)
    one[1, [3, 70]] = False
    np.testing.assert_allclose(patcher.score(one)[0], whole, atol=1e-4)


def test_without_any_node_every_site_written_is_as_it_is_elsewhere(model64, pairs, three):
    """Heads and a transcoder leave ways around them: by hand, their outputs are put in from the corrupted run."""
    chosen = {name: three[name] for name in ("heads", "mlp")}
    patcher = patcher_of(model64, pairs, chosen)
    sites = [dct.out_sites[0] for dct in chosen.values()]
    there = cache_of(model64, pairs, sites, "corrupted")
    wanted = metric_of(model64, pairs, {site: lambda y, site=site: there[site] for site in sites})
    np.testing.assert_allclose(patcher.score(np.zeros((1, patcher.n_nodes), bool))[0], wanted, atol=1e-5)


@pytest.mark.parametrize("which", ["a", "b"])
def test_a_single_latent_patched_is_what_splicing_gives(which, tiny_model, pairs, two):
    """The slow way: a spliced pass for each latent, with the corrupted run's value of that latent."""
    import sae

    patcher = patcher_of(tiny_model, pairs, two)
    place = next(place for place in patcher.places if place.name == which)
    there = cache_of(tiny_model, pairs, [place.reads], "corrupted")[place.reads]
    z = place.dictionary.encode(there)
    latents = place.dictionary.encode(cache_of(tiny_model, pairs, [place.reads])[place.reads])
    changed = (z - latents).abs().sum((0, 1)).topk(5).indices.tolist()
    kept = np.ones((5, patcher.n_nodes), bool)
    kept[range(5), [place.start + latent for latent in changed]] = False
    for latent, found in zip(changed, patcher.score(kept), strict=True):

        def put(now, latent=latent):
            index = torch.tensor([latent])
            return now.index_copy(-1, index, z[..., index])

        with sae.spliced(tiny_model, place.dictionary, edit=put, keep_error=True):
            wanted = metric_of(tiny_model, pairs, {})
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert np.abs(wanted - metric_of(tiny_model, pairs, {})).max() > 1e-3


@torch.no_grad()
def test_a_set_of_nodes_is_what_a_loop_over_prompts_gives(model64, pairs, three):
    """Random sets over heads, a transcoder and the residual stream at once, prompt by prompt, site by site by hand."""
    from dataclasses import replace

    patcher = patcher_of(model64, pairs, three)
    sets = np.random.default_rng(0).random((4, patcher.n_nodes)) < 0.5
    found, sites = patcher.score(sets), sorted({site for dct in three.values() for site in dct.sites + dct.out_sites})
    for number, prompt in enumerate(pairs.prompts[:4]):
        one = replace(pairs, prompts=[prompt])
        there = cache_of(model64, one, sites, "corrupted")
        for row, kept in enumerate(sets):
            seen: dict = {}
            edits = {"blocks.1.hook_resid_mid": lambda x, seen=seen: seen.setdefault("mid", x)}
            for place in patcher.places:
                dct, mask = place.dictionary, torch.from_numpy(kept[place.nodes])

                def edit(y, place=place, dct=dct, mask=mask, seen=seen, there=there):
                    shape = y.shape
                    x, x_there = (seen["mid"], there[place.reads]) if dct.is_transcoder else (y, there[place.writes])
                    y, y_there, x, x_there = (v.flatten(2) for v in (y, there[place.writes], x, x_there))
                    out = dct.b_dec.clone().expand_as(y).clone()
                    z, z_there = dct.encode(x), dct.encode(x_there)
                    for latent in range(dct.d_sae):
                        out += (z if mask[latent] else z_there)[..., latent, None] * dct.W_dec[latent]
                    error = y - z @ dct.W_dec - dct.b_dec if mask[-1] else y_there - z_there @ dct.W_dec - dct.b_dec
                    return (out + error).reshape(shape)

                edits[place.writes] = edit
            np.testing.assert_allclose(found[row, number], metric_of(model64, one, edits)[0], atol=1e-5)


def test_a_score_is_the_finite_difference(model64, pairs, three):
    """float64: the site moved a little along (there - here) of one node, by hand."""
    from sae.nodes import places_of, states

    scores = nodes_of(model64, pairs, three, method="atp")
    step = 1e-5
    for place in places_of(model64, three):
        here, there = (states(model64, pairs.tokens(w), [place])[0] for w in ("clean", "corrupted"))
        latent = int(scores[place.names[:-1]].abs().argmax())
        moved = {
            place.names[latent]: (there.latents - here.latents)[..., latent, None] * place.dictionary.W_dec[latent],
            place.names[-1]: there.error - here.error,
        }
        for name, change in moved.items():
            ends = [
                metric_of(model64, pairs, {place.writes: lambda y, s=s, d=change: y + s * step * d.reshape(y.shape)})
                for s in (1, -1)
            ]
            slope = (ends[0] - ends[1]).mean() / (2 * step)
            assert abs(slope) > 1e-6
            assert scores[name] == pytest.approx(-slope, rel=1e-5, abs=1e-8)


def test_integrated_scores_of_a_site_add_up_to_what_the_site_does(model64, pairs, three):
    """The integral of the slope is the difference; 33 points of the trapezoid rule are near it, 2 are not."""
    few, many = (nodes_of(model64, pairs, three, method="ig", steps=steps) for steps in (2, 33))
    clean = metric_of(model64, pairs, {}).mean()
    for name, dct in three.items():
        (site,) = dct.out_sites
        y = cache_of(model64, pairs, [site], "corrupted")[site]
        whole = clean - metric_of(model64, pairs, {site: lambda _, y=y: y}).mean()
        mine = [node for node in many.index if node.startswith(name + "/")]
        assert many[mine].sum() == pytest.approx(whole, rel=0.02)
        assert abs(many[mine].sum() - whole) < abs(few[mine].sum() - whole)


def edges_of(model, task, dictionaries, **settings):
    from sae.attribution import Settings, edge_scores
    from sae.nodes import places_of

    places = places_of(model, dictionaries)
    names = [name for place in places for name in place.names]
    found = edge_scores(model, task, places, range(len(names)), Settings(**settings))
    return pd.DataFrame(found, names, [*names, "logits"])


def test_a_nodes_edges_add_up_to_its_score(model64, pairs, three):
    """Chain rule: what a node does, it does through the nodes of the next dictionaries or around all of them."""
    edges, scores = edges_of(model64, pairs, three, method="atp"), nodes_of(model64, pairs, three, method="atp")
    np.testing.assert_allclose(edges.sum(axis=1), scores, atol=1e-9)
    for earlier, later in (("heads", "mlp"), ("heads", "end"), ("mlp", "end")):
        block = edges.loc[edges.index.str.startswith(earlier), edges.columns.str.startswith(later)]
        back = edges.loc[edges.index.str.startswith(later), edges.columns.str.startswith(earlier)]
        assert block.abs().to_numpy().max() > 1e-4 and not back.to_numpy().any()


def test_an_edge_is_the_finite_difference_of_the_receivers_contribution(model64, pairs, make_dictionary):
    """float64: the sender moved a little, the receiver's latent read again, times its slope on the clean run."""
    from sae.nodes import places_of, states

    dictionaries = {"a": make_dictionary(site=FIRST).double(), "b": make_dictionary(site=LAST, seed=3).double()}
    edges = edges_of(model64, pairs, dictionaries, method="atp")
    scores = nodes_of(model64, pairs, dictionaries, method="atp")
    a, b = places_of(model64, dictionaries)
    sender = int(scores[a.names[:-1]].abs().argmax())
    receiver = edges.loc[f"a/{sender}", b.names[:-1]].abs().idxmax()
    here, there = (states(model64, pairs.tokens(which), [a])[0] for which in ("clean", "corrupted"))
    change, step = (there.latents - here.latents)[..., sender, None] * a.dictionary.W_dec[sender], 1e-6
    latent = b.dictionary.W_dec[int(receiver.split("/")[1])]
    slope, prompts = torch.zeros(12, 9, dtype=torch.float64), range(12)
    for pos in range(9):  # of the metric, along the receiver's decoder row at one position

        def along(sign, pos=pos):
            def edit(y):
                y = y.clone()
                y[:, pos] += sign * step * latent
                return y

            return torch.from_numpy(metric_of(model64, pairs, {LAST: edit}))

        slope[prompts, pos] = (along(1) - along(-1)) / (2 * step)
    from interp.decoder.hooks import captured, edited

    ends = []
    for sign in (1, -1):
        with torch.no_grad(), captured(model64, LAST) as cache, edited(
            model64, {FIRST: lambda y, s=sign: y + s * step * change}
        ):  # fmt: skip
            model64(pairs.tokens())
        ends.append(b.dictionary.encode(cache[LAST])[..., int(receiver.split("/")[1])])
    moved = (ends[0] - ends[1]) / (2 * step)
    wanted = -float((slope * moved).sum()) / 12
    assert edges.loc[f"a/{sender}", receiver] == pytest.approx(wanted, rel=1e-4) and abs(wanted) > 1e-4


def test_the_mean_baseline_is_the_mean_over_clean_prompts_by_position(model64, pairs, three):
    from sae.nodes import Elsewhere, places_of, states

    places = places_of(model64, three)
    found = Elsewhere(model64, pairs, places, "mean").of(torch.arange(2), 9)
    for mean, each in zip(found, states(model64, pairs.tokens(), places), strict=True):
        torch.testing.assert_close(mean.latents[1], each.latents.mean(0))
        torch.testing.assert_close(mean.error[1], each.error.mean(0))


def test_chunks_give_the_same_numbers(model64, pairs, three, monkeypatch):
    """Three prompts, one of them shorter: in one pass a length, and in one pass a prompt."""
    from dataclasses import replace

    from sae import nodes

    *same, last = pairs.prompts[:3]
    short = replace(
        last, clean_tokens=last.clean_tokens[:7], corrupted_tokens=last.corrupted_tokens[:7], targets=[(6, 5)]
    )
    few = replace(pairs, prompts=[*same, short])
    sets = np.random.default_rng(1).random((5, 63)) < 0.5

    def numbers():
        yield patcher_of(model64, few, three).score(sets)
        yield patcher_of(model64, few, three, "mean").score(sets)
        yield nodes_of(model64, few, three, steps=2)
        yield edges_of(model64, few, three, method="atp")

    whole = list(numbers())
    monkeypatch.setattr(nodes, "LATENTS_AT_ONCE", 1)
    for one, other in zip(whole, numbers(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.fixture
def circuit(tiny_model, pairs, two):
    import sae

    return sae.find_feature_circuit(tiny_model, pairs, two, n_nodes=12, steps=3, force=True)


def test_a_circuit_is_judged_beside_random_nodes(circuit, tiny_model, pairs, two):
    assert circuit.n_nodes == 12 and circuit.table()["score"].abs().is_monotonic_decreasing
    assert circuit.kept == circuit.table()["node"].tolist()[:12]
    verdict = circuit.faithfulness(tiny_model, pairs, two)
    faithful, complete = verdict.rows.itertuples()
    assert faithful.ci_low <= faithful.value <= faithful.ci_high and complete.random_low <= complete.random_high
    assert float(verdict) == faithful.value and verdict.n == 12 and len(verdict.table()) == 2
    everything = circuit.of(circuit.table()["node"]).faithfulness(tiny_model, pairs, two, n_random=1)
    # every active node: the others never differ between clean and corrupted
    assert float(everything) == pytest.approx(1, abs=1e-4) and everything.rows.value[1] == pytest.approx(0, abs=1e-4)
    without = circuit.of([]).faithfulness(tiny_model, pairs, two, n_random=1)
    assert float(without) == pytest.approx(0, abs=1e-5) and without.nothing == pytest.approx(without.circuit)
    kept = [circuit.faithfulness(tiny_model, pairs, two, errors=errors, n_random=1).n_nodes for errors in (True, False)]
    assert kept[0] == kept[1] + 2


def test_scores_are_held_against_exact_patches(circuit, tiny_model, pairs, two):
    agreement = circuit.verify(tiny_model, pairs, two, n_nodes=20)
    assert len(agreement.rows) == 20 and agreement.table().columns[0] == "node"
    assert agreement.spearman > 0.5 and "20 nodes" in agreement.figure().layout.title.text


def test_a_circuit_comes_back_as_it_was_saved_and_is_drawn(circuit, tmp_path):
    import sae
    from interp.errors import MissingFile

    circuit.save(tmp_path / "c")
    back = sae.FeatureCircuit.load(tmp_path / "c")
    pd.testing.assert_frame_equal(back.nodes, circuit.nodes)
    pd.testing.assert_frame_equal(back.edges, circuit.edges)
    assert back.about == circuit.about and set(back.edges.receiver) <= {*circuit.kept, "logits"}
    drawn = circuit.figure()
    assert len(drawn.data[-2].x) == min(150, len(circuit.edges)) and len(drawn.data[-1].x) == 12
    smaller = circuit.top(5)
    assert set(smaller.edges.sender) <= set(smaller.kept) and len(smaller.figure().data[-1].x) == 5
    with pytest.raises(MissingFile, match="feature_circuit.json"):
        sae.FeatureCircuit.load(tmp_path)


def test_what_cannot_be_is_refused_by_name(circuit, tiny_model, pairs, two, make_dictionary):
    from dataclasses import replace

    import sae
    from interp.errors import InputError, UnknownComponent, UnknownName, WrongModel

    def refused(error, match, dictionaries=two, task=pairs, **settings):
        with pytest.raises(error, match=match):
            sae.find_feature_circuit(tiny_model, task, dictionaries, **{"force": True} | settings)

    refused(UnknownName, "Nearest: atp", method="apt")
    refused(InputError, "both ends", steps=1)
    refused(InputError, "no slope", metric="accuracy")
    refused(InputError, "use the method ig", metric="kl", method="atp")
    refused(InputError, "one or more", n_nodes=0)
    refused(UnknownName, "Nearest: mean", baseline="men")
    alone = replace(pairs, prompts=[replace(prompt, corrupted_tokens=None) for prompt in pairs.prompts])
    refused(InputError, 'without "corrupted"', task=alone)
    refused(InputError, "no dictionary", {})
    refused(InputError, "both at 1.resid_post", {"a": make_dictionary(), "b": make_dictionary()})
    refused(InputError, "one site", {"a": make_dictionary(site=[FIRST, LAST], d_in=64)})
    refused(InputError, "a site in a block", {"a": make_dictionary(site="ln_final.hook_normalized")})
    refused(WrongModel, 'trained on "other"', {"a": make_dictionary(model={"name": "other", "fingerprint": "x"})})
    with pytest.raises(UnknownComponent, match="Nearest: a/"):
        circuit.of(["a/9999"])
    with pytest.raises(InputError, match="the circuit is of the dictionaries"):
        circuit.faithfulness(tiny_model, pairs, {"a": two["a"]})
    with pytest.raises(InputError, match="load those it was found with"):
        circuit.verify(tiny_model, pairs, two | {"a": make_dictionary(site=FIRST, seed=9)})
    other = replace(circuit, about=circuit.about | {"model": {"name": "other", "fingerprint": "sha256:0"}})
    with pytest.raises(WrongModel, match="load that model"):
        other.verify(tiny_model, pairs, two)
