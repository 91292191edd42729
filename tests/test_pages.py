"""The pages about stored results, each on the small workspace of test_app and in each of its states."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from test_app import N_HEADS, NASTY, mounted, opened, texts, workspace, write_log, write_run

__all__ = ["workspace"]


def links_of(at) -> dict[str, tuple[str, str]]:
    """Label of a link -> its page and parameters."""
    protos = [element.proto for element in at.get("page_link")]
    return {proto.label.replace("\\", ""): (proto.page, proto.query_string) for proto in protos}


def figure(at, number: int = 0) -> dict:
    return json.loads(at.get("plotly_chart")[number].proto.spec)


def test_patching_shows_the_map_the_prompts_and_the_cell_in_the_address(workspace):
    at = opened("patching", head="L1.resid_pre", pos="S2")
    grid = mounted(at, "heat_grid")
    assert grid["columns"] == ["IO", "S2", "end"] and grid["rows"][1] == "L1.resid_pre"
    assert grid["selected"] == grid["names"][1][1] == "L1.resid_pre@S2"
    pair = mounted(at, "prompt_pair")
    assert pair["swapped"] == [False, False, True, False, False, False, False]
    assert pair["clean"][:4] == NASTY[:4] and pair["clean"][5] == "↵" and pair["corrupted"][2] == " other"
    assert pair["names"] == [None, None, "IO", None, "S2", None, "end"] and pair["selected"] == "S2"
    assert "normalized: 0 = as corrupted, 1 = as clean" in texts(at) and "logit_diff: 0 is " in texts(at)
    assert at.selectbox(key="choose-run").options == ["ioi-patch · resid_pre by layer, position, denoise"]
    at.selectbox(key="choose-pos").select("end").run()
    assert mounted(at, "heat_grid")["selected"] == "L1.resid_pre@end" and at.query_params["pos"] == "end"
    assert 'This run has no position "zz"' in texts(opened("patching", pos="zz"))


def test_a_patching_of_heads_is_a_map_of_heads_with_links_to_the_same_head(workspace):
    path = write_run(workspace / "runs" / "z", "patch", task="ioi", site="z", by=["layer", "head"], method="noise")
    rows = pd.read_parquet(workspace / "runs" / "ioi-heads" / "effects.parquet")
    rows = rows[(rows["method"] == "mean") & (rows["kind"] == "head") & (rows["metric"] == "logit_diff")]
    rows.assign(method="noise", normalized=1 + rows["effect"] / 10).to_parquet(path / "effects.parquet")
    (path / "effects.h5").write_bytes((workspace / "runs" / "ioi-heads" / "effects.h5").read_bytes())
    import h5py

    with h5py.File(path / "effects.h5", "a") as file:
        file["values/noise/logit_diff"] = file["values/mean/logit_diff"][: len(rows)]
    at = opened("patching", run="z", head="L2H3")
    grid = mounted(at, "heat_grid")
    assert grid["columns"] == [f"H{j}" for j in range(N_HEADS)] and grid["selected"] == "L2H3" and grid["centre"] == 1
    assert links_of(at)["Ablate L2H3 →"] == ("ablation", "run=ioi-heads&head=L2H3")
    assert links_of(at)["L2H3 in the circuit →"] == ("circuit", "run=ioi-circuit&head=L2H3")
    assert "This run kept no prompts." in texts(at)
    (other,) = [button for button in at.button if button.label.startswith("resid")]
    other.click().run()  # of the same page: the address is written
    assert at.query_params["run"] in ("ioi-patch", ["ioi-patch"])
    at = opened("patching", run="z", head="L2H3")
    assert links_of(opened("ablation", head="L2H3"))["Patch L2H3 →"] == ("patching", "run=z&head=L2H3")


def test_circuit_shows_the_strongest_edges_and_the_node_in_the_address(workspace):
    at = opened("circuit", head="L2H3")
    assert "L2H3" in [element.value.replace("\\", "") for element in at.subheader]
    assert "60 edges: faithfulness 0.9 <b>" in texts(at) and "CPR 0.900" in texts(at)
    graph = figure(at)
    nodes = next(trace for trace in graph["data"] if trace["mode"] == "markers+text")
    assert nodes["customdata"][-1] == "logits" and "a2.h3" in nodes["customdata"]
    edges = next(trace for trace in graph["data"] if trace["mode"] == "markers")
    assert "a2.h3->logits" in edges["customdata"]
    own = next(table.value for table in at.dataframe if len(table.value) and "edge" in table.value
               and table.value["edge"].str.contains("L2H3").all())  # fmt: skip
    assert set(own["edge"]) >= {"L2H3 → logits", "embed → L2H3 v"}
    assert set(own["in circuit.json"]) >= {"a2.h3->logits", "input->a2.h3<v>"}
    names = dict(zip(nodes["customdata"], nodes["text"], strict=True))
    assert names["a2.h3"] == " L2H3" and "L2H3, in the file a2.h3" in nodes["hovertext"]
    assert "L2H3" in [element.value for element in opened("circuit", head="a2.h3").subheader]
    at.select_slider(key="circuit-size").set_value(5).run()
    assert at.query_params["n"] == "5"
    at.selectbox(key="choose-head").set_value(None).run()
    assert "head" not in at.query_params
    edge = opened("circuit", edge="a2.h3->logits")
    assert edge.metric[0].value == "+5" and "Ablate L2H3 →" in links_of(edge)
    assert "is not among these edges and nodes" in texts(opened("circuit", head="L9H9"))


def test_a_pinned_node_stays_in_the_graph_and_a_label_stands_beside_it(workspace):
    at = opened("circuit", head="L0H1", n="1519")
    at.toggle(key="pin-ioi-circuit-L0H1").set_value(True).run()
    kept = json.loads((workspace / "runs" / "ioi-circuit" / "notes.json").read_text())
    assert kept["pins"] == ["L0H1"]
    at.text_input(key="label-runs/ioi-circuit/L0H1").set_value("<i>copies").run()
    nodes = next(t for t in figure(opened("circuit", n="5"))["data"] if t["mode"] == "markers+text")
    assert nodes["text"][nodes["customdata"].index("a0.h1")] == " L0H1 &lt;i&gt;copies"


def test_a_circuit_of_latents_leads_to_the_latent(workspace):
    at = opened("circuit", run="ioi-latents", head="demo/3")
    assert links_of(at)["Latent demo/3 →"] == ("feature", "sae=demo&feature=3")
    assert "latent 3, at 2.resid_post" in texts(at)
    at.slider(key="nodes-ioi-latents").set_value(1).run()
    assert at.query_params["n"] == "1" and '"demo/3" is not among these nodes' in texts(at)
    back = links_of(opened("feature", sae="demo", feature="3"))
    assert back["In the circuit ioi-latents →"] == ("circuit", "run=ioi-latents&head=demo%2F3")


def test_features_lists_and_searches_latents(workspace):
    at = opened("features", sae="demo")
    assert [metric.value for metric in at.metric[:3]] == ["32.0", "0.120", "95.0%"]
    assert list(at.dataframe[0].value["latent"]) == [3, 1, 2, 4, 5, 6, 7]
    assert list(at.dataframe[0].value["top_token"][:2]) == ["$x$", NASTY[0]]
    for kind, latents in {"dead": [0], "dense": [3], "all": [3, 1, 2, 4, 5, 6, 7, 0]}.items():
        at.radio(key="latents-kind").set_value(kind).run()
        assert list(at.dataframe[0].value["latent"]) == latents
    at.selectbox(key="latents-order").select("latent").run()
    assert list(at.dataframe[0].value["latent"]) == list(range(8))
    at.text_input(key="latents-search").set_value("RED").run()  # the third token, at which every example stands
    assert set(at.dataframe[0].value["latent"]) == set(range(1, 8)) and set(at.dataframe[0].value["share"]) == {1.0}
    at.selectbox(key="latents-by").select("raised").run()
    assert not len(at.dataframe[0].value)
    at.text_input(key="latents-search").set_value("onerror").run()
    assert len(at.dataframe[0].value) == 8 and set(at.dataframe[0].value["share"].round(2)) == {0.33}
    assert "interp sae features bare --store demo" in texts(opened("features", sae="bare"))


def test_feature_shows_the_latent_in_the_address(workspace):
    at = opened("feature", sae="demo", feature="2")
    assert mounted(at, "token_strip")["label"] == "top examples of latent 2"
    raised, lowered, *near = (table.value for table in at.dataframe)
    assert (
        list(raised["effect"]) == [2.0] * 3 and list(lowered["effect"]) == [-2.0] * 3 and "↵" in list(raised["token"])
    )
    assert [list(table["latent"]) for table in near] == [[3, 5], [3, 5]]
    at.number_input(key="latent-number").set_value(4).run()
    assert at.query_params["feature"] == "4" and at.query_params["sae"] == "demo"
    assert "fired on no token" in texts(opened("feature", feature="0"))
    assert "No latent 99 here: they are numbered 0 to 7." in texts(opened("feature", feature="99"))


def test_token_text_reaches_the_page_only_as_component_data(workspace):
    at = opened("feature", sae="demo", feature="1")
    strips = mounted(at, "token_strip")["strips"]
    assert strips[0]["tokens"][:4] == NASTY[:4] and strips[0]["tokens"][4:] == ["\\u202eabc", "↵", " the"]
    everywhere = [opened(page) for page in ("ablation", "patching", "features", "circuit")]
    markup = "\n".join(link.proto.label for at in everywhere for link in at.get("page_link"))
    for token in NASTY[:4]:
        assert token not in markup
        assert all(token not in str(element.value) for at in everywhere for kind in ("markdown", "title", "subheader",
                   "caption", "info", "warning", "error") for element in at.get(kind))  # fmt: skip


def test_training_shows_the_log_and_follows_one_that_runs(workspace):
    at = opened("training", sae="demo")
    assert "2,000 tokens of 2,000 (100%): loss 0.05" in texts(at)
    assert [trace["name"] for trace in figure(at)["data"]] == ["loss", "FVU", "L0", "dead latents"]
    assert list(at.dataframe[-1].value["name"]) == ["demo"] and "training: bare." in texts(at)
    path = write_run(workspace / "saes" / "new", "sae", status="running", started="2026-02-01T00:00Z", n_tokens=4000)
    at = opened("training")
    assert "Its first lines are not written yet." in texts(at) and "Training: its numbers are measured" in texts(at)
    write_log(path, steps=10)
    at.run()
    assert "1,000 tokens of 4,000 (25%)" in texts(at)
    assert "interp sae eval bare" in texts(opened("training", sae="bare"))
    home = links_of(opened())
    assert home["new"] == ("training", "sae=new") and home["demo"][0] != "training"


def test_two_runs_of_the_same_prompts_are_held_beside_each_other(workspace):
    at = opened(run="ioi-heads", other="old")
    table = at.dataframe[0].value
    assert set(table["component"]) == {f"L0H{j}" for j in range(6)}
    np.testing.assert_allclose(table["difference"], table["effect"] - table["effect_other"], atol=1e-5)
    assert "old: ablate" in "".join(links_of(at))
    refused = texts(opened(run="ioi-heads", other="ioi-patch"))
    assert "These two cannot be compared." in refused and "no row in common" in refused
    assert 'no "nothing" in this workspace' in texts(opened(run="ioi-heads", other="nothing"))


def test_a_run_that_is_being_written_says_so(workspace):
    for kind, page in (("patch", "patching"), ("ablate", "ablation"), ("circuit", "circuit")):
        write_run(workspace / "runs" / f"{kind}-now", kind, status="running", started="2027-01-01T00:00Z")
        assert "It is still running" in texts(opened(page, run=f"{kind}-now"))
    assert "It is still running" in texts(opened(run="patch-now"))


@pytest.mark.parametrize("content", ["", '{"config": 3, "model": [], "started": 5, "kind": "ablate"}'])
def test_a_broken_file_is_one_line_wherever_it_is_shown(workspace, content):
    for name in ("circuit.json", "verdict.txt"):
        (workspace / "runs" / "ioi-circuit" / name).write_text(content)
    (workspace / "runs" / "ioi-patch" / "effects.parquet").write_text(content)
    (workspace / "runs" / "ioi-latents" / "nodes.parquet").write_text(content)
    (workspace / "saes" / "demo" / "train_log.csv").write_text(content)
    (workspace / "runs" / "old" / "run.json").write_text(content)
    for page, query in (("circuit", {}), ("circuit", {"run": "ioi-latents"}), ("patching", {"run": "ioi-patch"})):
        assert "cannot be shown." in texts(opened(page, **query))
    for page in (None, "training", "ablation"):
        opened(page)


def test_an_attention_layer_leads_to_the_patching_of_its_output():
    from app.components.links import has

    config = {"site": "attn_out", "by": ["layer", "position"]}
    assert has(config, "L1.attn") and not has(config, "L1.mlp") and not has(config, "L1H2")
    assert has(config | {"site": "mlp_out"}, "L1.mlp") and has(config | {"by": "layer,head"}, "L1H2")


def test_a_run_of_texts_opens_on_what_it_wrote(workspace):
    path = write_run(workspace / "runs" / "said", "generate", prompts=["Once"])
    pd.DataFrame({"text": ["Once", " upon"], "kl": [0.0, 0.1]}).to_parquet(path / "tokens.parquet")
    from app import state

    page, query = state.place({"folder": "runs", "name": "said", "kind": "generate"})
    assert (page, query) == (state.RUNS, {"run": "said"})
    assert list(opened("runs", **query).dataframe[0].value["text"]) == ["Once", " upon"]
