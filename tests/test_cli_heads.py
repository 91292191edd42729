"""`interp heads`, and scores beside ablations: what is printed, what is kept, what is refused before anything is."""

import json

import pandas as pd
import pytest

from interp.cli import main


@pytest.fixture
def heads(tiny_dir, tmp_path):
    def run(*flags):
        return main(
            ["heads", "--model", str(tiny_dir), "--n", "4", "--length", "6", "--workspace", str(tmp_path), *flags]
        )

    return run


def test_without_out_the_strongest_heads_are_printed_and_nothing_written(heads, tmp_path, capsys):
    assert heads("--text", "The keys to the cabinet") == 0
    said = capsys.readouterr().out
    assert "induction       highest L" in said and "with nothing repeated" in said and "The keys to the cabinet" in said
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_scores_patterns_circuits_and_effects_with_a_report(heads, tmp_path, capsys):
    from interp.lenses.causality import HeadsAndEffects
    from interp.lenses.composition import Composition
    from interp.lenses.eigenvalues import HeadCircuits
    from interp.lenses.heads import Patterns

    assert heads("--circuits", "--ablate", "--text", "<img src=x onerror=alert(1)> keys", "--out", "all") == 0
    folder = tmp_path / "runs" / "all"
    run = json.loads((folder / "run.json").read_text())
    assert (run["kind"], run["status"], run["config"]["circuits"]) == ("heads", "done", True)
    both = HeadsAndEffects.load(folder)
    assert len(both.table()) == 8 and -1 <= both.spearman("entropy") <= 1
    assert list(both.table().effect) == sorted(both.table().effect, reverse=True)
    assert Patterns.load(folder).pattern.shape[:2] == (2, 4)
    assert len(HeadCircuits.load(folder).table()) == 8 and len(Composition.load(folder).table()) == 48
    report = (folder / "report.html").read_text()
    assert "<img" not in report and both.sentence()[:20] in report
    assert "k-composition" in capsys.readouterr().out
    assert heads("--out", "all") == 2 and "--overwrite" in capsys.readouterr().err


def test_effects_are_those_of_the_same_sequences_and_of_ablate(tiny_model):
    import interp
    from interp.lenses.heads import repeats

    both = interp.heads_and_effects(tiny_model, n=4, length=6, seed=2)
    task = repeats(tiny_model, n=4, length=6, seed=2)
    pd.testing.assert_frame_equal(both.scores.table(), interp.head_scores(tiny_model, task, seed=2).table())
    wanted = interp.ablate(tiny_model, task, method="mean", metric="loss", seed=2).table()
    pd.testing.assert_frame_equal(both.effects.table(), wanted)
    assert "Spearman" in both.figure("previous_token").layout.title.text


def test_a_run_under_edits_and_scores_on_a_text(heads, tiny_text, capsys):
    assert heads("--edit", "L0H1=0", "--corpus", str(tiny_text)) == 0
    assert "4 sequences of up to 64 tokens (windows)" in capsys.readouterr().out


def test_what_is_wrong_is_one_line_and_exit_two(heads, tmp_path, capsys):
    for flags, message in [
        (["--ablate", "--edit", "L0H1=0"], "--ablate is of random tokens"),
        (["--length", "60", "--out", "x"], "room for 2 to 31"),
        (["--circuits", "--embedding", "mlp", "--out", "x"], "Nearest: mlp0"),
        (["--corpus", "nowhere.txt", "--out", "x"], "nowhere.txt"),
    ]:
        assert heads(*flags) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_on_the_bundled_model_induction_heads_by_score_are_those_that_ablation_finds():
    """Of the heads above the first one that scores, no other does as much harm; and what they read through K is the
    previous-token head, which does most harm of all."""
    import interp

    model = interp.load_model("bundled")
    both = interp.heads_and_effects(model, n=30)
    table = both.table().set_index("component")
    found = table[table.induction > 0.5]
    assert set(found.index) == {"L2H6", "L3H2", "L3H3"} and (found.ci_low > 0).all()
    assert both.scores.induction_heads() == ["L3H3", "L3H2", "L2H6"] and "L3H3 1, L3H2 2, L2H6 3" in both.sentence()
    above = table[table.layer >= 1]
    assert set(above.index[:3]) == set(found.index)  # the table is sorted by harm
    assert both.scores.top("previous_token", 1).component.iloc[0] == table.index[0] == "L0H2"
    pairs, circuits = interp.composition(model, kinds="k"), interp.head_circuits(model, n_tokens=50).table()
    for head in found.index:
        into = pairs.into(head, "k", 2)
        assert "L0H2" in set(into.earlier) and (into.score > into.random_high).all()
    copying = circuits[(circuits.layer >= 1) & (circuits.ov_copying > 0)]
    assert set(copying.component) == set(found.index)


def test_a_pretrained_llama_has_the_previous_token_heads_that_are_known_of_it():
    """stories260K on stories of its own: L3H6 .60, L1H3 .64, L1H6 .53; and no induction on random tokens."""
    from pathlib import Path

    import torch

    import interp

    folder = Path(__file__).parent.parent.parent / "shared" / "models" / "stories260K"
    if not folder.exists():
        pytest.skip("no ../shared/models/stories260K here")
    model = interp.load_model(str(folder))
    torch.manual_seed(0)
    stories = torch.full((12, 1), model.bos)
    with torch.no_grad():
        for _ in range(95):
            likely = model.plain_pass(stories)[:, -1].softmax(-1)
            stories = torch.cat([stories, torch.multinomial(likely, 1)], 1)
    scores = interp.head_scores(model, stories).table().set_index("component").previous_token
    for head, known in {"L3H6": 0.60, "L1H3": 0.64, "L1H6": 0.53}.items():
        assert scores[head] == pytest.approx(known, abs=0.06)
    assert list(scores.sort_values(ascending=False).index[:3]) == ["L1H3", "L3H6", "L1H6"]
    both = interp.heads_and_effects(model, n=20)
    assert not both.scores.induction_heads() and "No induction head" in both.sentence()
