"""Models from a directory of either form; fingerprints; what a wrong name gets."""

import json
import shutil
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parent.parent.parent / "shared" / "models"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared/models is not here")


def test_the_fingerprint_follows_weights_and_config_but_not_the_place(tiny_model, tiny_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    from interp import load_model

    moved = shutil.copytree(tiny_dir, tmp_path / "moved")
    assert load_model(str(moved)).fingerprint == tiny_model.fingerprint
    state = load_file(moved / "model.safetensors")
    next(iter(state.values())).flatten()[0] += 1
    save_file(state, moved / "model.safetensors", {"format": "pt"})
    assert load_model(str(moved)).fingerprint != tiny_model.fingerprint


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtype_is_the_one_asked_for(tiny_dir, dtype):
    from interp import load_model

    model = load_model(str(tiny_dir), dtype=dtype)
    assert model.dtype == getattr(torch, dtype) and model.provenance()["dtype"] == dtype


@pytest.mark.parametrize("name", ["bundledd", "/nowhere/model", "a/b/c", "./nothing", "gpt2"])
def test_an_unknown_model_names_the_nearest(name):
    from interp import load_model
    from interp.errors import UnknownModel

    with pytest.raises(UnknownModel, match="Nearest: ") as error:
        load_model(name)
    said, _, near = str(error.value).partition("Nearest: ")
    assert "\n" not in said and name in said and name not in near.rstrip(".").split(", ")


def test_wrong_dtype_device_and_broken_config_are_input_errors(tiny_dir, tmp_path):
    from interp import InputError, load_model

    with pytest.raises(InputError, match="float32"):
        load_model(str(tiny_dir), dtype="float33")
    with pytest.raises(InputError, match="--device cpu"):
        load_model(str(tiny_dir), device="nonsense")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_model(str(tmp_path))


def test_code_that_comes_with_a_model_is_never_run(tiny_dir, tmp_path, monkeypatch):
    """transformers would ask on the terminal whether to run it."""
    from interp import load_model
    from interp.decoder.sources import config_of
    from interp.errors import UnknownModel

    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("asked on the terminal"))
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    for read in (load_model, config_of):
        with pytest.raises(UnknownModel) as error:
            read(str(folder))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_too_many_positions_is_an_input_error(tiny_model):
    from interp import InputError

    with pytest.raises(InputError, match="at most 64"):
        tiny_model(torch.zeros(1, 65, dtype=torch.long))


@needs_shared
@pytest.mark.parametrize("name", ["induction", "sorted_list", "unique_char", "stories260K"])
def test_every_site_of_the_third_party_models_is_causal(name):
    from interp import load_model
    from interp.decoder.checking import check

    lines = check(load_model(str(SHARED / name)))
    assert not [line for line in lines if line.verdict == "WRONG"]


@needs_shared
def test_stories260k_continues_as_its_authors_say():
    from interp import load_model

    model = load_model(str(SHARED / "stories260K"))
    ids = model.to_tokens("Once upon a time")
    with torch.no_grad():
        for _ in range(20):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert ", there was a little girl named Lily." in model.tokenizer.decode(ids)


@needs_shared
def test_a_transformer_lens_folder_with_missing_weights_is_refused(tmp_path):
    from interp import load_model
    from interp.errors import UnknownModel

    config = json.loads((SHARED / "induction" / "config.json").read_text()) | {"n_layers": 3}
    shutil.copy(SHARED / "induction" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownModel, match="not a TransformerLens model"):
        load_model(str(tmp_path))
