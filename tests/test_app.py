"""The pages of the app on a small workspace, written here file by file as the contract has them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from ports import free_port
from streamlit.testing.v1 import AppTest

MAIN = Path(__file__).parent.parent / "app" / "main.py"
NASTY = ["<img src=x onerror=alert(1)>", "</script>", "$x$", ":red[hi]", "\u202eabc", "\n", " the"]
N_LAYERS, N_HEADS, N_PROMPTS = 4, 6, 40
STRONGEST = "L2H3"
BAR = ("Runs", "Prompt", "Attention", "Ablation", "Patching", "Circuit", "Features", "Feature", "Steer", "Training",
       "Lists", "Jobs")  # fmt: skip


def write_run(folder: Path, kind: str, *, status: str = "done", started: str = "2026-01-02T00:00Z", **config) -> Path:
    folder.mkdir(parents=True)
    run = {
        "kind": kind, "status": status, "config": config,
        "command": ["interp", kind, "--n", "40", "--out", folder.name],
        "model": {"name": "bundled", "revision": None, "fingerprint": "sha256:0123", "dtype": "float32"}, "seed": 7,
        "versions": {"interp": "0.1.0"}, "started": started, "finished": started, "device": "cpu",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def effects_table(values: dict, baseline: dict[str, np.ndarray], places: list[tuple]) -> pd.DataFrame:
    rows = []
    for (method, metric), of_all in values.items():
        for (component, kind, layer, index, position), after in zip(places, of_all, strict=True):
            effect = after - baseline[metric]
            half = 2 * effect.std() / np.sqrt(effect.size)
            rows.append({
                "component": component, "kind": kind, "layer": layer, "index": index, "position": position,
                "method": method, "metric": metric, "baseline": baseline[metric].mean(), "value": after.mean(),
                "effect": effect.mean(), "effect_std": effect.std(), "ci_low": effect.mean() - half,
                "ci_high": effect.mean() + half, "n": effect.size,
            })  # fmt: skip
    return pd.DataFrame(rows)


def write_effects(folder: Path, places: list[tuple], pairs: list[tuple], *, normalized: bool = False) -> None:
    rng = np.random.default_rng(0)
    baseline = {metric: rng.normal(3, 0.4, N_PROMPTS).astype("float32") for _, metric in pairs}
    size = np.array([-2.0 if place[0] == STRONGEST else 0.3 * rng.normal() for place in places])
    sign = {"logit_diff": 1, "loss": -1}
    values = {
        (method, metric): (
            baseline[metric] + sign[metric] * (size[:, None] + 0.2 * rng.normal(size=(len(places), N_PROMPTS)))
        ).astype("float32")
        for method, metric in pairs
    }
    table = effects_table(values, baseline, places)
    if normalized:
        table["normalized"] = np.linspace(0, 1, len(table))
    table.to_parquet(folder / "effects.parquet")
    with h5py.File(folder / "effects.h5", "w") as file:
        for (method, metric), array in values.items():
            file[f"values/{method}/{metric}"] = array
        for metric, array in baseline.items():
            file[f"baseline/{metric}"] = array
    return table


def write_features(folder: Path) -> None:
    (folder / "features").mkdir()
    latents = pd.DataFrame({
        "latent": range(8), "density": [0.0, 0.01, 0.02, 0.3, 0.001, 0.002, 0.003, 0.004],
        "n_fires": [0, 10, 20, 300, 1, 2, 3, 4], "max_activation": [0.0, 5, 4, 9, 3, 2, 1, 0.5],
        "top_token_text": ["", *NASTY], "dead": [True] + [False] * 7,
    })  # fmt: skip
    latents.to_parquet(folder / "features" / "latents.parquet")
    strength = np.tile([5.0, 4.0, 3.0], 7)  # three top examples of every latent but the dead one
    values = np.tile(np.array([0.0, 1.0, 0.5, 0.0, 0.0, 0.2, 0.1], np.float32), (21, 1))
    values[:, 3] = strength
    text = [token.encode() for token in NASTY]
    with h5py.File(folder / "features" / "latents.h5", "w") as file:
        columns = {
            "start": [0, 0, *range(3, 22, 3)], "kind": [0] * 21, "quantile": [-1] * 21, "activation": strength,
            "row": [0, 1, 2] * 7, "sequence": [0, 1, 2] * 7, "position": [3] * 21, "token_index": [3] * 21,
            "tokens": np.tile(np.arange(7), (21, 1)), "values": values,
        }  # fmt: skip
        for name, column in columns.items():
            file[f"examples/{name}"] = column
        file["histogram/counts"], file["histogram/low"] = np.tile(np.arange(4), (8, 1)), np.zeros(8)
        file["histogram/high"] = np.full(8, 5.0)
        for by in ("cosine", "correlation"):
            file[f"neighbours/{by}/latent"], file[f"neighbours/{by}/value"] = (
                np.tile([3, 5], (8, 1)),
                np.full((8, 2), 0.5),
            )
        for name, effect in (("raised", 2.0), ("lowered", -2.0)):
            file[f"logits/{name}/token"] = np.tile([0, 1, 5], (8, 1))
            file[f"logits/{name}/effect"] = np.full((8, 3), effect)
        file["text/bytes"] = np.frombuffer(b"".join(text), np.uint8)
        file["text/start"] = np.cumsum([0, *map(len, text)])


def pair_of_prompts() -> dict:
    """A pair whose tokens are nasty; the third one is swapped."""
    corrupted = [*NASTY[:2], " other", *NASTY[3:]]
    return {
        "clean": "".join(NASTY), "corrupted": "".join(corrupted), "answer": " Mary", "wrong": "<b>John",
        "clean_pieces": NASTY, "corrupted_pieces": corrupted, "clean_tokens": [1, 2, 3, 4, 5, 6, 7],
        "corrupted_tokens": [1, 2, 9, 4, 5, 6, 7], "positions": {"IO": 2, "S2": 4, "end": 6},
    }  # fmt: skip


def write_circuits(workspace: Path) -> None:
    """A circuit of edges of a model of 4 layers and 6 heads, and one of latents of the dictionary demo."""
    from interp.causal.circuits import Circuit
    from interp.causal.graph import Graph
    from sae.circuits import FeatureCircuit

    graph = Graph(N_LAYERS, N_HEADS, N_HEADS, True, False)
    scores = np.random.default_rng(0).normal(size=graph.allowed.shape) * 0.1
    for edge in ("input->a2.h3<v>", "a2.h3->logits"):
        scores[graph.at[edge]] = 5
    path = write_run(workspace / "runs" / "ioi-circuit", "circuit", started="2026-01-01T12:00Z", task="ioi",
                     method="eap-ig")  # fmt: skip
    Circuit(graph, scores, graph.allowed, {"task": "ioi", "method": "eap-ig"}).top(60).save(path)
    (path / "verdict.txt").write_text("60 edges: faithfulness 0.9 <b>")
    rows = {"share": [0.01, 0.1, 1.0], "n_edges": [5, 60, 600]}
    rows |= {name: [0.2, 0.9, 1.0] for name in ("faithfulness", "ci_low", "ci_high")}
    rows |= {name: [0.0, 0.1, 1.0] for name in ("random", "random_low", "random_high")}
    pd.DataFrame(rows).to_parquet(path / "curve.parquet")
    area = {"area": ["CPR"], "value": [0.9], "ci_low": [0.8], "ci_high": [1.0], "random": [0.2]}
    pd.DataFrame(area).to_parquet(path / "areas.parquet")
    path = write_run(workspace / "runs" / "ioi-latents", "circuit-features", started="2026-01-01T11:00Z", task="ioi",
                     sae=["demo"])  # fmt: skip
    nodes = pd.DataFrame({
        "node": ["demo/error", "demo/3", "demo/5"], "dictionary": "demo", "kind": ["error", "latent", "latent"],
        "latent": [-1, 3, 5], "site": "2.resid_post", "layer": 2, "score": [4.0, 2.0, -1.0], "in_circuit": True,
    })  # fmt: skip
    edges = pd.DataFrame({"sender": ["demo/3"], "receiver": ["logits"], "score": [1.5]})
    FeatureCircuit(nodes, edges, {"absolute": True}).save(path)


def write_log(folder: Path, *, steps: int) -> None:
    log = pd.DataFrame({"step": range(1, steps + 1), "tokens": [100 * step for step in range(1, steps + 1)]})
    log.assign(loss=1 / log["step"], fvu=0.5, aux=0, l0=2, dead=0, lr=1e-3).to_csv(
        folder / "train_log.csv", index=False
    )


def write_workspace(workspace: Path) -> Path:
    """Two ablations, a patching, two circuits, two dictionaries (one without features), a store."""
    heads = [(f"L{i}H{j}", "head", i, j, "all") for i in range(N_LAYERS) for j in range(N_HEADS)]
    mlps = [(f"L{i}.mlp", "mlp", i, -1, "all") for i in range(N_LAYERS)]
    run = write_run(workspace / "runs" / "ioi-heads", "ablate", task="ioi", components="heads", n=N_PROMPTS)
    pairs = [("mean", "logit_diff"), ("mean", "loss"), ("zero", "logit_diff")]
    write_effects(run, heads + mlps, pairs)
    pairs = [{"clean": f"{NASTY[i % 7]} prompt {i}", "answer": " Mary"} for i in range(N_PROMPTS)]
    (run / "prompts.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    other = write_run(workspace / "runs" / "old", "ablate", started="2025-01-01T00:00:00Z", status="interrupted")
    write_effects(other, heads[:6], [("zero", "logit_diff")])
    grid = [(f"L{i}.resid_pre", "resid_pre", i, -1, p) for i in range(N_LAYERS) for p in ("IO", "S2", "end")]
    patch = write_run(workspace / "runs" / "ioi-patch", "patch", task="ioi", site="resid_pre", by=["layer", "position"])
    write_effects(patch, grid, [("denoise", "logit_diff")], normalized=True)
    (patch / "prompts.jsonl").write_text("\n".join([json.dumps(pair_of_prompts())] * N_PROMPTS), encoding="utf-8")
    write_circuits(workspace)
    dictionary = write_run(
        workspace / "saes" / "demo", "sae", architecture="topk", site="blocks.2.hook_resid_post", d_sae=8, k=2, seed=0,
        n_tokens=2000,
    )  # fmt: skip
    metrics = {"l0": 32.0, "fvu": 0.12, "ce_recovered_mean": 0.95, "train_l0": 31.0, "train_fvu": 0.11, "train_dead": 1}
    (dictionary / "metrics.json").write_text(json.dumps(metrics))
    write_log(dictionary, steps=20)
    write_features(dictionary)
    write_run(workspace / "saes" / "bare", "sae", started="2025-01-01T00:00:00Z", store="workspace/stores/demo")
    write_run(workspace / "stores" / "demo", "record", sites=["2.resid_post"])
    return workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["main.py", "--workspace", str(tmp_path)])
    return write_workspace(tmp_path)


def opened(page: str | None = None, **query: str) -> AppTest:
    """The app on a page, as if the address had been typed."""
    at = AppTest.from_file(str(MAIN), default_timeout=120).run()
    if page:
        at.switch_page(f"views/{page}.py")
    for name, value in query.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception, at.exception[0].value
    assert "This page cannot be shown" not in texts(at), texts(at)
    return at


def texts(at: AppTest) -> str:
    """All the text of a page that stands in elements of Streamlit's own."""
    kinds = ("title", "subheader", "text", "caption", "code", "info", "warning", "error", "markdown")
    return "\n".join(str(element.value) for kind in kinds for element in at.get(kind))


