"""Circuits: found, pruned, saved, judged; and on models whose mechanism others have published."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

MODELS = Path(__file__).parent.parent.parent / "shared" / "models"
here = pytest.mark.skipif(not MODELS.exists(), reason="../shared/models is not here")


@pytest.fixture(scope="module")
def circuit(tiny_model, pairs):
    from interp import find_circuit

    return find_circuit(tiny_model, pairs, n_edges=30, force=True)


def published(name, n):
    import interp

    model = interp.load_model(str(MODELS / name))
    return model, interp.load_task(MODELS / name / "prompts.jsonl", model, n=n)


def test_gpt2_small_has_mibs_number_of_edges():
    from interp.causal.graph import Graph

    graph = Graph(12, 12, 12, True, False)
    assert len(graph.edges) == 32491 and len(graph.nodes) == 158
    assert {"input->a0.h0<q>", "m0->a6.h9<k>", "a9.h9->m9", "m11->logits"} <= set(graph.edges)
    assert "a9.h9->m9" not in replace(graph, parallel=True).edges


def test_the_nearest_edges_are_named(tiny_model):
    from interp import InputError
    from interp.causal.graph import Graph

    graph = Graph.of(tiny_model)
    with pytest.raises(InputError, match="Nearest: .*->a1.h3<q>"):
        graph.edge("a0.h9->a1.h3<q>")
    grouped = Graph(2, 4, 2, True, False)
    assert grouped.edge("m0->a1.h3<v>") == "m0->a1.kv1<v>"


def test_pruning_leaves_what_is_on_a_path_from_input_to_logits():
    from interp.causal.graph import Graph

    graph = Graph(2, 2, 2, True, False)
    path = ["input->a0.h0<v>", "a0.h0->a1.h1<k>", "a1.h1->logits"]
    childless, parentless = ["input->m0", "a0.h0->a1.h0<q>"], ["a0.h1->logits", "m1->logits"]
    pruned = graph.pruned(graph.mask([*path, *childless, *parentless]))
    assert [edge for edge in graph.edges if pruned[graph.at[edge]]] == path


def test_a_group_lives_while_one_of_its_heads_is_read():
    from interp.causal.graph import Graph

    graph = Graph(1, 4, 2, False, False)
    edges = ["input->a0.kv1<v>", "a0.h3->logits"]
    assert graph.pruned(graph.mask([*edges, "input->a0.kv0<k>"])).sum() == 2


def test_a_circuit_of_all_edges_is_the_model_and_one_of_none_is_nothing(tiny_model, pairs, circuit):
    whole = replace(circuit, kept=circuit.graph.allowed).faithfulness(tiny_model, pairs, n_random=1)
    none = replace(circuit, kept=np.zeros_like(circuit.kept)).faithfulness(tiny_model, pairs, n_random=1)
    assert float(whole) == pytest.approx(1, abs=1e-5) and float(none) == pytest.approx(0, abs=1e-5)
    assert whole.circuit == pytest.approx(whole.model, abs=1e-5)


def test_what_is_saved_is_loaded_to_the_bit(circuit, tmp_path):
    from interp import Circuit

    circuit.save(tmp_path)
    again = Circuit.load(tmp_path)
    assert again.graph == circuit.graph and again.about == circuit.about
    assert np.array_equal(again.scores, circuit.scores) and np.array_equal(again.kept, circuit.kept)


def test_the_file_is_mibs(circuit, tmp_path):
    circuit.save(tmp_path / "mine.json")
    file = json.loads((tmp_path / "mine.json").read_text())
    assert file["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    assert file["nodes"]["a1.h3"].keys() == {"in_graph"} and file["nodes"]["input"]["in_graph"]
    assert set(file["edges"]) == set(circuit.graph.edges)
    assert all(edge.keys() == {"score", "in_graph"} for edge in file["edges"].values())


def test_a_file_of_mibs_loads_and_is_judged(tiny_model, pairs, tmp_path):
    """As MIB's Graph.to_json writes it: no word of model or task."""
    from interp import Circuit
    from interp.causal.graph import Graph

    graph, draw = Graph.of(tiny_model), np.random.default_rng(0)
    content = {
        "cfg": {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32},
        "nodes": {node: {"in_graph": True} for node in graph.nodes},
        "edges": {edge: {"score": draw.normal(), "in_graph": True} for edge in graph.edges},
    }
    (tmp_path / "theirs.json").write_text(json.dumps(content))
    circuit = Circuit.load(tmp_path / "theirs.json")
    assert circuit.n_edges == len(graph.edges)
    assert float(circuit.faithfulness(tiny_model, pairs, n_random=1)) == pytest.approx(1, abs=1e-5)
    del content["edges"]
    (tmp_path / "theirs.json").write_text(json.dumps(content))
    from interp import InputError

    with pytest.raises(InputError, match="MIB's format"):
        Circuit.load(tmp_path / "theirs.json")


