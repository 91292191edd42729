"""Figures of effects: which way is red, that a click names its component, and that nothing missing looks like 0."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def plots():
    from interp import plots

    return plots


def rows(places, effects, *, method="mean", metric="logit_diff", **more) -> pd.DataFrame:
    effects = np.asarray(effects, float)
    columns = ["component", "kind", "layer", "index", "position"]
    return pd.DataFrame(places, columns=columns).assign(
        method=method, metric=metric, baseline=1.0, value=1 + effects, effect=effects, effect_std=0.1,
        ci_low=effects - 0.2, ci_high=effects + 0.2, n=20, **more,
    )  # fmt: skip


HEADS = [("L0H0", "head", 0, 0, "all"), ("L0H10", "head", 0, 10, "all"), ("L0H2", "head", 0, 2, "all"),
         ("L1H0", "head", 1, 0, "all"), ("L1.mlp", "mlp", 1, -1, "all"), ("L1.attn", "attn", 1, -1, "all")]  # fmt: skip


def test_a_grid_puts_layers_down_heads_across_and_leaves_gaps_empty(plots):
    grid = plots.component_grid(rows(HEADS, [-3, 1, np.nan, 2, 0.5, 0]))
    assert grid.rows == ["L0", "L1"] and grid.columns == ["H0", "H2", "H10", "MLP", "attn"]
    assert grid.names == [["L0H0", "L0H2", "L0H10", None, None], ["L1H0", None, None, "L1.mlp", "L1.attn"]]
    assert grid.values == [[-3, None, 1, None, None], [2, None, None, 0.5, 0]]
    assert grid.hover[0][0] == "L0H0: -3 logit_diff, 95% interval -3.2 to -2.8, n = 20"
    assert grid.hover[0][3] == "not measured" and grid.scale.limit == 3
    assert plots.component_grid(rows([("embed", "embed", -1, -1, "all")], [1])) is None


def test_a_component_at_several_positions_shows_its_largest_effect(plots):
    places = [("L0H0", "head", 0, 0, "S2"), ("L0H0", "head", 0, 0, "end")]
    grid = plots.component_grid(rows(places, [1, -2]))
    assert grid.values == [[-2]] and grid.hover[0][0].startswith("L0H0 at end: -2 ")


@pytest.mark.parametrize(
    ("metric", "positive_is_red"), [("logit_diff", False), ("prob", False), ("loss", True), ("kl", True)]
)
def test_red_says_that_the_component_helped_whichever_way_the_metric_goes(plots, metric, positive_is_red):
    scale = plots.scale([1.0, -2.0, np.nan], metric)
    assert scale.formula == "effect = ablated - clean; red = the component helped"
    assert (scale.centre, scale.limit, scale.red_is_positive) == (0, 2, positive_is_red)
    (_, low), (middle, white), (_, high) = scale.colorscale
    assert (middle, white) == (0.5, plots.WHITE)
    assert (high if positive_is_red else low) == plots.RED


def test_a_scale_of_nothing_but_zeros_has_a_width(plots):
    assert plots.scale([0.0, np.nan], "logit_diff").limit == 1
    assert plots.scale([], "logit_diff").limit == 1


def test_noising_is_centred_on_as_clean(plots):
    scale = plots.scale([1.0, 0.2], "logit_diff", method="noise", normalized=True)
    assert scale.centre == 1 and scale.limit == pytest.approx(0.8)


def test_every_cell_of_a_map_is_a_point_that_names_its_component(plots):
    figure = plots.head_map(rows(HEADS, [-3, 1, np.nan, 2, 0.5, 0]))
    heat, clicks = figure.data
    assert (heat.zmin, heat.zmax) == (-3, 3) and np.isnan(heat.z[0][1])
    assert list(clicks.customdata) == ["L0H0", "L0H2", "L0H10", None, None, "L1H0", None, None, "L1.mlp", "L1.attn"]
    assert (clicks.x[5], clicks.y[5]) == (0, 1) and clicks.marker.size == 2
    assert clicks.marker.opacity == clicks.selected.marker.opacity == clicks.unselected.marker.opacity == 0
    assert (figure.layout.hovermode, figure.layout.hoverdistance, figure.layout.dragmode) == ("closest", -1, False)
    assert figure.layout.annotations[0].text == "effect = ablated - clean; red = the component helped"


def test_a_map_of_positions_shows_normalized_values(plots):
    places = [(f"L{i}.resid_pre", "resid_pre", i, -1, p) for i in (0, 1) for p in ("S2", "end")]
    figure = plots.effects(rows(places, [0, 1, 2, 3], method="denoise", normalized=[0.0, 0.2, 0.5, 1.0]))
    assert np.asarray(figure.data[0].z).tolist() == [[0, 0.2], [0.5, 1]]
    assert list(figure.data[1].customdata) == [
        "L0.resid_pre@S2",
        "L0.resid_pre@end",
        "L1.resid_pre@S2",
        "L1.resid_pre@end",
    ]
    assert figure.layout.annotations[0].text.startswith("normalized: 0 = as corrupted, 1 = as clean")


def test_effects_draws_one_method_and_metric_in_the_shape_that_suits_it(plots):
    both = pd.concat([rows(HEADS, range(6)), rows(HEADS, [9] * 6, metric="loss")], ignore_index=True)
    assert plots.effects(both).data[0].type == "heatmap"
    assert plots.effects(both).data[0].zmax == 5 and plots.effects(both, metric="loss").data[0].zmax == 9
    neurons = [(f"L0N{i}", "neuron", 0, i, "all") for i in range(40)]
    bars = plots.effects(rows(neurons, np.linspace(-1, 2, 40))).data[0]
    assert bars.type == "bar" and list(bars.y[:2]) == ["L0N39", "L0N38"] and len(bars.y) == 30


def test_text_of_a_file_is_escaped_in_a_figure(plots):
    places = [("L0H0", "head", 0, 0, "<b>S</b>"), ("L1H0", "head", 1, 0, "end")]
    figure = plots.effects(rows(places, [1, 2]))
    assert figure.layout.xaxis.ticktext[0] == "&lt;b&gt;S&lt;/b&gt;" and "<" not in figure.data[1].text[0]


def test_prompts_are_after_minus_before(plots):
    prompts = plots.per_prompt(np.array([1, 2], "float32"), np.array([0, 5], "float32"))
    assert prompts["effect"].tolist() == [-1, 3] and prompts.index.name == "prompt"
    row = rows(HEADS[:1], [1]).iloc[0]
    figure = plots.histogram(prompts, row)
    assert list(figure.data[0].x) == [-1, 3] and figure.layout.shapes[0].x0 == pytest.approx(0.8)
    alone = plots.histogram(prompts, row.replace({row["ci_low"]: np.nan, row["ci_high"]: np.nan}))
    assert len(alone.layout.shapes) == len(figure.layout.shapes) - 1


def test_a_grid_of_positions_names_its_cells_and_shows_tokens_above_them(plots):
    places = [(f"L{i}.resid_pre", "resid_pre", i, -1, p) for i in (1, 0) for p in ("0", "1")]
    grid = plots.position_grid(rows(places[:-1], [1, 2, 3], method="denoise"), {"0": "<b>", "1": "\n"})
    assert grid.rows == ["L0.resid_pre", "L1.resid_pre"] and grid.columns == ["<b>\n0", "↵\n1"]
    assert grid.names[0][1] == "L0.resid_pre@1" and grid.values == [[3.0, None], [1.0, 2.0]]
    labels = plots.position_map(rows(places, [1, 2, 3, 4]), {"0": "<b>", "1": "x"}).layout.xaxis.ticktext
    assert list(labels) == ["&lt;b&gt;<br>0", "x<br>1"]


def test_a_path_is_patched_minus_clean(plots):
    scale = plots.scale([-1.0], "logit_diff", method="path")
    assert scale.formula.startswith("effect = patched - clean; red") and not scale.red_is_positive


def test_nodes_and_edges_of_a_circuit_can_be_clicked_and_the_others_stand_back():
    from interp.plots.circuits import circuit

    edges = ["input->a0.h0<q>", "a0.h0->logits", "input->m0", "m0->a1.kv1<k>", "a1.h2->logits"]
    table = pd.DataFrame({
        "edge": edges, "sender": [edge.partition("->")[0] for edge in edges],
        "receiver": [edge.partition("->")[2] for edge in edges], "score": [3.0, -2.0, 1.0, 0.5, 0.5], "in_graph": True,
    })  # fmt: skip
    table = pd.concat([table, table.assign(receiver="a0.kv0<v>", in_graph=False)])  # key-value heads 0 and 1
    nodes = ["input", *(f"a{layer}.h{head}" for layer in (0, 1) for head in range(4)), "m0", "m1", "logits"]
    figure = circuit(table, nodes, selected="a0.h0", labels={"m0": "<i>"}, pinned=["m1"])
    drawn = next(trace for trace in figure.data if trace.mode == "markers+text")
    at = dict(zip(drawn.customdata, zip(drawn.x, drawn.y, strict=True), strict=True))
    assert set(at) == {"input", "a0.h0", "m0", "m1", "a1.kv1", "a1.h2", "logits"}
    assert at["a1.kv1"][0] == 2.5 and at["logits"][1] > at["m1"][1] > at["a1.h2"][1] > at["input"][1]
    assert " L0.mlp &lt;i&gt;" in drawn.text
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert sum(np.isnan(trace.x).sum() for trace in lines if trace.opacity > 0.5) == 2
    middles = next(trace for trace in figure.data if trace.mode == "markers")
    assert list(middles.customdata) == edges


def test_two_runs_are_compared_on_the_line_where_they_agree(plots):
    table = rows(HEADS, [1, 2, 3, 4, 5, 6]).assign(
        effect_other=0.0, difference=[1, 2, 3, 4, 5, 6.0], q=[0.5] + [0.01] * 5
    )
    points, line = plots.comparison(table, ("<a>", "b")).data
    assert list(points.y) == [1, 2, 3, 4, 5, 6] and points.marker.color[0] != points.marker.color[1]
    assert list(line.x) == list(line.y) == [0, 6]


def test_dead_latents_are_counted_and_not_drawn(plots):
    latents = pd.DataFrame({"density": [0.0, 0.0, 0.001, 0.01, 0.5]})
    figure = plots.densities(latents, 0.1)
    assert sum(figure.data[0].y) == 3 and figure.layout.title.text.startswith("3 latents alive, 2 dead")
    assert sum(plots.densities(latents[:2], 0.1).data[0].y) == 0


def test_no_text_of_a_file_is_markup_on_the_frontier_and_on_directions(plots):
    from interp.plots.directions import by_site

    row = {"l0": 3.0, "fvu": 0.2, "site": "<b>x</b>", "architecture": "<a href=y>", "d_sae": 8, "name": "<i>n</i>"}
    (trace,) = plots.frontier(pd.DataFrame([row])).data
    assert "<" not in trace.name and "<" not in trace.text[0] and trace.customdata[0] == "<i>n</i>"
    sites = pd.DataFrame([{"site": "<b>0</b>", "layer": 0, "accuracy": 0.9, "ci_low": 0.8, "ci_high": 1.0,
                           "random": 0.5, "shuffled": 0.5, "chosen": True}])  # fmt: skip
    assert "<" not in by_site(sites).data[0].text[0]


def test_the_mean_kl_by_token_counts_a_prompt_once():
    from interp.plots.generation import kl_by_token

    kl = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0}
    rows = [{"prompt": p, "sample": s, "run": "edited", "step": 0, "kl": value} for (p, s), value in kl.items()]
    figure = kl_by_token(pd.DataFrame(rows))
    assert figure.data[1].y[0] == (2 + 5) / 2 and "mean over 2 prompts" in figure.layout.title.text
    figure = kl_by_token(pd.DataFrame(rows[:2]))
    assert figure.data[1].y[0] == 2 and "mean over 2 continuations" in figure.layout.title.text
