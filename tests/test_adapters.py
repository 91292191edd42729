"""LoRA directories: merged is live is by hand is peft; off is the base; what is not plain LoRA is refused."""

import json
import math
import shutil

import pytest
import torch
from loras import GPT2, LLAMA, NEOX, write_lora


def tokens_of(model):
    return torch.randint(0, model.d_vocab, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lora(tiny_dir, tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "lora", GPT2, base=str(tiny_dir), fan_in_fan_out=True)


def by_hand(folder, base, alpha=8, rank=4, rslora=False):
    """The base with W + scale (B A), a loop over the file, by transformers alone."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state, factors = hf.state_dict(), load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for key in factors:
            if ".lora_A." in key:
                weight = state[key.removeprefix("base_model.model.").replace(".lora_A.", ".")]
                product = factors[key.replace("lora_A", "lora_B")] @ factors[key]
                product = product.T if "c_" in key else product
                weight += alpha / (math.sqrt(rank) if rslora else rank) * product
    return hf.eval()


@pytest.mark.parametrize(("family", "modules"), [("gpt2", None), ("llama", LLAMA), ("neox", NEOX)])
def test_merged_is_live_is_by_hand_and_off_is_the_base(family, modules, tiny_dir, make_model, tmp_path):
    from interp import captured, load_model

    base = load_model(str(tiny_dir)) if family == "gpt2" else make_model(family)
    folder = write_lora(tmp_path / "lora", modules or GPT2)
    merged, live = (load_model(base.name, adapter=folder, merged=merged) for merged in (True, False))
    tokens = tokens_of(base)
    with torch.no_grad():
        clean, adapted = base(tokens), merged(tokens)
        assert (adapted - clean).abs().max() > 0.1
        torch.testing.assert_close(adapted, by_hand(folder, base.name)(tokens).logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(live(tokens), adapted) and live.fingerprint == merged.fingerprint != base.fingerprint
        with live.adapted(False):
            assert torch.equal(live(tokens), clean) and live.fingerprint == base.fingerprint
            assert torch.equal(live.plain_pass(tokens), base.plain_pass(tokens))
            with captured(live, "*.q") as ours, captured(base, "*.q") as theirs:
                live(tokens), base(tokens)
            assert all(torch.equal(ours[site], theirs[site]) for site in theirs)
            with live.adapted():
                assert torch.equal(live(tokens), adapted)
        assert torch.equal(live(tokens), adapted)


def test_a_directory_names_its_base_and_results_say_both(lora, tiny_model):
    from interp import load_model

    model = load_model(str(lora))
    said = model.provenance()
    assert said["name"] == str(lora) and said["adapter"]["base"] == tiny_model.name and said["adapter"]["scale"] == 1
    assert said["fingerprint"] == said["adapter"]["merged"] != tiny_model.fingerprint
    assert "adapter" not in tiny_model.provenance()
    live = load_model(str(lora), merged=False)
    with live.adapted(0.5):
        half = live.provenance()
    assert half["adapter"]["scale"] == 0.5 and half["fingerprint"] not in (said["fingerprint"], tiny_model.fingerprint)
    assert live.provenance() == said


def test_in_bfloat16_live_is_merged_to_the_bit_and_off_is_the_base(lora, tiny_dir):
    from interp import load_model

    merged, base = (load_model(str(name), dtype="bfloat16") for name in (lora, tiny_dir))
    live, tokens = load_model(str(lora), dtype="bfloat16", merged=False), tokens_of(base)
    with live.adapted(), live.adapted(0.3), live.adapted(1):
        assert torch.equal(live(tokens), merged(tokens))
    with live.adapted(0):
        assert torch.equal(live(tokens), base(tokens)) and not torch.equal(base(tokens), merged(tokens))


def test_half_an_adapter_is_half_its_weights(lora, tiny_model):
    from interp import load_model
    from interp.decoder.weights import parameters

    live, name = load_model(str(lora), merged=False), "transformer.h.1.mlp.c_proj.weight"
    whole, base = (parameters(model)[name].detach().clone() for model in (live, tiny_model))
    with live.adapted(0.5):
        torch.testing.assert_close(parameters(live)[name].detach(), (whole + base) / 2)


def test_an_exception_inside_leaves_the_adapter_on(lora):
    from interp import load_model

    live = load_model(str(lora), merged=False)
    before = live(tokens_of(live))
    with pytest.raises(ZeroDivisionError), live.adapted(False):
        raise ZeroDivisionError
    assert torch.equal(live(tokens_of(live)), before)


def test_an_ablation_runs_the_same_on_merged_and_live(lora, pairs):
    from interp import ablate, load_model

    merged, live = load_model(str(lora)), load_model(str(lora), merged=False)
    one, two = (ablate(model, pairs, components="heads") for model in (merged, live))
    assert (one.rows.effect == two.rows.effect).all() and one.about["model"] == two.about["model"]


def test_rslora_and_patterns_set_the_scale(tiny_dir, tmp_path):
    from interp.decoder.adapters import read_adapter

    folder = write_lora(tmp_path / "rs", GPT2, use_rslora=True, alpha_pattern={r"h\.1\.attn\.c_attn": 2})
    scales = {name: scale for name, (_, _, scale) in read_adapter(folder).factors.items()}
    assert scales["transformer.h.0.attn.c_attn"] == 8 / 2 and scales["transformer.h.1.attn.c_attn"] == 2 / 2


def test_the_hooks_are_held_against_the_base_with_the_adapter_merged(lora):
    from interp import load_model
    from interp.decoder.checking import check

    lines = check(load_model(str(lora)))
    assert not [line for line in lines if line.verdict == "WRONG"]
    assert any("plain" in line.what and line.verdict == "ok" for line in lines)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's, of transformers' names
def test_it_is_peft(lora, tiny_dir, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    from interp import load_model

    for folder in (lora, write_lora(tmp_path / "rs", GPT2, fan_in_fan_out=True, use_rslora=True,
                                    alpha_pattern={"h.1.attn.c_attn": 2})):  # fmt: skip
        model = load_model(str(tiny_dir), adapter=folder)
        theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_dir), folder).eval()
        torch.testing.assert_close(model(tokens_of(model)), theirs(tokens_of(model)).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora true is not plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, 'bias "lora_only"'),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"something_new": 3}, "something_new 3 is not plain LoRA"),
        ({"init_lora_weights": "pissa"}, '"pissa" changes the base'),
        ({"peft_type": "IA3"}, 'peft_type "IA3"'),
        ({"alpha_pattern": {"(": 2}}, "no pattern with a number"),
        ({"rank_pattern": [1]}, "rank_pattern .1. given, where names with numbers"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path 3 given, where a name"),
        ({"lora_alpha": "x"}, "lora_alpha 'x'"),
        ({"rank_pattern": {"c_attn": 8}}, "rank 4, adapter_config.json says 8"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(config, message, tiny_dir, tmp_path):
    from interp import InputError, load_model

    folder = write_lora(tmp_path / "lora", GPT2, base=str(tiny_dir), **config)
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_an_adapter_that_lacks_a_module_it_names_is_refused(tiny_dir, tmp_path):
    from interp import InputError, load_model

    folder = write_lora(tmp_path / "lora", dict(list(GPT2.items())[1:]))
    with pytest.raises(InputError, match='no A and B of "transformer.h.0.attn.c_attn"'):
        load_model(str(tiny_dir), adapter=folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"transformer.h.7.attn.c_attn": (32, 96)}, "which its base has not"),
        ({"transformer.h.0.attn.c_attn": (32, 32), "transformer.h.1.attn.c_attn": (32, 32)}, "it is .32, 96."),
        ({"lm_head": (32, 400)}, "whose weight another part of the base shares"),
        ({"transformer.ln_f": (32, 32)}, "a LayerNorm: only float matrices"),
    ],
)
def test_another_models_adapter_is_refused(modules, message, tiny_dir, tmp_path):
    from interp import InputError, load_model

    with pytest.raises(InputError, match=message):
        load_model(str(tiny_dir), adapter=write_lora(tmp_path / "lora", modules))


def test_a_broken_adapter_is_one_line(lora, tiny_dir, tmp_path):
    from interp import InputError, load_model
    from interp.errors import MissingFile

    def refused(message, kind=InputError, base=str(tiny_dir)):
        with pytest.raises(kind, match=message) as error:
            load_model(base, adapter=tmp_path / "lora") if base else load_model(str(tmp_path / "lora"))
        assert "\n" not in str(error.value)

    shutil.copytree(lora, tmp_path / "lora")
    weights, config = tmp_path / "lora" / "adapter_model.safetensors", tmp_path / "lora" / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:500])
    refused("is not a safetensors file")
    weights.unlink()
    refused("no adapter_model.safetensors", MissingFile)
    config.write_text("[]")
    refused("holds no keys")
    config.unlink()
    refused("not an adapter", MissingFile)
    for change, message in [
        (lambda t: dict(list(t.items())[1:]), "do not belong together"),
        (lambda t: t | {"base_model.model.lm_head.lora_embedding_A": torch.zeros(2, 2)}, "lora_embedding_A"),
        (lambda t: {}, "holds no weights"),
    ]:
        shutil.rmtree(tmp_path / "lora")
        write_lora(tmp_path / "lora", GPT2, change=change)
        refused(message)
    shutil.rmtree(tmp_path / "lora")
    write_lora(tmp_path / "lora", GPT2)
    refused("names no base", base=None)
    refused("is itself an adapter", base=str(lora))
    shutil.rmtree(tmp_path / "lora")
    write_lora(tmp_path / "lora", GPT2, base=str(lora))
    refused("is itself an adapter", base=None)
    with pytest.raises(InputError, match="no adapter to be kept apart"):
        load_model(str(tiny_dir), merged=False)
    with pytest.raises(InputError, match="no live adapter"), load_model(str(tiny_dir)).adapted(False):
        pass


def without_free(said):
    """What a command says, but for the memory that other programs leave."""
    return [line for line in said.splitlines() if " free on " not in line]


def test_the_command_says_what_is_on_what(lora, tiny_dir, capsys, monkeypatch):
    from interp.cli import main
    from interp.decoder import memory

    monkeypatch.setattr(memory, "available", lambda device: 2**33)  # what is free differs from one call to the next
    assert main(["model", "info", str(tiny_dir), "--adapter", str(lora)]) == 0
    said = without_free(capsys.readouterr().out)
    assert said[0].startswith(f"LoRA on {tiny_dir}, merged: sha256:")
    assert main(["model", "info", str(lora)]) == 0 and without_free(capsys.readouterr().out) == said
    assert main(["model", "info", str(tiny_dir), "--adapter", "nothing"]) == 2


def test_a_base_may_stand_beside_its_adapter(lora, tiny_dir, tmp_path):
    from interp import load_model

    shutil.copytree(tiny_dir, tmp_path / "base")
    shutil.copytree(lora, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "../base"}))
    assert load_model(str(tmp_path / "lora")).fingerprint == load_model(str(lora)).fingerprint