def test_shared_keys_are_written_for_every_head_and_read_as_their_sum(tmp_path):
    from interp import Circuit
    from interp.causal.graph import Graph

    graph = Graph(2, 4, 2, True, False)
    scores = np.where(graph.allowed, np.random.default_rng(0).normal(size=graph.allowed.shape), 0)
    kept = graph.pruned(graph.allowed & (scores > 0))
    Circuit(graph, scores, kept, {"d_model": 8}).save(tmp_path)
    edges = json.loads((tmp_path / "circuit.json").read_text())["edges"]
    assert edges["input->a1.h2<k>"] == edges["input->a1.h3<k>"] and "input->a1.kv1<k>" not in edges
    again = Circuit.load(tmp_path)
    assert again.graph == graph and np.array_equal(again.kept, kept)
    np.testing.assert_array_equal(again.scores, scores)  # halves and their sums are exact


def test_a_circuit_of_another_model_is_refused(tiny_model, pairs, circuit):
    from interp.errors import WrongModel

    other = replace(circuit, about=circuit.about | {"model": {"name": "another", "fingerprint": "sha256:0"}})
    with pytest.raises(WrongModel, match="another"):
        other.faithfulness(tiny_model, pairs)


def test_a_task_that_the_model_cannot_do_is_refused_with_the_number(tiny_model, pairs):
    from interp import InputError, find_circuit
    from interp.data.tasks import Task

    def swapped(p):
        return replace(p, targets=[(p.targets[0][0], p.wrong_token)], wrong_token=p.targets[0][1])

    tasks = [pairs, Task("swapped", [swapped(p) for p in pairs.prompts])]
    refused = 0
    for task in tasks:
        try:
            find_circuit(tiny_model, task, method="eap")
        except InputError as error:
            assert "mean logit_diff -" in str(error) and "--force" in str(error)
            refused += 1
    assert refused == 1  # one of the two is the way round that the model prefers


def test_strongest_edges_by_size_or_by_sign(circuit):
    n = 20
    by_size, by_sign = (circuit.top(n, absolute=absolute) for absolute in (True, False))
    assert by_size.n_edges <= n and by_sign.n_edges <= n
    assert (by_sign.scores[by_sign.kept] > 0).all()


def test_greedy_edges_all_lead_to_the_logits(tiny_model, pairs):
    from interp.causal.graph import Graph
    from interp.causal.search import grown

    graph = Graph.of(tiny_model)
    kept = grown(graph, np.random.default_rng(0).random(graph.allowed.shape), 12)
    assert kept.sum() == 12
    for sender in np.flatnonzero(kept.any(1)):
        assert _reaches(graph, kept, sender)


def _reaches(graph, kept, sender):
    for place in np.flatnonzero(kept[sender]):
        readers = graph.readers[graph.receivers[place]]
        if readers == ("logits",) or any(_reaches(graph, kept, graph.senders.index(node)) for node in readers):
            return True
    return False


def slow_acdc(patcher, worse, threshold):
    """One edge at a time, nothing skipped."""
    graph, metric = patcher.graph, patcher.metrics[0]
    removed = np.zeros_like(graph.allowed)
    now = worse(patcher.score(removed[None])[metric])[0]
    for receiver in reversed(range(len(graph.receivers))):
        for sender in np.flatnonzero(graph.allowed[:, receiver])[::-1]:
            removed[sender, receiver] = True
            value = worse(patcher.score(removed[None])[metric])[0]
            if value - now >= threshold:
                removed[sender, receiver] = False
            else:
                now = value
    return graph.allowed & ~removed


