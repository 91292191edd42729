"""How a mixture routes its tokens, the figures and the commands that speak of experts."""

import json

import numpy as np
import pytest
import torch
from einops import einsum
from mixtures import N_CHOSEN
from torch.testing import assert_close


def test_routing_counts_the_tokens_of_each_class(mixtral, tiny_text):
    import interp
    from interp.data.classes import classes, text_task
    from interp.decoder.hooks import captured

    task = text_task(mixtral, str(tiny_text), n=40, context=16)
    kinds = classes(mixtral, task)
    prompt, pos, _, _ = task.reads()
    with torch.no_grad(), captured(mixtral, ["*.expert_indices", "*.router_probs"]) as cache:
        mixtral(task.tokens("clean"))
    for at, step in (("token", 1), ("read", 0)):
        found = interp.routing(mixtral, task, classes=kinds, at=at)
        table = found.table()
        assert list(dict.fromkeys(table["class"])) == ["all", *kinds]
        assert np.allclose(table.groupby(["layer", "class"]).share.sum(), N_CHOSEN)
        for name, mask in kinds.items():
            chosen = cache["blocks.1.mlp.hook_expert_indices"][prompt[mask], pos[mask] + step]
            probs = cache["blocks.1.mlp.hook_router_probs"][prompt[mask], pos[mask] + step]
            row = table[(table.component == "L1E2") & (table["class"] == name)].iloc[0]
            assert row.n == mask.sum() and row.ci_low <= row.share <= row.ci_high
            assert_close(
                (row.share, row["prob"]), ((chosen == 2).any(1).double().mean().item(), probs[:, 2].mean().item())
            )
            layer = found.layers[(found.layers.layer == 1) & (found.layers["class"] == name)].iloc[0]
            assert_close(layer.entropy, -einsum(probs, probs.log(), "t e, t e -> t").mean().item())


def test_routing_is_of_the_edited_run_and_is_kept(mixtral, tiny_text, tmp_path):
    import interp
    from interp.causal.edits import parse
    from interp.lenses.routing import Routing

    def forbid(logits):
        return logits.index_fill(2, torch.tensor(3), -torch.inf)

    found = interp.routing(mixtral, str(tiny_text), n=8, context=16, edits={"0.router_logits": forbid})
    table = found.table()
    assert (table[table.component == "L0E3"].share == 0).all() and (table[table.component == "L1E3"].share > 0).all()
    without = interp.routing(mixtral, str(tiny_text), n=8, context=16, edits=parse(mixtral, "L0E3=0")).table()
    clean = interp.routing(mixtral, str(tiny_text), n=8, context=16).table()
    others = (clean.layer == 0) & (clean.component != "L0E3")
    assert (without[without.component == "L0E3"].share == 0).all()  # and nobody has got its tokens
    assert without[others].share.equals(clean[others].share)
    found.save(tmp_path)
    again = Routing.load(tmp_path)
    assert again.rows.equals(found.rows) and again.layers.equals(found.layers) and again.about == found.about
    assert len(found.figure().data) == 2  # a panel, and the line of experts all alike


def test_routing_asks_for_a_mixture_and_for_tokens_that_are_there(mixtral, tiny_model, tiny_text, pairs):
    import interp
    from interp.errors import InputError

    with pytest.raises(InputError, match="has no experts that can be taken apart"):
        interp.routing(tiny_model, str(tiny_text))
    with pytest.raises(InputError, match="do not stand in its prompts: use at read"):
        interp.routing(mixtral, pairs)
    assert (interp.routing(mixtral, pairs, at="read").rows.n == len(pairs)).all()


def test_effects_by_class_are_a_panel_a_class(mixtral, tiny_text):
    import interp
    from interp.data.classes import classes, text_task
    from interp.errors import InputError
    from interp.plots import component_grid, effects, one_view

    task = text_task(mixtral, str(tiny_text), n=4, context=16)
    kinds = classes(mixtral, task, ["punctuation", "word_start"])
    found = interp.ablate(mixtral, task, components="experts", method="zero", classes=kinds)
    figure = found.by_class()
    assert [list(trace.y) for trace in figure.data] == [[f"L{layer}E{e}" for layer in (0, 1) for e in range(4)]] * 3
    assert [note.text.split("<br>")[0] for note in figure.layout.annotations[:3]] == [
        "all",
        "punctuation",
        "word_start",
    ]
    grid = component_grid(one_view(found.table()))
    assert grid.columns == ["E0", "E1", "E2", "E3"] and grid.rows == ["L0", "L1"]
    assert effects(found.table()).layout.xaxis.title.text == "expert"
    with pytest.raises(InputError, match="not broken down by class"):
        interp.ablate(mixtral, task, components="L0E0", method="zero").by_class()


def test_commands_speak_of_experts(mixture_dir, tiny_text, tmp_path, capsys, monkeypatch):
    from interp.cli import main

    monkeypatch.chdir(tmp_path)
    folder = str(mixture_dir("Mixtral"))
    assert main(["model", "info", folder]) == 0
    told = capsys.readouterr().out
    assert "4 experts, 2 for a token, in layers 0, 1" in told and "blocks.1.mlp.hook_expert_indices" in told
    assert main(["experts", "--model", folder, "--text", str(tiny_text), "--n", "6", "--out", "load"]) == 0
    told = capsys.readouterr().out
    assert "experts all alike: 0.500" in told and "L1E3" in told and "layer 1: entropy" in told
    run = json.loads((tmp_path / "workspace/runs/load/run.json").read_text())
    assert run["kind"] == "experts" and run["status"] == "done"
    assert "<h2>Entropy of the routers</h2>" in (tmp_path / "workspace/runs/load/report.html").read_text()
    (tmp_path / "a.yaml").write_text(
        f"model: {folder}\ntask: text:{tiny_text}\nn: 4\ncomponents: experts\nmethod: [zero, forbid]\n"
        "classes: digit,word_start\n"
    )
    assert main(["ablate", "a.yaml", "--out", "effects"]) == 0
    import interp

    rows = interp.Effects.load(tmp_path / "workspace/runs/effects").table()
    assert set(rows.method) == {"zero", "forbid"} and set(rows.component) == {
        f"L{m}E{e}" for m in (0, 1) for e in range(4)
    }
    assert (
        main(["ablate", "--model", folder, "--task", f"text:{tiny_text}", "--components", "heads", "--method", "force"])
        == 2
    )
    assert 'method force given for "L0H0"' in capsys.readouterr().err
    assert main(["experts", "--model", "bundled", "--text", str(tiny_text), "--out", "no"]) == 2
    assert "has no experts" in capsys.readouterr().err and not (tmp_path / "workspace/runs/no").exists()