def page_links(at: AppTest) -> list:
    """The links on a page, those of the bar of pages left out."""
    protos = [element.proto for element in at.get("page_link")]
    return [proto for proto in protos if proto.label not in BAR]


def mounted(at: AppTest, name: str) -> dict:
    """What was passed to the one component of that name."""
    protos = [element.proto for element in at.get("bidi_component")]
    (proto,) = [proto for proto in protos if name in proto.component_name]
    return json.loads(proto.json)


def test_home_lists_every_result_with_a_link_to_its_page(workspace):
    at = opened()
    links = {link.label.replace("\\", ""): link for link in page_links(at)}
    names = {"ioi-heads", "old", "ioi-patch", "ioi-circuit", "ioi-latents", "demo", "bare"}
    assert set(links) == names and len(page_links(at)) == len(names)
    here = {button.label.replace("\\", ""): button for button in at.button}
    assert {"demo", "Compare →"} <= set(here)  # a store, two runs: shown by this page, in an address of their own
    assert (links["ioi-heads"].page, links["ioi-heads"].query_string) == ("ablation", "run=ioi-heads")
    assert (links["bare"].page, links["bare"].query_string) == ("features", "sae=bare")
    assert "(interrupted)" in texts(at)
    assert (links["ioi-latents"].page, links["ioi-latents"].query_string) == ("circuit", "run=ioi-latents")

    def listed() -> list[str]:
        return [link.label.replace("\\", "") for link in page_links(at) if "Compare" not in link.label]

    at.text_input(key="runs-filter").set_value("patch").run()
    assert listed() == ["ioi-patch"]
    at.text_input(key="runs-filter").set_value("").run()
    at.selectbox(key="runs-status").select("interrupted").run()
    assert listed() == ["old"]
    at.selectbox(key="runs-status").select("any status").run()
    at.selectbox(key="runs-kind").select("circuit").run()
    assert listed() == ["ioi-circuit"]
    here["demo"].click().run()
    assert at.query_params["store"] in ("demo", ["demo"]) and at.title[0].value == "demo"