@pytest.mark.parametrize("threshold", [0.003, 0.03])
def test_acdc_in_stacks_keeps_the_edges_of_one_by_one(tiny_model, pairs, threshold):
    from interp.causal.edges import Patcher
    from interp.causal.search import acdc
    from interp.data.tasks import Task

    patcher = Patcher(tiny_model, Task("few", pairs.prompts[:3]), metrics=["kl"])

    def worse(values):
        return values.astype(np.float64).mean(1)

    scores, kept = acdc(patcher, worse, threshold)
    assert 0 < kept.sum() < len(patcher.graph.edges)
    assert np.array_equal(kept, slow_acdc(patcher, worse, threshold))
    assert (scores[kept] >= threshold).all()


def test_a_killed_acdc_goes_on_to_the_same_circuit(tiny_model, pairs, tmp_path, monkeypatch):
    from interp import find_circuit
    from interp.causal import finished, search

    monkeypatch.setattr(finished, "EVERY", 0.0)
    settings = {"method": "acdc", "metric": "kl", "threshold": 0.01, "force": True}
    whole = find_circuit(tiny_model, pairs, **settings)
    decide, calls = search._decide, []

    def counted(*args):
        calls.append(args[5])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return decide(*args)

    monkeypatch.setattr(search, "_decide", counted)
    with pytest.raises(KeyboardInterrupt):
        find_circuit(tiny_model, pairs, **settings, finished=finished.Finished(tmp_path / "u"))
    again = find_circuit(tiny_model, pairs, **settings, finished=finished.Finished(tmp_path / "u"))
    assert calls.count(calls[0]) == 1  # what was decided is not decided again
    assert np.array_equal(whole.scores, again.scores) and np.array_equal(whole.kept, again.kept)


def test_the_curve_ends_at_one_and_its_areas_are_trapezoids(tiny_model, pairs, circuit):
    curve = circuit.curve(tiny_model, pairs, sizes=(0.1, 0.5, 1.0), n_random=2)
    table = curve.table()
    assert table.faithfulness.iloc[-1] == pytest.approx(1, abs=1e-5)
    f = table.faithfulness.to_numpy()
    assert curve.cpr == pytest.approx((f[0] + f[1]) / 2 * 0.4 + (f[1] + f[2]) / 2 * 0.5)
    gap = np.abs(1 - f)
    assert curve.cmd == pytest.approx((gap[0] + gap[1]) / 2 * 0.4 + (gap[1] + gap[2]) / 2 * 0.5)
    assert (table.ci_low <= table.faithfulness + 1e-9).all() and (table.faithfulness <= table.ci_high + 1e-9).all()
    assert {"value", "ci_low", "ci_high", "random"} <= set(curve.areas.columns)
    assert len(curve.figure().data) == 4


def test_the_whole_model_is_complete_and_an_unread_edge_is_not_needed(tiny_model, pairs, circuit):
    from interp.causal.verdicts import completeness, minimality

    whole = replace(circuit, kept=circuit.graph.allowed)
    assert completeness(whole, tiny_model, pairs, n_sets=3).gap.max() == pytest.approx(0, abs=1e-6)
    unread = replace(circuit, kept=circuit.kept | circuit.graph.mask(["input->a1.h0<q>"]))
    unread.kept[circuit.graph.senders.index("a1.h0")] = False
    table = minimality(unread, tiny_model, pairs).set_index("edge").loss_of_faithfulness
    assert table["input->a1.h0<q>"] == pytest.approx(0, abs=1e-6)


def test_auroc_is_the_share_of_pairs_in_the_right_order(circuit):
    from interp import InputError
    from interp.causal.verdicts import auroc

    rounded = replace(circuit, scores=circuit.scores.round(2))  # with ties
    truth = [edge for k, edge in enumerate(circuit.graph.edges) if k % 7 == 0]
    size = {edge: abs(rounded.scores[circuit.graph.at[edge]]) for edge in circuit.graph.edges}
    pairs = [(size[a], size[b]) for a in truth for b in circuit.graph.edges if b not in truth]
    assert auroc(rounded, truth) == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))
    with pytest.raises(InputError, match="AUROC needs"):
        auroc(circuit, [])


def test_auroc_is_scikit_learns(circuit):
    from interp.causal.verdicts import auroc

    metrics = pytest.importorskip("sklearn.metrics")
    truth = circuit.graph.edges[::7]
    true = circuit.graph.mask(truth)[circuit.graph.allowed]
    expected = metrics.roc_auc_score(true, np.abs(circuit.scores)[circuit.graph.allowed])
    assert auroc(circuit, truth) == pytest.approx(expected)


