"""Weights between models: the ends to the bit, arcs, task vectors, DARE; a directory that says what made it."""

import json

import pytest
import torch
from loras import GPT2, write_lora


@pytest.fixture(scope="module")
def other_dir(tiny_dir, tmp_path_factory):
    """The tiny model after a change of every weight, with the same tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, hf = tmp_path_factory.mktemp("other") / "other", AutoModelForCausalLM.from_pretrained(tiny_dir)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    hf.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(folder)
    return folder


def state_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_the_ends_are_the_models_to_the_bit(method, tiny_dir, other_dir, tmp_path):
    from interp import load_model
    from interp.decoder.merging import merge

    for t, folder in ((0, tiny_dir), (1, other_dir)):
        merge([str(tiny_dir), str(other_dir)], tmp_path / str(t), weights=t, method=method)
        made, wanted = state_of(tmp_path / str(t)), state_of(folder)
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[name].view(torch.uint8), wanted[name].view(torch.uint8)) for name in wanted)
        assert load_model(str(tmp_path / str(t))).fingerprint == load_model(str(folder)).fingerprint


def test_between_is_a_mean_and_says_what_made_it(tiny_dir, other_dir, tiny_model, tmp_path):
    from interp.cli import main

    ask = ["model", "merge", str(tiny_dir), str(other_dir), "--weights", "0.3", "--to", str(tmp_path / "m")]
    assert main(ask) == 0 and main(ask) == 2  # it exists
    made, one, two = (state_of(folder) for folder in (tmp_path / "m", tiny_dir, other_dir))
    for name in one:
        torch.testing.assert_close(made[name], 0.7 * one[name] + 0.3 * two[name])
    said = json.loads((tmp_path / "m" / "merge.json").read_text())
    assert said["method"] == "linear" and said["weights"] == [0.3]
    assert said["sources"][0]["fingerprint"] == tiny_model.fingerprint and "torch" in said["versions"]


def test_slerp_keeps_the_length_turns_evenly_and_is_linear_on_a_line():
    from interp.decoder.mixing import linear, slerp

    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 5, generator=draw).double()
    a, b = a / a.norm(), b / b.norm()
    angle = torch.acos((a * b).sum())
    for t in (0.1, 0.5, 0.8):
        made = slerp(a, b, t)
        torch.testing.assert_close(made.norm(), a.norm())
        torch.testing.assert_close(torch.acos((a * made).sum()), t * angle)
        for line in (3 * a, -a, 0 * a):
            assert torch.equal(slerp(a, line, t), linear(a, line, t))
    torch.testing.assert_close(slerp(a, b, 0.25), slerp(b, a, 0.75))


def test_rounding_to_half_precision_happens_once():
    from interp.decoder.mixing import linear, task_vectors

    a, b = (torch.randn(500, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    assert torch.equal(linear(a, b, 0.3), (a.double() * 0.7 + b.double() * 0.3).bfloat16())
    assert torch.equal(task_vectors(a, [b], [1.0]), b)


def test_task_vectors_add_up_on_their_base(tiny_dir, other_dir, tmp_path):
    from interp.decoder.merging import merge

    lora = write_lora(tmp_path / "lora", GPT2, base=str(tiny_dir))
    merge([str(tiny_dir), str(lora)], tmp_path / "adapted", weights=1)
    merge([str(other_dir), str(lora)], tmp_path / "sum", method="task", base=str(tiny_dir), weights=[0.5, -1])
    made, base, one, two = (state_of(f) for f in (tmp_path / "sum", tiny_dir, other_dir, tmp_path / "adapted"))
    for name in base:
        wanted = base[name] + 0.5 * (one[name] - base[name]) - (two[name] - base[name])
        torch.testing.assert_close(made[name], wanted, rtol=1e-5, atol=1e-6)


def test_dare_drops_a_share_and_keeps_the_mean():
    from interp.decoder.mixing import dare

    delta, draw = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double(), torch.Generator()
    draws = torch.stack([dare(delta, 0.9, draw.manual_seed(seed)) for seed in range(400)])
    dropped = draws == 0
    assert dropped.double().mean() == pytest.approx(0.9, abs=0.002)
    torch.testing.assert_close(draws[~dropped], (delta / 0.1).expand_as(draws)[~dropped])
    error = (draws.mean(0) - delta) / (3 * delta.abs() / 20)  # a draw's standard deviation is 3 |delta|
    assert error.std() == pytest.approx(1, abs=0.1) and abs(error.mean()) < 0.1


def test_dare_is_the_same_for_a_seed(tiny_dir, other_dir, tmp_path):
    from interp.decoder.merging import merge

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        merge([str(other_dir)], tmp_path / name, method="task", base=str(tiny_dir), drop=0.5, seed=seed)
    a, b, c = (state_of(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a) and not all(torch.equal(a[name], c[name]) for name in a)
    changed = torch.cat([(a[name] != base).flatten() for name, base in state_of(tiny_dir).items()])
    assert changed.double().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "a"], 'weights "a" given'),
        (["--weights", "0.3,0.7"], "2 weights given: linear of 2 models takes 1"),
        (["--method", "mean"], 'method "mean" given'),
        (["--method", "task"], "differences from a base"),
        (["--drop", "0.5"], "drop 0.5 given"),
        (["--base", "bundled", "--drop", "1"], "drop 1.0 given"),
        (["--base", "bundled"], "nothing lies between"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(flags, message, tiny_dir, other_dir, tmp_path, capsys):
    from interp.cli import main

    code = main(["model", "merge", str(tiny_dir), str(other_dir), "--to", str(tmp_path / "m"), *flags])
    err = capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_other_settings_are_refused(tiny_dir, other_dir, tmp_path):
    import shutil

    from interp import InputError
    from interp.decoder.merging import merge

    shutil.copytree(other_dir, tmp_path / "exact")
    config = json.loads((other_dir / "config.json").read_text()) | {"activation_function": "gelu"}
    (tmp_path / "exact" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="activation_function is 'gelu_new' in"):
        merge([str(tiny_dir), str(tmp_path / "exact")], tmp_path / "m")
    with pytest.raises(InputError, match="1 models given"):
        merge([str(tiny_dir)], tmp_path / "m")
