"""The options by which commands open their model: the same everywhere, and said in what they write."""

from __future__ import annotations

import inspect
import json

import pytest
from loras import GPT2, write_lora

from interp.cli import main, options
from interp.cli.config import Config, PatchConfig


def commands():
    """Every command, by its words."""
    from interp.cli import app

    def of(group, words):
        for one in group.registered_commands:
            yield " ".join([*words, one.name or one.callback.__name__.replace("_", "-")]), one.callback
        for inner in group.registered_groups:
            yield from of(inner.typer_instance, [*words, inner.name])

    return dict(of(app, []))


LOADS = (
    "record", "task", "ablate", "patch", "compare", "generate", "heads", "experts", "circuit find", "circuit score",
    "circuit features", "lens show", "lens train", "lens attribute", "direction find", "direction test",
    "direction remove", "sae train", "sae eval", "sae features", "model info", "model check",
)  # fmt: skip


def test_every_command_that_takes_a_model_takes_all_of_them():
    asked = {name: list(inspect.signature(function).parameters) for name, function in commands().items()}
    have = {name for name, parameters in asked.items() if set(options.OPENING) <= set(parameters)}
    assert have == set(LOADS)
    assert {name for name, parameters in asked.items() if "model" in parameters} <= have | {"demo"}


def test_files_take_them_as_keys():
    from interp.cli.circuit import Find
    from interp.cli.features import Features
    from interp.cli.train import Config as Train

    for form in (Config, PatchConfig, Find, Features, Train):
        assert set(options.OPENING) <= set(form.model_fields)


@pytest.fixture(scope="module")
def lora(tiny_dir, tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "lora", GPT2, base=str(tiny_dir), fan_in_fan_out=True)


def test_a_lora_is_asked_from_a_file_and_from_a_flag_and_the_run_says_so(lora, tiny_dir, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"clean": "When Mary and John", "answer": " Mary", "wrong": " John"}) + "\n")
    file = tmp_path / "ask.yaml"
    common = {"model": str(tiny_dir), "task": str(pairs), "method": "zero", "workspace": str(tmp_path)}
    file.write_text("".join(f"{key}: {value}\n" for key, value in (common | {"adapter": lora}).items()))
    assert main(["ablate", str(file), "--out", "file"]) == 0
    flags = [f"--{key}={value}" for key, value in common.items()]
    assert main(["ablate", *flags, f"--adapter={lora}", "--out=flag"]) == 0
    assert main(["ablate", *flags, "--out=base"]) == 0
    file, flag, base = (json.loads((tmp_path / f"runs/{name}/run.json").read_text()) for name in
                        ("file", "flag", "base"))  # fmt: skip
    assert file["model"] == flag["model"] and file["config"] == flag["config"]
    assert flag["config"]["adapter"] == flag["model"]["adapter"]["path"] == str(lora)
    assert flag["model"]["adapter"]["base"] == str(tiny_dir) and "adapter" not in base["model"]
    assert len({run["model"]["fingerprint"] for run in (file, flag, base)}) == 2


def test_a_run_of_a_model_on_disk_says_where_its_weights_were(tiny_dir, tmp_path):
    pytest.importorskip("accelerate", reason="device auto takes accelerate")
    out = ["--out", "spread", "--workspace", str(tmp_path), "--offload", str(tmp_path / "off")]
    where = ["--device", "auto", "--max-memory", "cpu=90KB"]
    assert main(["heads", "--model", str(tiny_dir), "--n", "2", "--length", "4", *where, *out]) == 0
    run = json.loads((tmp_path / "runs/spread/run.json").read_text())
    assert run["device"].startswith("auto: ") and " on disk" in run["device"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-memory", "lots", "--device", "auto"], "0=20GB,cpu=60GB is right"),
        (["--max-memory", "cpu=1GB"], 'for device "auto"'),
        (["--quantize", "3bit"], "unknown quantisation"),
        (["--adapter", "nothing"], "not an adapter"),
        (["--adapter", "LORA", "--quantize", "4bit"], "interp model merge"),
        (["--adapter", "LORA", "--device", "auto"], "interp model merge"),
    ],
)
@pytest.mark.parametrize("command", ["heads", "ablate", "circuit find", "record --text bundled"])
def test_what_cannot_be_opened_is_one_line_and_nothing_is_written(
    command, flags, message, lora, tiny_dir, tmp_path, capsys
):
    flags = [str(lora) if flag == "LORA" else flag for flag in flags]
    given = [*command.split(), "--model", str(tiny_dir), *flags, "--out", "x", "--workspace", str(tmp_path)]
    assert main(given) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_what_is_of_a_model_is_refused_with_a_store(tmp_path, capsys):
    given = ["sae", "train", "--store", "s", "--site", "1.resid_post", "--quantize", "4bit"]
    assert main([*given, "--workspace", str(tmp_path)]) == 2
    assert "--quantize given: it is of --model" in capsys.readouterr().err


def test_a_lora_and_a_base_make_a_model_that_can_be_spread(lora, tiny_dir, tmp_path):
    """What the refusal advises."""
    from interp import load_model

    assert main(["model", "merge", str(tiny_dir), str(lora), "--weights", "1", "--to", str(tmp_path / "m")]) == 0
    assert load_model(str(tmp_path / "m")).fingerprint == load_model(str(lora)).fingerprint
