"""The command: exit statuses, one-line errors, files of the contract."""

import json
import resource
import subprocess
import sys

import pandas as pd
import pytest
from commands import one_line

from interp.cli import main
from interp.runs import versions


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    line = {"clean": "When Mary and John", "corrupted": "When Anna and John", "answer": " Mary", "wrong": " John"}
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | {"positions": {"end": -1}}) + "\n")
    return path


def test_help_imports_neither_torch_nor_streamlit_and_is_quick():
    code = (
        "import sys; from interp.cli import main; main(['--help']); "
        "assert not {'torch', 'streamlit', 'transformers', 'pandas'} & set(sys.modules)"
    )

    def processor_seconds() -> float:
        """Of the process itself: what else runs on the machine is no part of it."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(processor_seconds() < 0.5 for _ in range(5))


@pytest.mark.parametrize(
    "command",
    [
        "demo", "record", "task", "ablate", "patch", "app", "store info", "circuit find", "circuit score",
        "circuit show", "circuit compare", "circuit features", "sae train", "sae frontier", "sae eval",
        "sae features", "model info", "model check",
    ],
)  # fmt: skip
def test_every_commands_help_has_an_example(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert "Example: interp " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("group", ["", "store", "sae", "circuit", "lens", "direction", "runs", "model"])
def test_a_commands_line_in_its_groups_help_is_not_cut_short(group, capsys):
    assert main([*group.split(), "--help"]) == 0
    listed = capsys.readouterr().out.split("Commands:")[1]
    assert not [line for line in listed.splitlines() if line.endswith(("...", "et al."))]


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"interp {versions()['interp']}\n"


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("ablate", {"task": "ioi", "components": "heads", "method": "mean", "position": "all"}),
        ("patch", {"site": "resid_pre", "by": "layer,position", "draws": "10"}),
        ("circuit find", {"method": "eap-ig", "baseline": "counterfactual", "steps": "5"}),
        ("circuit features", {"method": "ig", "n-nodes": "50"}),
    ],
)
def test_help_says_what_is_taken_for_a_flag_that_is_not_given(command, defaults, capsys):
    assert main([*command.split(), "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for flag, value in defaults.items():
        of_flag = said.split(f" --{flag} <")[1].split(" --")[0]
        assert of_flag.endswith(f"[default: {value}]"), of_flag


def test_ablate_writes_the_run_of_the_contract(tiny_dir, prompts, tmp_path):
    arguments = ["ablate", "--model", str(tiny_dir), "--task", str(prompts), "--method", "zero,mean", "--seed", "3"]
    assert main([*arguments, "--out", "one", "--workspace", str(tmp_path)]) == 0
    run = json.loads((tmp_path / "runs/one/run.json").read_text())
    assert run["status"] == "done" and run["kind"] == "ablate" and run["seed"] == 3
    assert run["model"]["fingerprint"].startswith("sha256:") and run["versions"].keys() >= {
        "interp",
        "torch",
        "transformer_lens",
    }
    table = pd.read_parquet(tmp_path / "runs/one/effects.parquet")
    assert len(table) == 2 * 8 and set(table.method) == {"zero", "mean"}
    kept = [json.loads(line) for line in (tmp_path / "runs/one/prompts.jsonl").read_text().splitlines()]
    assert len(kept) == 2 and {"clean_tokens", "corrupted_tokens", "answer_token", "wrong_token"} <= kept[0].keys()


def test_flags_win_over_the_file(tiny_dir, prompts, tmp_path):
    config = tmp_path / "batch.yaml"
    config.write_text(f"model: {tiny_dir}\ntask: {prompts}\nmethod: zero\nout: file\nworkspace: {tmp_path}\n")
    assert main(["ablate", str(config), "--out", "flag", "--method", "mean"]) == 0
    assert set(pd.read_parquet(tmp_path / "runs/flag/effects.parquet").method) == {"mean"}
    assert not (tmp_path / "runs/file").exists()


def test_a_finished_run_is_kept_unless_overwrite_is_said(tiny_dir, prompts, tmp_path, capsys):
    arguments = ["ablate", "--model", str(tiny_dir), "--task", str(prompts), "--components", "L0H1"]
    arguments += ["--out", "p", "--workspace", str(tmp_path)]
    assert main(arguments) == 0
    before = (tmp_path / "runs/p/run.json").read_bytes()
    capsys.readouterr()
    assert main(arguments) == 2
    assert "--overwrite" in one_line(capsys) and (tmp_path / "runs/p/run.json").read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ablate", "none.yaml"], 'no file "none.yaml"'),
        (["ablate", "--model", "MODEL", "--task", "iio"], "Nearest: ioi"),
        (["ablate", "--model", "MODEL", "--task", "PAIRS", "--components", "L9H9"], "Nearest: L"),
        (["ablate", "--model", "MODEL", "--task", "PAIRS", "--metric", "logit_dif"], "Nearest: logit_diff"),
        (["ablate", "--model", "MODEL", "--task", "PAIRS", "--out", "../up"], "cannot name a result"),
        (["ablate", "--model", "nothing/here", "--task", "PAIRS"], "Nearest: "),
        (["patch", "--model", "MODEL", "--task", "PAIRS", "--site", "resid"], "Nearest: resid_"),
        (["record", "--model", "MODEL", "--text", "nothing.txt", "--context", "32"], "no text at"),
        (["record", "--model", "MODEL", "--text", "bundled", "--context", "32", "--sites", "9.z"], "Nearest: "),
        (["store", "info", "none"], "none"),
        (["sae", "eval", "none"], "none"),
        (["model", "info", "./nothing"], "Nearest: "),
        (["app"], "interp demo"),
    ],
)
def test_wrong_input_is_one_line_exit_2_and_nothing_written(
    arguments, message, tiny_dir, prompts, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    filled = [{"MODEL": str(tiny_dir), "PAIRS": str(prompts)}.get(a, a) for a in arguments]
    assert main(filled) == 2
    assert message in one_line(capsys)
    assert list(tmp_path.iterdir()) == [prompts]


@pytest.mark.parametrize(
    ("content", "message"),
    [("modell: bundled", "Nearest: model"), ("n: many", 'key "n"'), ("- a", "holds no keys"), ("a: [", "not YAML")],
)
def test_a_wrong_key_of_the_file_is_named(content, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(content)
    assert main(["ablate", str(tmp_path / "c.yaml")]) == 2
    assert message in one_line(capsys)


def test_an_unknown_flag_is_exit_2(capsys):
    assert main(["ablate", "--metod", "zero"]) == 2
    assert "--method" in capsys.readouterr().err


def test_interrupted_is_130_and_failed_is_1(tiny_dir, prompts, tmp_path, capsys, monkeypatch):
    from interp.causal import ablation

    arguments = ["ablate", "--model", str(tiny_dir), "--task", str(prompts), "--out", "r", "--workspace", str(tmp_path)]
    for error, status, word in ((KeyboardInterrupt, 130, "interrupted"), (RuntimeError("broke"), 1, "failed")):
        with monkeypatch.context() as patched:
            patched.setattr(ablation.sweeps, "sweep", lambda *a, e=error, **k: (_ for _ in ()).throw(e))
            assert main(arguments) == status
        assert json.loads((tmp_path / "runs/r/run.json").read_text())["status"] == word
    assert main(arguments) == 0


def test_model_commands_print_what_there_is(tiny_dir, capsys):
    assert main(["model", "info", str(tiny_dir)]) == 0
    assert "blocks.1.attn.hook_z" in capsys.readouterr().out
    assert main(["model", "check", str(tiny_dir)]) == 0
    assert "checks passed" in capsys.readouterr().out


def test_record_and_store_info(tiny_dir, tiny_text, tmp_path, capsys):
    arguments = ["record", "--model", str(tiny_dir), "--text", str(tiny_text), "--sites", "*.z", "--n-tokens", "320"]
    assert main([*arguments, "--context", "32", "--out", "s", "--workspace", str(tmp_path)]) == 0
    assert main(["store", "info", "s", "--workspace", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "320 rows" in printed and "1.z" in printed
