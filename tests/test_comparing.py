"""Two relatives on one task: differences are those of two ablations; the way between them ends in them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from loras import GPT2, LLAMA, NEOX, write_lora


@pytest.fixture(scope="module")
def lora(tiny_dir, tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "lora", GPT2, base=str(tiny_dir), lora_alpha=2)


@pytest.fixture(scope="module")
def adapted(lora):
    from interp import load_model

    return load_model(str(lora))


def test_a_difference_is_the_effect_in_b_less_that_in_a(tiny_model, adapted, pairs):
    from interp import ablate, compare

    found = compare(tiny_model, adapted, pairs, metric=["logit_diff", "loss"])
    a, b = (ablate(model, pairs, components="heads, mlps", metric="loss") for model in (tiny_model, adapted))
    table = found.table()[found.table().metric == "loss"].reset_index(drop=True)
    assert list(table.component) == list(a.rows.component) and len(table) == 10
    each = b.of("mean", "loss") - a.of("mean", "loss")
    np.testing.assert_allclose(table.difference, each.mean(1), atol=1e-6)
    np.testing.assert_allclose(table.difference, table.effect_b - table.effect_a, atol=1e-6)
    assert (table.ci_low <= table.difference).all() and (table.difference <= table.ci_high).all()
    baselines = found.baselines().set_index("metric").loc["loss"]
    assert baselines.a == pytest.approx(a.baseline["loss"].mean()) and baselines.n == 12
    assert baselines.ci_low <= baselines.difference <= baselines.ci_high
    assert baselines.difference == pytest.approx((b.baseline["loss"] - a.baseline["loss"]).mean(), abs=1e-5)


def test_a_model_is_as_itself(tiny_model, pairs):
    from interp import compare

    found = compare(tiny_model, tiny_model, pairs)
    assert (found.rows.difference == 0).all() and (found.rows.q == 1).all()


def test_load_of_save_is_the_same(tiny_model, adapted, pairs, tmp_path):
    from interp import Comparison, compare
    from interp.errors import MissingFile

    found = compare(tiny_model, adapted, pairs, components="L0H1,L1H2")
    found.save(tmp_path / "c")
    again = Comparison.load(tmp_path / "c")
    pd.testing.assert_frame_equal(found.table(), again.table(), check_exact=True)
    pd.testing.assert_frame_equal(found.baselines(), again.baselines(), check_exact=True)
    with pytest.raises(MissingFile, match="interp compare A B"):
        Comparison.load(tmp_path)


@pytest.mark.parametrize(("family", "modules"), [("gpt2", None), ("llama", LLAMA), ("neox", NEOX)])
def test_the_way_ends_in_both_and_leaves_a_as_it_was(family, modules, tiny_model, adapted, pairs, make_model, tmp_path):
    from interp import ablate, along, load_model, merge

    one, two, folder = tiny_model, adapted, adapted.name
    if family != "gpt2":
        one = make_model(family)
        folder = str(write_lora(tmp_path / "lora", modules, base=one.name))
        two = load_model(folder)
    before = one.fingerprint, one(pairs.tokens("clean"))
    way = along(one, two, [pairs], n=3, metric="logit_diff", path="slerp" if family == "llama" else "linear")
    each = way.values["pairs", "logit_diff"]
    for model, values in ((one, each[0]), (two, each[2])):
        wanted = ablate(model, pairs, components="L0H0").baseline["logit_diff"]
        np.testing.assert_array_equal(values.astype(np.float32), wanted)
    assert one.fingerprint == before[0] and torch.equal(one(pairs.tokens("clean")), before[1])
    if family != "llama":
        merge([one.name, folder], tmp_path / "half", weights=0.5)
        half = ablate(load_model(str(tmp_path / "half")), pairs, components="L0H0").baseline["logit_diff"]
        np.testing.assert_array_equal(each[1].astype(np.float32), half)
    table = way.table()
    assert list(table.t) == [0, 0.5, 1] and (table.above[[0, 2]] == 0).all()
    assert table.above[1] == pytest.approx((each[1] - (each[0] + each[2]) / 2).mean())


def test_models_that_are_no_relatives_are_refused(tiny_model, make_model, pairs, tmp_path):
    import shutil

    from interp import InputError, along, compare, load_model

    with pytest.raises(InputError, match="n_layers is 2 in .* 3 in"):
        compare(tiny_model, make_model("gpt2"), pairs)
    with pytest.raises(InputError, match="is .* in .* absent|absent in|nothing lies between|n_kv_heads"):
        along(make_model("llama"), make_model("neox"), [pairs])
    shutil.copytree(tiny_model.name, tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "other" / "tokenizer.json").write_text(text.replace('"!"', '"¿"'), encoding="utf-8")
    with pytest.raises(InputError, match="two tokenizers"):
        compare(tiny_model, load_model(str(tmp_path / "other")), pairs)
    with pytest.raises(InputError, match='path "straight"'):
        along(tiny_model, tiny_model, [pairs], path="straight")
    with pytest.raises(InputError, match="1 models along"):
        along(tiny_model, tiny_model, [pairs], n=1)


@pytest.fixture
def prompts(pairs, tiny_model, tmp_path):
    pairs.save(tmp_path / "pairs.jsonl", tiny_model)
    return str(tmp_path / "pairs.jsonl")


def run(capsys, *argv):
    from interp.cli import main

    code = main(["compare", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_keeps_both_runs_and_a_report(capsys, tiny_dir, lora, prompts, tiny_text, tmp_path):
    from interp import Comparison, Effects

    ask = [tiny_dir, "--adapter", lora, "--task", prompts, "--workspace", tmp_path]
    code, out, _ = run(capsys, *ask, "--components", "mlps")
    assert code == 0 and "baseline logit_diff" in out
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
    ask += ["--along", 2, "--text", tiny_text]
    code, out, _ = run(capsys, *ask, "--out", "c")
    assert "t 1.00  text loss" in out
    folder = tmp_path / "runs" / "c"
    said = json.loads((folder / "run.json").read_text())
    assert code == 0 and (said["kind"], said["status"]) == ("compare", "done")
    assert said["model"]["name"] == str(tiny_dir) and said["model_b"]["adapter"]["path"] == str(lora)
    assert len(Comparison.load(folder).rows) == 10 and len(Effects.load(folder / "b").rows) == 10
    assert len(pd.read_parquet(folder / "along.parquet")) == 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "From A to B" in page and str(lora) in page
    assert run(capsys, *ask, "--out", "c")[0] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give two models"),
        (["bundled", "--adapter", "x"], "give two models"),
        (["bundled"], "only models of one shape"),
        (["--adapter", "x"], "no adapter_config.json"),
        (["SELF", "--text", "bundled"], "--text is measured along the way"),
        (["SELF", "--components", "L9H9"], 'no component "L9H9"'),
        (["SELF", "--metric", "los"], 'metric "los"'),
        (["SELF", "--along", "1"], "1 models along the way"),
        (["SELF", "--along", "3", "--path", "around"], 'path "around"'),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tiny_dir, prompts, tmp_path, flags, message):
    flags = [str(tiny_dir) if flag == "SELF" else flag for flag in flags]
    code, _, err = run(capsys, tiny_dir, *flags, "--task", prompts, "--workspace", tmp_path / "w", "--out", "c")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_figures_escape_names_and_hold_every_component():
    from interp.plots.comparing import along, comparison

    draw = np.random.default_rng(0)
    table = pd.DataFrame({
        "component": [f"L{layer}H{head}" for layer in range(2) for head in range(4)], "kind": "head", "layer": 0,
        "index": 0, "position": "all", "method": "mean", "metric": "loss", "effect_a": draw.normal(size=8),
    }).assign(effect_b=lambda t: t.effect_a + 1, difference=1.0, ci_low=0.5, ci_high=1.5, q=0.01, n=9)  # fmt: skip
    figure = comparison(table, "<b>a</b>", "b")
    assert "&lt;b&gt;a" in figure.layout.title.text and len(figure.data) == 4
    assert np.shape(figure.data[0].z) == (2, 4) and list(figure.data[0].colorscale[-1])[1] == "rgb(178,24,43)"
    assert len(comparison(table.assign(component="L0N1"), "a", "b").data) == 2
    way = pd.DataFrame({"task": "t", "metric": "loss", "t": [0, 0.5, 1], "value": [1.0, 2, 1], "ci_low": 0.9,
                        "ci_high": 2.1, "above": [0, 1.0, 0], "above_low": [0, 0.8, 0], "above_high": [0, 1.2, 0],
                        "n": 9})  # fmt: skip
    texts = [note.text for note in along(way, "<i>", "b").layout.annotations]
    assert "barrier 1" in texts and any("&lt;i&gt;" in text for text in texts)
    assert not any("barrier" in note.text for note in along(way.assign(above_low=-1), "a", "b").layout.annotations)