def test_an_empty_workspace_gives_the_command_that_fills_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--workspace", str(tmp_path)])
    assert opened().code[0].value == f"interp demo --workspace {tmp_path}"
    assert opened("ablation").code[0].value.startswith("interp ablate ")
    assert opened("patching").code[0].value.startswith("interp patch ")
    assert opened("circuit").code[0].value.startswith("interp circuit find ")
    assert opened("features").code[0].value.startswith("interp sae train ")
    assert opened("training").code[0].value.startswith("interp sae train ")
    assert opened("feature").code[0].value.startswith("interp sae features ")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert opened().code[0].value == "interp demo"


def test_the_page_of_a_run_shows_its_figure_and_provenance(workspace):
    at = opened(run="ioi-patch")
    (chart,) = at.get("plotly_chart")
    assert "normalized: 0 = as corrupted, 1 = as clean" in chart.proto.spec
    assert "Files: effects.h5  effects.parquet  prompts.jsonl  run.json" in texts(at)
    assert "interp patch --n 40 --out ioi-patch" in texts(at)
    assert "interp record" in texts(opened(store="demo"))
    assert 'no "iou-patch" in this workspace. Nearest: ioi-patch' in texts(opened(run="iou-patch"))


def test_ablation_opens_on_the_newest_run_and_its_strongest_component(workspace):
    at = opened("ablation")
    data = mounted(at, "heat_grid")
    assert data["columns"] == [*(f"H{j}" for j in range(N_HEADS)), "MLP"] and data["rows"] == ["L0", "L1", "L2", "L3"]
    assert data["selected"] == STRONGEST and data["names"][2][3] == STRONGEST
    assert data["centre"] == 0 and data["limit"] == pytest.approx(abs(data["values"][2][3]))
    assert not data["red_is_positive"]
    assert "effect = ablated - clean; red = the component helped" in texts(at)
    assert STRONGEST in [element.value.replace("\\", "") for element in at.subheader]
    assert float(at.metric[0].value) == pytest.approx(data["values"][2][3], abs=1e-3)
    assert at.dataframe[0].value["component"].iloc[0] == STRONGEST
    assert "interp ablate --n 40 --out ioi-heads" in texts(at)


