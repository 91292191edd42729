"""The page of a run of each kind: its figure, its table, what it says where a file is broken; two runs beside each
other; the bar of pages."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest
from test_app import BAR, N_HEADS, N_LAYERS, mounted, opened, page_links, texts, workspace, write_log, write_run

__all__ = ["workspace"]
HEADS = [(f"L{i}H{j}", i, j) for i in range(N_LAYERS) for j in range(N_HEADS)]


def bounds(table: pd.DataFrame, name: str, low: str = "ci_low", high: str = "ci_high") -> pd.DataFrame:
    return table.assign(**{low: table[name] - 0.1, high: table[name] + 0.1})


def of_heads(**columns) -> pd.DataFrame:
    table = pd.DataFrame(HEADS, columns=["component", "layer", "index"])
    return table.assign(**{name: np.linspace(*ends, len(table)) for name, ends in columns.items()})


def lens_curve() -> pd.DataFrame:
    rows = [("logit", layer, f"{layer}.resid_post", metric, 3.0 - layer) for metric in ("kl", "rank")
            for layer in range(-1, N_LAYERS)]  # fmt: skip
    return bounds(pd.DataFrame(rows, columns=["lens", "layer", "site", "metric", "value"]), "value").assign(n=9)


def lens() -> pd.DataFrame:
    return pd.DataFrame({
        "layer": [-1, 0, -1, 0], "position": [0, 0, 1, 1], "token": ["a", "a", "<b>", "<b>"], "top": [["x", "y"]] * 4,
        "top_id": [[1, 2]] * 4, "top_prob": [[0.5, 0.2]] * 4, "target": ["<b>", "<b>", "x", "x"], "target_id": 1,
        "logit": 1.0, "prob": 0.5, "rank": 1, "kl": 0.2, "entropy": 1.0,
    })  # fmt: skip


def attribution() -> pd.DataFrame:
    table = of_heads(contribution=(-1, 1)).assign(kind="head", group="", contribution_std=0.1, n=9)
    return bounds(table, "contribution")


def heads() -> pd.DataFrame:
    scores = ("induction", "previous_token", "entropy")
    table = of_heads(**dict.fromkeys(scores, (0, 1)))
    for score in scores:
        table = bounds(table, score, f"{score}_low", f"{score}_high")
    return table


def write_heads(path) -> None:
    heads().to_parquet(path / "heads.parquet")
    with h5py.File(path / "heads.h5", "w") as file:
        file.attrs["about"] = json.dumps({"n": 9})
        file.attrs["chance"] = json.dumps({"previous_token": 0.1, "induction": 0.1, "entropy": 2.0})


def tokens() -> pd.DataFrame:
    rows = [(0, sample, run, step, "<b>", kl) for sample in (0, 1) for run, kl in (("baseline", 0.0), ("edited", 0.3))
            for step in range(3)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["prompt", "sample", "run", "step", "text", "kl"])
    return table.assign(token=5, logprob=-1.0, baseline_logprob=-1.5)


def direction_sites() -> pd.DataFrame:
    return pd.DataFrame({
        "site": ["1.resid_post"], "layer": [1], "accuracy": [0.9], "ci_low": [0.8], "ci_high": [1.0], "auroc": [0.9],
        "shuffled": [0.5], "random": [0.6], "gap": [2.0], "chosen": [True],
    })  # fmt: skip


def examples() -> pd.DataFrame:
    return pd.DataFrame({"set": ["are", "is"] * 4, "held_out": [False] * 4 + [True] * 4, "projection": range(8)})


def dose() -> pd.DataFrame:
    rows = [("log_odds", kind, strength) for kind in ("direction", "random") for strength in (-1.0, 1.0)]
    table = pd.DataFrame(rows, columns=["measure", "kind", "strength"])
    return bounds(table.assign(effect=table["strength"], gaps=1.0, least=-0.2, largest=0.2, n=9), "effect")


def compared() -> pd.DataFrame:
    table = of_heads(effect_a=(-1, 1), effect_b=(1, -1)).assign(kind="head", position="all", method="mean", n=9, q=0.01)
    return bounds(table.assign(metric="loss", difference=table["effect_b"] - table["effect_a"]), "difference")


def routing() -> pd.DataFrame:
    rows = [(f"L0E{k}", 0, k, kind, 0.2 + 0.1 * k) for kind in ("all", "digit") for k in range(4)]
    table = pd.DataFrame(rows, columns=["component", "layer", "index", "class", "share"])
    return bounds(table.assign(alike=0.25, prob=0.3, n=9), "share")


def checks() -> pd.DataFrame:
    return pd.DataFrame({
        "what": ["logits", "hooks", "experts", "exact"], "verdict": ["ok", "WRONG", "refused", "ok"],
        "measured": [1e-6, 2.0, np.nan, 0.0], "limit": [1e-4, 1e-4, np.nan, 0.0],
        "bound": ["at most", "at most", "at most", "at most"], "why": ["", "", "no experts", ""],
    })  # fmt: skip


KINDS = {
    "lens": {"lens.parquet": lens},
    "lens-train": {"curve.parquet": lens_curve},
    "lens-attribute": {"attribution.parquet": attribution},
    "heads": {},
    "generate": {"tokens.parquet": tokens, "generation.json": {"prompts": ["Once <b>"]}},
    "direction": {
        "sites.parquet": direction_sites, "examples.parquet": examples,
        "direction.json": {"method": "pca", "threshold": 3.5, "about": {"names": ["are", "is"]}},
    },
    "direction-test": {
        "dose.parquet": dose,
        "dose.json": {"gap": 2.0, "sites": ["1.resid_post"], "toward": ["a"], "away": ["b"], "direction": "plural"},
    },
    "compare": {"comparison.parquet": compared},
    "experts": {"routing.parquet": routing, "about.json": {"at": "token"}},
    "model check": {"checks.parquet": checks},
}  # fmt: skip
"""Kind of a run -> its files: a table, or what is in a JSON file."""


def write_kind(root, kind: str):
    path = write_run(root / "runs" / "one", kind, a="bundled", b="other")
    for name, content in KINDS[kind].items():
        if callable(content):
            content().to_parquet(path / name)
        else:
            (path / name).write_text(json.dumps(content))
    if kind == "heads":
        write_heads(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_every_kind_opens_on_a_figure_and_a_table_and_a_broken_one_on_a_line(workspace, kind):
    path = write_kind(workspace, kind)
    at = opened(run="one")
    assert not at.error, texts(at)
    assert len(at.get("plotly_chart")) == 1 and len(at.dataframe[0].value)
    for element in ("markdown", "title", "subheader", "caption"):
        assert all("<b>" not in str(one.value) for one in at.get(element))
    if len(at.selectbox):  # each of the figures can be drawn
        for name in at.selectbox[0].options[1:]:
            at.selectbox[0].select(name).run()
            assert not at.error, (name, texts(at))
    for file in path.glob("*.parquet"):
        file.write_bytes(b"not parquet")
    said = opened(run="one")
    assert "of this run cannot be shown." in texts(said) and not said.get("plotly_chart")


def test_what_was_written_stands_token_by_token_on_one_scale(workspace):
    write_kind(workspace, "generate")
    strips = mounted(opened(run="one"), "token_strip")
    assert [strip["head"] for strip in strips["strips"]] == ["baseline 1", "edited 1", "baseline 2", "edited 2"]
    assert strips["limit"] == 0.3 and strips["strips"][1]["tokens"] == ["<b>"] * 3


def test_two_circuits_are_held_beside_each_other(workspace):
    from interp.causal.circuits import Circuit

    first = Circuit.load(workspace / "runs" / "ioi-circuit")
    other = write_run(workspace / "runs" / "other", "circuit", task="ioi", method="eap")
    first.top(20).save(other)
    table = first.compare(first.top(20))
    assert len(table) == len(first.graph.edges) and (table["score"] == table["score_other"]).all()
    at = opened(run="ioi-circuit", other="other")
    both, mine = first.top(20).n_edges, first.n_edges
    assert f"{both} edges in both, {mine - both} only in ioi-circuit, 0 only in other" in texts(at)
    assert "L2H3 → logits" in set(at.dataframe[0].value["edge"])
    refused = texts(opened(run="ioi-circuit", other="ioi-heads"))
    assert "ioi-circuit is circuit, ioi-heads is ablate" in refused and "two circuits" in refused


def test_two_trainings_are_held_beside_each_other(workspace):
    other = write_run(workspace / "saes" / "wide", "sae", architecture="topk", d_sae=16, k=2, seed=0)
    write_log(other, steps=5)
    at = opened(sae="demo", other="wide")
    table = at.dataframe[0].value.set_index("what")
    assert tuple(table.loc["d_sae"]) == ("8", "16") and "architecture" not in table.index
    spec = json.loads(at.get("plotly_chart")[0].proto.spec)
    assert [trace["name"] for trace in spec["data"][:2]] == ["demo", "wide"]
    at = opened()
    assert at.selectbox(key="compare-family").options == ["effects", "dictionaries"]
    assert "No log of both" in texts(opened(sae="demo", other="bare"))


def bar_of(at: AppTest) -> dict[str, str]:
    """The newest links of the bar: title -> parameters."""
    protos = [element.proto for element in at.get("page_link")]
    return {proto.label: proto.query_string for proto in protos if proto.label in BAR}


def test_the_bar_keeps_what_applies_and_drops_what_does_not(workspace):
    at = opened("ablation", run="ioi-heads", head="L1H2", method="zero", prompt="3")
    links = bar_of(at)
    assert links["Ablation"] == "run=ioi-heads&method=zero&head=L1H2&prompt=3"
    assert links["Attention"] == "run=ioi-heads&prompt=3&head=L1H2" == links["Prompt"]
    assert links["Circuit"] == "head=L1H2" and links["Patching"] == ""  # that of a stream has no heads
    assert links["Steer"] == "run=ioi-heads&prompt=3" and not links["Runs"] and not links["Jobs"]
    at.selectbox(key="choose-head").select("L3.mlp").run()
    assert "head=L3.mlp" in bar_of(at)["Circuit"] and "head=" not in bar_of(at)["Attention"]
    assert {link.label for link in page_links(at)}.isdisjoint(BAR)


def test_the_bar_leads_back_to_a_page_as_it_was_left():
    from app import state
    from app.components.bar import address

    left = {"run": "a", "method": "zero", "head": "L1H2", "prompt": "3"}
    seen = {state.ABLATION: left, state.ATTENTION: {"run": "a", "head": "L0H5", "prompt": "4", "weigh": "value"}}
    assert address(state.PROMPT, seen) == {"run": "a", "prompt": "4", "head": "L0H5"}
    typed = {state.ATTENTION: {"text": "Once", "pos": "2", "model": "m"}, state.FEATURE: {"sae": "s", "feature": "7"}}
    assert address(state.STEER, typed) == {"text": "Once", "pos": "2", "model": "m", "sae": "s", "feature": "7"}
    assert address(state.FEATURES, typed) == {"sae": "s"} and address(state.RUNS, typed) == {}


def test_the_bar_of_a_workspace_keeps_the_run_of_its_page(workspace):
    from app import state
    from app.components.bar import address

    seen = {state.ABLATION: {"run": "old", "method": "zero"}, state.ATTENTION: {"run": "ioi-heads", "head": "L0H5"}}
    assert address(state.ABLATION, seen) == {"run": "ioi-heads", "head": "L0H5"}  # another run: its own settings
    assert address(state.PATCHING, seen) == {} and address(state.CIRCUIT, seen) == {"head": "L0H5"}


def test_a_damaged_file_is_a_sentence_with_a_remedy(workspace):
    write_kind(workspace, "generate")
    (workspace / "runs" / "one" / "generation.json").write_text("[]")
    (workspace / "runs" / "ioi-patch" / "prompts.jsonl").write_text("[1]\n")
    (workspace / "saes" / "demo" / "features" / "latents.h5").write_bytes(b"no")
    (workspace / "saes" / "demo" / "metrics.json").write_text("[1]")
    pages = ((None, {"run": "one"}), ("patching", {}), ("feature", {"sae": "demo"}), ("training", {"sae": "demo"}))
    for page, query in pages:
        said = texts(opened(page, **query))
        assert "damaged, or half written. Make the result again" in said and "Traceback" not in said