def test_estimates_are_held_against_exact_patching(tiny_model, pairs, circuit):
    from interp import find_circuit
    from interp.causal.verdicts import verify

    truth = find_circuit(tiny_model, pairs, method="exact", force=True)
    found = verify(circuit, tiny_model, pairs, n_edges=15)
    assert len(found.rows) == 15 and -1 <= found.spearman <= 1
    expected = [truth.scores[circuit.graph.at[edge]] for edge in found.rows.edge]
    np.testing.assert_allclose(found.rows.exact, expected, atol=1e-5)
    assert "Spearman" in found.figure().layout.title.text


def test_the_page_of_a_circuit_needs_nothing_else(circuit):
    page = circuit.html
    assert "Plotly" in page and 'src="http' not in page and "sha256:" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "eap-gi"}, "Nearest: eap-ig"),
        ({"n_edges": 0}, "edges given"),
        ({"n_edges": 10**6}, "has 110"),
        ({"metric": "accuracy"}, "no slope"),
        ({"baseline": "men"}, "Nearest: mean"),
        ({"metric": "logit_dif"}, "Nearest: logit_diff"),
    ],
)
def test_wrong_settings_name_what_would_be_right(tiny_model, pairs, given, message):
    from interp import InputError, find_circuit

    with pytest.raises(InputError, match=message):
        find_circuit(tiny_model, pairs, force=True, **given)


EXACT = {
    "unique_char": {"a0.h1->a1.h2<k>": 0.50, "a0.h1->a1.h1<k>": 0.54, "a0.h1->a1.h0<k>": 0.71, "a0.h1->a1.h2<v>": 0.78},
    "induction": {"a0.h2->a1.h2<k>": 0.61, "a0.h2->a1.h3<k>": 0.64, "a0.h2->a1.h1<k>": 0.73},
}
"""Accuracy left when the edge alone is mean-ablated, the lowest of all edges between heads: that folder's README."""


@here
@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_the_published_edges_are_the_strongest_with_the_published_effects(name):
    from interp.causal.edges import Patcher, single

    model, task = published(name, None)
    patcher = Patcher(model, task, metrics=["accuracy"], baseline="mean")
    edges = [edge for edge in patcher.graph.edges if "input" not in edge and "logits" not in edge]
    left = dict(zip(edges, patcher.score(single(patcher.graph, edges))["accuracy"].mean(1), strict=True))
    strongest = sorted(edges, key=left.get)[: len(EXACT[name])]
    assert strongest == list(EXACT[name])
    # plain hooks on all the prompts agree with ours to 1e-4 and are up to .02 from the README's
    np.testing.assert_allclose([left[edge] for edge in strongest], list(EXACT[name].values()), atol=0.02)


@here
@pytest.mark.parametrize("method", ["eap-ig", "eap-ig-activations"])
def test_the_published_edges_of_induction_come_first(method):
    from interp import find_circuit

    model, task = published("induction", 10)
    circuit = find_circuit(model, task, method=method, metric="loss", baseline="mean")
    table = circuit.table()
    between = table[~table.edge.str.contains("input|logits")]
    assert set(between.edge[:3]) == set(EXACT["induction"])


@here
@pytest.mark.slow
def test_eap_ranks_the_edges_of_grouped_keys_as_exact_patching_does():
    """stories260K, 1,701 edges: "she" or "he". Measured: EAP .93, EAP-IG activations .84, EAP-IG inputs .68."""
    import pandas as pd

    from interp import find_circuit, load_model
    from interp.data.prompts import Prompt, Task

    model = load_model(str(MODELS / "stories260K"))
    assert model.n_kv_heads < model.n_heads
    space, she, he = 410, 358, 281
    prompts = []
    once = "Once upon a time, there was a"
    for woman, man in (
        (f"{once} girl named Lily. One day,", f"{once} boy named Timmy. One day,"),
        ("The girl had a red ball. Then", "The boy had a red ball. Then"),
        ("The little girl was tired, so", "The little boy was tired, so"),
    ):  # fmt: skip
        clean, corrupted = (model.to_tokens(text) + [space] for text in (woman, man))
        prompts.append(Prompt(clean, [(len(clean) - 1, she)], corrupted, he))
    task = Task("she", prompts)
    exact, eap = (
        find_circuit(model, task, method=method).table().set_index("edge").score for method in ("exact", "eap")
    )
    assert pd.DataFrame({"exact": exact, "eap": eap}).corr(method="spearman").loc["exact", "eap"] > 0.9