def test_what_is_chosen_is_in_the_address_and_the_address_chooses(workspace):
    at = opened("ablation", run="ioi-heads", head="L1.mlp", metric="loss")
    data = mounted(at, "heat_grid")
    assert data["selected"] == "L1.mlp" and data["red_is_positive"]
    assert at.selectbox(key="choose-metric").value == "loss"
    at.selectbox(key="choose-head").select("L0H5").run()
    assert at.query_params["head"] == "L0H5" and mounted(at, "heat_grid")["selected"] == "L0H5"
    at.selectbox(key="choose-run").select("old").run()
    assert at.query_params["run"] == "old" and "head" not in at.query_params
    assert 'This run has no "loss"; showing logit_diff.' in texts(at)
    unknown = opened("ablation", head="L9H9")
    assert f'no component "L9H9"; showing the strongest, {STRONGEST}' in texts(unknown)


def test_the_prompts_of_a_component_are_those_of_effects_h5(workspace):
    at = opened("ablation", run="ioi-heads", head="L3.mlp", method="zero")
    with h5py.File(workspace / "runs" / "ioi-heads" / "effects.h5") as file:
        effect = file["values/zero/logit_diff"][-1].astype(float) - file["baseline/logit_diff"][:]
    shown = at.dataframe[1].value.sort_index()
    np.testing.assert_allclose(shown["effect"], effect, atol=1e-6)
    assert shown["prompt text"].iloc[0] == "<img src=x onerror=alert(1)> prompt 0"
    assert float(at.metric[0].value) == pytest.approx(effect.mean(), abs=1e-3)


