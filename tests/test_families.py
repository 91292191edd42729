"""What holds on which family of models: every check of `interp model check`, on tiny random models of each."""

import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
from torch.testing import assert_close

README = Path(__file__).parent.parent / "README.md"
SHARED = Path(__file__).parent.parent.parent / "shared" / "models"
TOKENS = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("families"), {}

    def of(name):
        if name not in made:
            made[name] = families.build(name, root / f"family{len(made)}")
        return made[name]

    return of


def wrong(report):
    return [f"{line.what}: {line.measured:.2g}, {line.bound} {line.limit:.2g} {line.why}" for line in report.wrong]


@pytest.mark.parametrize("name", families.DECODERS)
def test_every_check_passes_or_is_refused_as_the_readme_says(name, folder_of):
    from interp import check, load_model

    report = check(load_model(str(folder_of(name))))
    assert not wrong(report)
    assert all(line.why for line in report.lines if line.verdict == "refused")
    assert families.row(name, report) in README.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("name", "dtype"), [("GPT-2", "float16"), ("Gemma 2", "bfloat16"), ("Qwen 3 MoE", "float16")])
def test_half_precision_passes_too(name, dtype, folder_of):
    from interp import check, load_model

    assert not wrong(check(load_model(str(folder_of(name)), dtype=dtype), length=8))


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/models is not here")
@pytest.mark.parametrize("name", ["stories260K"])
def test_every_check_passes_on_models_trained_elsewhere(name):
    from interp import check, load_model

    assert not wrong(check(load_model(str(SHARED / name))))


def test_the_bundled_model_passes(tmp_path):
    from interp import Conformance, check, load_model

    report = check(load_model("bundled"))
    assert not wrong(report)
    report.save(tmp_path)
    again = Conformance.load(tmp_path)
    assert again.about == report.about and again.table().equals(report.table())


PLAIN = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
tokens = torch.tensor(eval(sys.argv[1]))
found = {}
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        found[folder] = model(tokens).logits.contiguous()
assert "transformer_lens" not in sys.modules
save_file(found, sys.argv[2])
"""


def test_families_in_one_process_do_not_change_each_other(folder_of, tmp_path):
    """Opening a model patches attention of Gemma for the whole process (TransformerLens issue 1795)."""
    from safetensors.torch import load_file

    from interp import load_model

    folders = [str(folder_of(name)) for name in ("Llama", "Gemma 2", "Gemma 3", "BLOOM", "Qwen 3", "Mistral")]
    code = [sys.executable, "-c", PLAIN, str(TOKENS.tolist()), str(tmp_path / "plain.safetensors"), *folders]
    subprocess.run(code, check=True, capture_output=True)
    models = {folder: load_model(folder) for folder in [*folders, *reversed(folders)]}
    for folder, wanted in load_file(tmp_path / "plain.safetensors").items():
        with torch.no_grad():
            found = models[folder](TOKENS)
        assert_close(found, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)  # float32, another order of sums


@pytest.mark.parametrize(("name", "said"), families.NO_DECODERS.items())
def test_what_is_no_decoder_is_refused_in_one_line(name, said, folder_of, capsys):
    from interp.cli import main

    assert main(["model", "check", str(folder_of(name))]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert f"| {name} | " in README.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("MambaConfig", {"num_hidden_layers": 2, "hidden_size": 32}, "no attention in its layers"),
        ("PersimmonConfig", families.WIDE, "cannot be opened by TransformerLens"),
        ("OPTConfig", families.FAMILIES["OPT"][1] | {"do_layer_norm_before": False}, "norm after"),
    ],
)
def test_a_decoder_that_the_workbench_cannot_read_is_refused_in_one_line(kind, settings, said, tmp_path):
    import transformers

    from interp import load_model
    from interp.errors import UnknownModel

    config = getattr(transformers, kind)(**families.IDS | settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    families.tokenizer(tmp_path)
    with pytest.raises(UnknownModel, match=said) as error:
        load_model(str(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_model_saved_without_its_head_is_refused(folder_of, tmp_path):
    """transformers would draw the head at random, with a warning."""
    from transformers import AutoModelForSequenceClassification

    from interp import load_model
    from interp.errors import UnknownModel

    AutoModelForSequenceClassification.from_pretrained(folder_of("Llama")).save_pretrained(tmp_path)
    families.tokenizer(tmp_path)
    with pytest.raises(UnknownModel, match="no weights for lm_head.weight"):
        load_model(str(tmp_path))


def test_a_model_of_images_is_refused_before_anything_is_installed_for_it(monkeypatch, tmp_path):
    """TransformerLens would pip-install torchvision, and with it another torch."""
    from transformers import Gemma3Config

    from interp.decoder import families as of
    from interp.decoder import loading
    from interp.errors import UnknownModel

    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: pytest.fail("an install was tried"))
    with pytest.raises(UnknownModel, match="vision_config"):
        of.check_config("gemma", Gemma3Config())
    from transformer_lens.model_bridge.sources.transformers import helpers

    loading._bridge()
    assert helpers._ensure_torchvision() is False


def test_heads_of_latent_attention_are_cut_where_the_model_cuts_them(folder_of):
    from interp import load_model
    from interp.decoder.hooks import captured

    model = load_model(str(folder_of("DeepSeek V3")))
    with torch.no_grad(), captured(model, "0.z") as cache:
        model(TOKENS)
    assert cache["blocks.0.attn.hook_z"].shape == (2, 12, 4, 6) and model.d_head == 6


def test_the_check_says_what_is_wrong_and_exits_with_1(folder_of, tmp_path, monkeypatch, capsys):
    from interp.cli import main
    from interp.decoder import families as of

    monkeypatch.setattr(of, "split_heads", lambda bridge: None)  # as the bridge itself cuts latent attention
    arguments = ["model", "check", str(folder_of("DeepSeek V3")), "--workspace", str(tmp_path), "--out", "c"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "WRONG   hook point z" in printed.out and "cannot be trusted" in printed.err
    assert (tmp_path / "runs/c/checks.parquet").exists() and (tmp_path / "runs/c/run.json").exists()
    assert main(["model", "check", "--length", "2"]) == 2


def test_edge_scores_are_refused_where_a_norm_stands_after_attention(folder_of):
    from interp import InputError, find_circuit, load_model
    from interp.causal.conformance import task_of
    from interp.decoder.checking import Given

    model = load_model(str(folder_of("Gemma 2")))
    with pytest.raises(InputError, match="a norm stands after attention"):
        find_circuit(model, task_of(Given.of(model)), method="eap", force=True)
