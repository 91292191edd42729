"""`interp direction`: exit statuses, one-line errors, files."""

import json

import pandas as pd
import pytest
from commands import one_line

from interp.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    for name, end in (("glad", "are glad"), ("sad", "is a letter")):
        lines = [f"The {a} and {b} {end}" for a in ("Mary", "John", "Tom") for b in ("shop", "bag", "key", "book")]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def base(tiny_dir, tmp_path):
    return ["--model", str(tiny_dir), "--workspace", str(tmp_path / "ws")]


@pytest.fixture
def found(base, files):
    given = ["--positive", str(files / "glad.txt"), "--negative", str(files / "sad.txt")]
    assert main(["direction", "find", *given, *base, "--out", "joy"]) == 0


def test_a_direction_of_a_file_of_pairs_is_tested_on_what_was_held_out(base, tmp_path, pairs, capsys):
    file = tmp_path / "mine.jsonl"
    pairs.save(file)
    capsys.readouterr()
    assert main(["direction", "find", "--task", str(file), "--position", "3", *base, "--out", "of-file"]) == 0
    capsys.readouterr()
    assert main(["direction", "test", "of-file", *base]) == 2
    assert 'prompts of a file ("mine"): give that file' in capsys.readouterr().err
    given = ["--task", str(file), "--windows", "0", "--n-random", "1", "--strengths", "2", "--n", "5"]
    assert main(["direction", "test", "of-file", *given, *base]) == 0
    out = capsys.readouterr().out
    assert "\nkl, n = " in out and "\nremoval:" in out and "log_odds (" in out


def test_find_test_and_remove_write_what_they_say(found, base, files, tiny_text, tmp_path, capsys):
    runs = tmp_path / "ws" / "runs"
    run = json.loads((runs / "joy" / "run.json").read_text())
    assert run["status"] == "done" and run["kind"] == "direction" and run["config"]["method"] == "mean-difference"
    assert {"direction.safetensors", "direction.json", "report.html"} <= {
        path.name for path in (runs / "joy").iterdir()
    }
    asked = ["--prompts", str(files / "glad.txt"), "--toward", "shop, bag", "--away", "key", "--strengths", "-4,4"]
    given = [*asked, "--text", str(tiny_text), "--windows", "2", "--n-random", "1", "--out", "joy-test"]
    assert main(["direction", "test", "joy", *given, *base]) == 0
    dose = pd.read_parquet(runs / "joy-test" / "dose.parquet")
    assert set(dose.strength) == {-4, 4} and set(dose.kind) == {"direction", "random", "shuffled"}
    perplexity = pd.read_parquet(runs / "joy-test" / "perplexity.parquet")
    assert list(perplexity.change)[::4] == ["unchanged", "projected out of every write"]
    assert "log_odds" in capsys.readouterr().out
    to = tmp_path / "without"
    assert main(["direction", "remove", "joy", "--to", str(to), "--text", "no-text.txt", *base]) == 2
    assert "no-text.txt" in capsys.readouterr().err and not to.exists()
    given = ["--to", str(to), "--text", str(tiny_text), "--windows", "2"]
    assert main(["direction", "remove", "joy", *given, *base]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["model", "info", str(to)]) == 0
    assert main(["direction", "remove", "joy", *given, *base]) == 2
    assert "exists: name a directory that does not" in capsys.readouterr().err


def test_an_edit_by_the_direction_s_name_is_of_its_model_alone(found, base, make_model, tmp_path, capsys):
    from interp.cli.editing import read
    from interp.errors import WrongModel

    with pytest.raises(WrongModel, match='"joy" was found in'):
        read(["joy@1.resid_post+4"], make_model("llama"), tmp_path / "ws")


def test_of_a_task_it_is_found_and_tested_on_other_prompts(tiny_dir, pairs, tmp_path, capsys):
    pairs.save(tmp_path / "pairs.jsonl")
    base = ["--model", str(tiny_dir), "--workspace", str(tmp_path)]
    task = ["--task", str(tmp_path / "pairs.jsonl")]
    assert (
        main(["direction", "find", *task, *base, "--position", "changed", "--site", "0.resid_post", "--out", "d"]) == 0
    )
    capsys.readouterr()
    assert main(["direction", "test", "d", *task, *base, "--windows", "0", "--n-random", "1", "--strengths", "2"]) == 0
    told = capsys.readouterr().out
    assert "log_odds (each prompt's own over each prompt's own), n = 3:" in told  # of 12, a quarter was held out
    assert "removal:" in told and [path.name for path in (tmp_path / "runs").iterdir()] == ["d"]


