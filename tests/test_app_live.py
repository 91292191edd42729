"""The live pages on a tiny model: what they ask is what the library answers, each state is a link, text is inert."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

MAIN = Path(__file__).parent.parent / "app" / "main.py"
NASTY = "<img src=x onerror=alert(1)> $x$ :red[hi] **b** \u202eabc"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_dir, tiny_model, pairs, make_dictionary):
    """An ablation and a dictionary of the tiny model."""
    from interp.cli import main
    from sae.files import save

    folder = tmp_path_factory.mktemp("live")
    pairs.save(folder / "pairs.jsonl")
    argv = ["ablate", "--model", tiny_dir, "--task", folder / "pairs.jsonl", "--workspace", folder, "--out", "heads"]
    assert main(list(map(str, argv))) == 0
    save(make_dictionary(model=tiny_model.provenance()), folder / "saes" / "demo")
    run = json.loads((folder / "runs" / "heads" / "run.json").read_text())
    (folder / "saes" / "demo" / "run.json").write_text(json.dumps(run | {"kind": "sae", "status": "done"}))
    return folder


@pytest.fixture
def workspace(made, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--workspace", str(made)])
    return made


def opened(page: str, **query: str) -> AppTest:
    at = AppTest.from_file(str(MAIN), default_timeout=120)
    at.query_params.update({"model": "tiny"} | query)
    at.switch_page(f"views/{page}.py").run()
    assert not at.exception, at.exception[0].value
    return at


def texts(at: AppTest) -> str:
    kinds = ("title", "subheader", "text", "code", "info", "warning", "error")
    return "\n".join(str(element.value) for kind in kinds for element in at.get(kind))


def mounted(at: AppTest, name: str) -> list[dict]:
    found = [element.proto for element in at.get("bidi_component")]
    return [json.loads(proto.json) for proto in found if name in proto.component_name]


def test_the_prompt_page_shows_what_the_library_says(workspace, tiny_model):
    import interp

    at = opened("prompt", text="When Mary", pos="1")
    lens = interp.logit_lens(tiny_model, "When Mary", top=10)
    rows = lens.rows[lens.rows.layer == lens.rows.layer.max()]
    (strip,) = mounted(at, "token_strip")
    assert strip["strips"][0]["marked"] == 1 and len(strip["strips"][0]["tokens"]) == len(rows)
    np.testing.assert_allclose(strip["strips"][0]["values"][1:], -np.log(rows["prob"][:-1]), rtol=1e-5)
    assert list(at.dataframe[0].value["probability"]) == pytest.approx(rows.iloc[1]["top_prob"])
    grid, parts = mounted(at, "heat_grid")
    assert grid["rows"] == ["L1", "L0", "embed"] and grid["selected"] == "L1@1" and grid["unsigned"]
    written = interp.attribute_logits(tiny_model, "When Mary", answer=int(rows.iloc[1]["top_id"][0]), position=1)
    assert parts["values"][1][2] == pytest.approx(float(written.table().set_index("component").contribution["L1H2"]))
    assert "interp lens show 'When Mary' --model" in texts(at)


def test_latents_that_fire_are_those_of_the_dictionary(workspace, tiny_model):
    import sae

    at = opened("prompt", text="When Mary", pos="2", sae="demo")
    fired = sae.activity(tiny_model, sae.load(workspace / "saes" / "demo"), "When Mary")
    here = fired[fired.position == 2]
    assert list(at.dataframe[1].value["latent"]) == list(here["latent"])
    best = int(here.iloc[0]["latent"])
    at = opened("prompt", text="When Mary", sae="demo", feature=str(best), method="latent")
    mine = fired[fired.latent == best].set_index("position").activation
    values = mounted(at, "token_strip")[0]["strips"][0]["values"]
    assert [values[k] for k in mine.index] == pytest.approx(list(mine)) and sum(map(bool, values)) == len(mine)


def test_a_prompt_of_a_run_is_read_with_its_pair(workspace, tiny_model, pairs):
    import interp

    at = opened("attention", run="heads", prompt="3", head="L1H2", pos="changed")
    (seen,) = mounted(at, "patterns")
    tokens = pairs.prompts[3].clean_tokens
    assert seen["tokens"] == [t.replace(" ", "·") if set(t) == {" "} else t for t in seen["tokens"]]
    assert (seen["head"], seen["pos"], len(seen["tokens"])) == ("L1H2", 3, 9)
    pattern = interp.patterns(tiny_model, tokens).of("L1H2")
    table = at.dataframe[0].value.set_index("key")["value"]
    np.testing.assert_allclose(table.sort_index(), pattern[3, :4], rtol=1e-5)
    at = opened("attention", run="heads", prompt="3", head="L1H2", pos="3", weigh="difference")
    other = interp.patterns(tiny_model, pairs.prompts[3].corrupted_tokens).of("L1H2")
    table = at.dataframe[0].value.set_index("key")["value"]
    np.testing.assert_allclose(table.sort_index(), (pattern - other)[3, :4], atol=1e-6)
    assert "clean - corrupted: blue" in texts(at) and mounted(at, "patterns")[0]["signed"]
    assert f"other = interp.patterns(model, {list(pairs.prompts[3].corrupted_tokens)})" in texts(at)


def test_the_export_of_attention_is_what_is_shown(workspace, tiny_model, monkeypatch):
    import interp
    from app.components import live_source
    from interp.causal.edits import parse

    taken = {}
    monkeypatch.setattr(live_source, "exports", lambda run, table, figure: taken.update(table=table, figure=figure()))
    opened("attention", text="When Mary", edit="L0H1=0", head="L1H0", weigh="difference")
    edited = interp.patterns(tiny_model, "When Mary", edits=parse(tiny_model, "L0H1=0")).of("L1H0")
    difference = edited - interp.patterns(tiny_model, "When Mary").of("L1H0")
    table = taken["table"]
    np.testing.assert_allclose(table["value"], difference[table["query"], table["key"]], atol=1e-6)
    assert len(table) == len(difference) * (len(difference) + 1) // 2
    (heat,) = taken["figure"].data
    np.testing.assert_allclose(heat.z, difference, atol=1e-6)
    assert heat.zmin == -heat.zmax and "edited - not edited" in taken["figure"].layout.xaxis.title.text


def test_small_pictures_of_a_long_text_show_its_end(workspace):
    import base64

    at = opened("attention", text=("a b " * 29).strip(), head="L1H0", weigh="value")
    (seen,) = mounted(at, "patterns")
    n, side = len(seen["tokens"]), seen["small_n"]
    assert n > 56 and n % 2 == 1 and side == (n + 1) // 2
    small = np.frombuffer(base64.b64decode(seen["small"]), np.uint8).reshape(-1, side, side)
    large = np.frombuffer(base64.b64decode(seen["large"]), np.uint8).reshape(n, n)
    names = [f"L{layer}H{head}" for layer in seen["layers"] for head in range(seen["n_heads"])]
    np.testing.assert_array_equal(small[names.index("L1H0"), -1, :-1], large[-1, :-1].reshape(-1, 2).max(1))


def test_a_link_that_names_positions_edits_those_alone(workspace, tiny_model):
    import interp
    from interp.causal.edits import parse

    at = opened("steer", text="When Mary", edit="L0H1=0", where="1,2", n="20", seed="3", temperature="0.9")
    made = interp.generate(
        tiny_model, "When Mary", edits=parse(tiny_model, "L0H1=0"), max_new_tokens=20, seed=3, temperature=0.9,
        where=[1, 2],
    ).tokens()  # fmt: skip
    table = at.dataframe[0].value
    assert list(table[table.run == "edited"]["token"]) == list(made[made.run == "edited"]["token"])
    assert list(table[table.run == "edited"]["kl"]) == pytest.approx(list(made[made.run == "edited"]["kl"]), abs=1e-6)
    assert "--where 1,2" in texts(at) and "where=[1, 2]" in texts(at)
    assert "All are edited." in texts(opened("steer", text="When Mary", edit="L0H1=0", where="everywhere"))


def test_an_edited_run_is_looked_at_under_its_edits(workspace, tiny_model):
    import interp
    from interp.causal.edits import parse

    at = opened("attention", text="When Mary", edit="L0H1=0", head="L1H0", weigh="value")
    seen = interp.patterns(tiny_model, "When Mary", edits=parse(tiny_model, "L0H1=0"))
    table = at.dataframe[0].value.set_index("key")["value"]
    np.testing.assert_allclose(table.sort_index(), seen.of("L1H0", weighted=True)[-1], rtol=1e-5)
    assert "--edit L0H1=0" in texts(at) and "parse(model, 'L0H1=0')" in texts(at)


def test_steering_writes_what_the_command_writes(workspace, tiny_model):
    import interp
    from interp.causal.edits import parse

    at = opened("steer", text="When Mary", edit="L0H1=0, L1.mlp*0.5", n="20", seed="3", temperature="0.9")
    made = interp.generate(
        tiny_model, "When Mary", edits=parse(tiny_model, "L0H1=0, L1.mlp*0.5"), max_new_tokens=20, seed=3,
        temperature=0.9,
    ).tokens()  # fmt: skip
    strips = mounted(at, "token_strip")[0]["strips"]
    assert [strip["head"] for strip in strips] == ["edited", "baseline"]
    for strip in strips:
        mine = made[made.run == strip["head"]]
        assert strip["values"][-len(mine) :] == pytest.approx(list(mine.kl), abs=1e-6)
    table = at.dataframe[0].value
    for run, mine in made.groupby("run"):
        assert list(table[table.run == run]["token"]) == list(mine.token)
    assert "interp generate 'When Mary' --where all --patterns live --max-new-tokens 20" in texts(at)


def test_nothing_is_written_before_it_is_asked_for(workspace):
    at = opened("steer", text="When Mary", n="20")
    assert "Nothing written yet" in texts(at) and not mounted(at, "token_strip")
    at.button[-1].click().run()
    assert "No edit: this is the model's own text" in texts(at) and len(mounted(at, "token_strip")[0]["strips"]) == 1
    assert at.query_params["seed"] in ("0", ["0"])  # the link now says all of it


def test_a_dictionary_made_anew_under_its_name_is_read_anew(workspace, tiny_model, make_dictionary):
    import sae
    from sae.files import save

    folder = workspace / "saes" / "again"
    for seed in (1, 2):
        save(make_dictionary(seed=seed, model=tiny_model.provenance()), folder)
        said = json.loads((workspace / "saes" / "demo" / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(said | {"started": f"2026-01-0{seed}T00:00:00Z"}))
        at = opened("prompt", text="When Mary", pos="2", sae="again", edit="again/3=6")
        dct = sae.load(folder)
        edits = edits_of(tiny_model, "again/3=6", {"again": dct})
        fired = sae.activity(tiny_model, dct, "When Mary", edits=edits)
        assert list(at.dataframe[1].value["latent"]) == list(fired[fired.position == 2]["latent"])
        rows = output_of(tiny_model, "When Mary", edits)
        assert list(at.dataframe[0].value["probability"]) == pytest.approx(rows.iloc[2]["top_prob"])


def edits_of(model, specs, dictionaries):
    from interp.causal.edits import parse

    return parse(model, specs, dictionaries=dictionaries)


def output_of(model, text, edits):
    import interp

    rows = interp.logit_lens(model, text, top=10, edits=edits).rows
    return rows[rows.layer == rows.layer.max()]


def test_a_dictionary_of_another_model_edits_nothing(workspace, make_dictionary):
    from sae.files import save

    save(make_dictionary(), workspace / "saes" / "foreign")
    said = json.loads((workspace / "saes" / "demo" / "run.json").read_text())
    said["model"] = {"name": "other", "fingerprint": "sha256:other"}
    (workspace / "saes" / "foreign" / "run.json").write_text(json.dumps(said))
    said = texts(opened("steer", text="When Mary", edit="foreign/3=6"))
    shutil.rmtree(workspace / "saes" / "foreign")
    assert 'the dictionary was trained on "other"' in said and "Traceback" not in said


@pytest.mark.parametrize("query", [{"pos": "--1"}, {"seed": "9999999", "temperature": "9.999"}, {"n": "0"}])
def test_any_address_that_has_the_form_opens(workspace, query):
    for page in ("prompt", "attention", "steer"):
        said = texts(opened(page, text="When Mary", **query))
        assert "cannot be shown" not in said and "Ignored in the address" not in said


def test_the_name_on_the_slider_is_no_markup(workspace):
    at = opened("steer", text="When Mary", edit="demo/3*2")
    assert at.slider[0].label == "Strength of demo\\/3"


def test_pairs_that_are_alike_are_told_apart_by_number(workspace):
    prompts = workspace / "runs" / "heads" / "prompts.jsonl"
    lines = prompts.read_text().splitlines()
    prompts.write_text("\n".join([lines[0], lines[0], *lines[2:]]) + "\n")
    try:
        at = opened("attention", run="heads", prompt="1")
        assert at.number_input(key="asked-prompt").value == 1
    finally:
        prompts.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("page", ["prompt", "attention", "steer"])
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"model": "bundle"}, 'No model "bundle" in this workspace: this is bundled'),
        ({"edit": "L9H9=0"}, 'no component "L9H9"'),
        ({"edit": "demi/3=4"}, 'no "demi" in this workspace. Nearest: demo'),
        ({"edit": "joy@1.resid_pre+4"}, 'no "joy" in this workspace'),
        ({"edit": "../x/3=4"}, 'no "../x" in this workspace'),
        ({"text": "a b " * 200}, "reads at most 64"),
        ({"run": "nothing", "text": ""}, 'no "nothing" in this workspace'),
    ],
)
def test_what_cannot_be_asked_is_one_line(workspace, page, query, message):
    at = opened(page, **{"text": "When Mary"} | query)
    said = texts(at)
    assert message in said and "Traceback" not in said


@pytest.mark.parametrize("page", ["prompt", "attention", "steer"])
def test_text_typed_in_is_never_markup(workspace, page):
    at = opened(page, text=NASTY, seed="0", n="20")
    assert not at.get("markdown") or all("onerror" not in str(element.value) for element in at.get("markdown"))
    shown = json.dumps(mounted(at, "patterns" if page == "attention" else "token_strip"))
    assert "\u202e" not in shown


def test_models_are_those_of_the_workspace_and_none_is_looked_up(workspace, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    at = opened("prompt", text="When Mary", model="gpt2")
    assert 'No model "gpt2" in this workspace: this is bundled' in texts(at)
    assert list(at.selectbox(key="choose-model").options) == ["bundled", "tiny"]


def test_the_tokens_that_a_head_moves_are_those_whose_loss_changes(workspace, tiny_model):
    import interp
    from interp.causal.edits import parse

    at = opened("prompt", text="When Mary", edit="L0H1=0", method="change", pos="2")
    edited, plain = (
        interp.logit_lens(tiny_model, "When Mary", edits=parse(tiny_model, spec) if spec else None).rows
        for spec in ("L0H1=0", "")
    )
    change = [
        -np.log(rows[rows.layer == 1].sort_values("position")["prob"].to_numpy()[:-1]) for rows in (edited, plain)
    ]
    values = mounted(at, "token_strip")[0]["strips"][0]["values"]
    np.testing.assert_allclose(values[1:], np.abs(change[0] - change[1]), atol=1e-5)
    assert "loss with the edits minus loss without" in texts(at) and "without the edits" in texts(at)


def test_runs_of_heads_and_of_directions_show_the_figure_that_a_notebook_shows(
    tiny_model, pairs, tmp_path, monkeypatch
):
    import interp
    from app.components.findings import MAKERS

    monkeypatch.setattr("sys.argv", ["main.py", "--workspace", str(tmp_path)])
    found = interp.find_direction(tiny_model, pairs, position="changed", site="0.resid_post")
    for name, result in (
        ("heads.parquet", interp.head_scores(tiny_model, n=2, length=4)), ("direction.json", found),
        ("dose.parquet", interp.dose_response(tiny_model, found, pairs, strengths=[2.0], n_random=1)),
    ):  # fmt: skip
        result.save(tmp_path / name)
        first = next(iter(MAKERS[name](tmp_path / name, {}).figures.values()))
        assert first().to_json() == result.figure().to_json()