@pytest.mark.parametrize("script", ["heat_grid.py", "prompt_pair.py", "token_strip.py"])
def test_components_write_text_only_through_text_content(script):
    source = (MAIN.parent / "components" / script).read_text()
    assert "textContent" in source
    assert not any(word in source for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"))


@pytest.mark.parametrize("name", ["../secret", "..", "a/b", "a\\b", "/etc", ".hidden", "a..b", "<b>", ""])
def test_names_that_could_be_paths_are_not_read(workspace, name):
    (workspace.parent / "secret").mkdir(exist_ok=True)
    for page, field in (("ablation", "run"), ("feature", "sae"), (None, "store"), (None, "other")):
        at = opened(page, **{field: name})
        assert f"Ignored in the address, not the form of a name or number: {field}." in texts(at)


def test_links_that_lead_out_of_the_workspace_are_not_followed(workspace, tmp_path_factory):
    outside = write_workspace(tmp_path_factory.mktemp("outside"))
    (workspace / "runs" / "linked").symlink_to(outside / "runs" / "ioi-heads")
    run = write_run(workspace / "runs" / "half", "ablate")
    for name in ("effects.parquet", "effects.h5"):
        (run / name).symlink_to(outside / "runs" / "ioi-heads" / name)
    assert 'no "linked" in this workspace' in texts(opened("ablation", run="linked"))
    assert "effects.parquet leads out of the workspace" in texts(opened("ablation", run="half"))


def test_a_broken_file_is_one_line_and_not_a_crash(workspace):
    run = workspace / "runs" / "ioi-heads"
    (run / "effects.parquet").write_bytes(b"not parquet")
    (workspace / "saes" / "demo" / "metrics.json").write_text("{")
    write_run(workspace / "runs" / "nothing", "ablate")
    assert "This run cannot be shown." in texts(opened("ablation", run="ioi-heads"))
    assert "This run cannot be shown." in texts(opened("ablation", run="nothing"))
    assert "This dictionary cannot be shown." in texts(opened("features", sae="demo"))


def test_pages_import_no_torch(workspace):
    script = (
        "import sys; sys.argv = ['main.py', '--workspace', sys.argv[1]]\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"at = AppTest.from_file({str(MAIN)!r}, default_timeout=120).run()\n"
        "for page in ('ablation', 'patching', 'circuit', 'features', 'feature', 'training'):\n"
        "    at.switch_page(f'views/{page}.py').run()\n"
        "    assert not at.exception\n"
        "assert not {'torch', 'transformer_lens', 'transformers'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(workspace)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=MAIN.parent.parent)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_wants_a_workspace_and_a_free_port(workspace, tmp_path_factory, capsys):
    from interp.cli import main

    missing = tmp_path_factory.mktemp("none") / "workspace"
    assert main(["app", "--workspace", str(missing)]) == 2
    assert f"no workspace at {missing}. `interp demo --workspace {missing}` makes one." in capsys.readouterr().err
    assert not missing.exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["app", "--workspace", str(workspace), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_the_command_runs_streamlit_on_this_machine_only(workspace, monkeypatch, capsys):
    from interp.cli import main

    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    assert main(["app", "--workspace", str(workspace), "--port", str(free_port()), "--headless"]) == 0
    ((_, arguments, environment),) = calls
    assert arguments[1:4] == ["-m", "streamlit", "run"] and Path(arguments[4]) == MAIN
    settings = {"--server.address=127.0.0.1", "--server.headless=true", "--browser.gatherUsageStats=false"}
    assert settings <= set(arguments)
    assert arguments[-3:] == ["--", "--workspace", str(workspace)]
    assert environment["PYTHONPATH"].startswith(str(MAIN.parent.parent))
    assert "http://127.0.0.1:" in capsys.readouterr().out