def test_without_out_nothing_is_written(base, files, tmp_path, capsys):
    given = ["--positive", str(files / "glad.txt"), "--negative", str(files / "sad.txt")]
    assert main(["direction", "find", *given, *base]) == 0
    assert "-> " in capsys.readouterr().out and not (tmp_path / "ws").exists()


def test_several_directions_are_tested_by_one_measure_and_all_are_told(tiny_dir, pairs, tmp_path, capsys):
    pairs.save(tmp_path / "pairs.jsonl")
    base = ["--model", str(tiny_dir), "--workspace", str(tmp_path)]
    task = ["--task", str(tmp_path / "pairs.jsonl")]
    for layer in ("0", "1"):
        given = [*task, "--position", "changed", "--site", f"{layer}.resid_post", "--out", f"d{layer}"]
        assert main(["direction", "find", *given, *base]) == 0
    capsys.readouterr()
    few = ["--windows", "0", "--n-random", "2", "--strengths", "-2,2", "--out", "both"]
    assert main(["direction", "test", "d0", "d1", *task, *few, *base]) == 0
    told = capsys.readouterr().out
    assert "all directions" in told and told.count("clear of them") == 4
    verdict = pd.read_parquet(tmp_path / "runs/both/verdict.parquet")
    assert verdict.groupby("direction").strength.apply(sorted).to_dict() == {"d0": [-2, 2], "d1": [-2, 2]}
    removal = pd.read_parquet(tmp_path / "runs/both/d1/removal.parquet")
    assert list(removal.change[3:]) == [
        "2 random directions out of every write", "5 directions of shuffled labels out of every write",
    ]  # fmt: skip
    assert (removal.least <= removal.effect).all() and (removal.effect <= removal.largest).all()
    assert main(["direction", "test", "d0", "d0", *task, *base]) == 2
    assert "each once" in one_line(capsys)


def test_labelled_rows_of_a_store_and_the_keys_of_a_file(tiny_store, tmp_path, capsys):
    workspace = tmp_path / "ws"
    (tmp_path / "labels.csv").write_text("row,label\n" + "\n".join(f"{row},{row % 2}" for row in range(400)))
    config = tmp_path / "find.yaml"
    config.write_text(f"store: {tiny_store.path}\nlabels: {tmp_path}/labels.csv\nsite: 0.resid_post\nseed: 3\n")
    assert main(["direction", "find", str(config), "--workspace", str(workspace), "--seed", "4", "--out", "odd"]) == 0
    run = json.loads((workspace / "runs/odd/run.json").read_text())
    assert run["seed"] == run["config"]["seed"] == 4 and run["config"]["labels"].endswith("labels.csv")
    assert run["model"]["fingerprint"] == tiny_store.model["fingerprint"]
    assert 'positive: label "1"' in capsys.readouterr().out
    config.write_text(config.read_text() + "poistion: all\n")
    assert main(["direction", "find", str(config)]) == 2
    assert 'line 5: unknown key "poistion". Nearest: position' in one_line(capsys)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["find", "--store", "demo"], "--store and --labels go together"),
        (["find", "--store", "demo", "--labels", "a.csv", "--paired"], "--paired given: it is of prompts"),
        (["find", "--store", "demo", "--labels", "a.csv"], "no store at"),
        (["find"], "two sets of prompts are needed"),
        (["find", "--task", "ioi", "--positive", "a.txt", "--negative", "b.txt"], "two sets of prompts are needed"),
        (["find", "--positive", "a.txt", "--negative", "b.txt"], 'no file "a.txt"'),
        (["find", "--positive", "a.txt", "--negative", "b.txt", "--answer", " is"], "--answer given"),
        (["find", "--positive", "a.txt", "--negative", "b.txt", "--position", "subject"], 'position "subject" given'),
        (["test", "sorrow"], 'no direction "sorrow" in'),
        (["test", "joy", "--strengths", "4;5"], 'strengths "4;5" given'),
        (["test", "joy"], "give --task, or --prompts"),
        (["test", "joy", "--task", "ioi", "--prompts", "a.txt"], "one of the two"),
        (["remove", "sorrow", "--to", "x"], "Nearest: joy"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(found, base, given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert main(["direction", *given, *base, *(["--out", "new"] if given[0] != "remove" else [])]) == 2
    assert message in one_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before
