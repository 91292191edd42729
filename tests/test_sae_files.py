"""SAELens folders: what is saved comes back bitwise, keys and shapes are SAELens', contradictions are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def dct():
    from sae.dictionary import Dictionary

    torch.manual_seed(0)
    model = {"name": "m", "fingerprint": "sha256:1"}
    W_dec, site = torch.randn(12, 5), "blocks.1.attn.hook_z"
    return Dictionary(
        torch.randn(5, 12), torch.randn(12), W_dec, torch.randn(5), k=3, site=site, model=model, context=32
    )


def test_load_of_save_is_bitwise_the_dictionary(dct, tmp_path):
    import sae
    from sae.files import save

    save(dct, tmp_path)
    again = sae.load(tmp_path)
    for name, value in dct.named_parameters():
        assert torch.equal(value, getattr(again, name))
    assert (again.k, again.site, again.context, again.path) == (3, dct.site, 32, tmp_path)
    assert again.model == {"name": "m", "fingerprint": "sha256:1"}
    x = torch.randn(4, 5)
    assert torch.equal(again(x), dct(x).detach())


def test_files_have_the_keys_and_shapes_of_saelens(dct, tmp_path):
    from sae.files import save

    save(dct, tmp_path)
    assert {n: tuple(t.shape) for n, t in load_file(tmp_path / "sae_weights.safetensors").items()} == {
        "W_enc": (5, 12), "b_enc": (12,), "W_dec": (12, 5), "b_dec": (5,)
    }  # fmt: skip
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] == "topk" and cfg["k"] == 3 and cfg["dtype"] == "float32"
    assert cfg["normalize_activations"] == "none" and cfg["apply_b_dec_to_input"] is True
    assert cfg["reshape_activations"] == "hook_z" and cfg["rescale_acts_by_decoder_norm"] is False
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")  # else SAELens reads an older layout: no hook_name
    assert cfg["metadata"]["hook_name"] == "blocks.1.attn.hook_z" and cfg["metadata"]["model_name"] == "m"


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("centre", [False, True])
def test_saelens_options_are_folded_into_the_weights(rescale, centre, dct, tmp_path):
    """Against SAELens' TopKSAE written out: norms scale the pre-activations and are divided out before the decoder."""
    import sae
    from sae.files import save

    save(dct, tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg |= {"rescale_acts_by_decoder_norm": rescale, "apply_b_dec_to_input": centre}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    x = torch.randn(20, 5)
    with torch.no_grad():
        norm = dct.W_dec.norm(dim=1) if rescale else torch.ones(12)
        pre = ((x - dct.b_dec * centre) @ dct.W_enc + dct.b_enc) * norm
        top = pre.topk(3)
        latents = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        again = sae.load(tmp_path)
        torch.testing.assert_close(again.encode(x), latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again(x), latents / norm @ dct.W_dec + dct.b_dec, rtol=1e-5, atol=1e-5)


def test_folders_that_cannot_be_read_are_input_errors(dct, tmp_path):
    import sae
    from interp.errors import InputError, MissingFile, UnknownName
    from sae.files import save

    with pytest.raises(MissingFile, match="no dictionary in"):
        sae.load(tmp_path / "nothing")
    save(dct, tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())

    def with_cfg(error, match, **changes):
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | changes))
        with pytest.raises(error, match=match):
            sae.load(tmp_path)

    with_cfg(UnknownName, 'unknown architecture "jumprelu". Nearest: topk', architecture="jumprelu")
    with_cfg(InputError, "normalize_activations", normalize_activations="layer_norm")
    with_cfg(InputError, r"W_enc should be \[6, 12\]", d_in=6)
    (tmp_path / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if key != "k"}))
    with pytest.raises(InputError, match="does not say k"):
        sae.load(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    save_file({"W_enc": torch.zeros(5, 12)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(InputError, match="b_enc should be"):
        sae.load(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="not a safetensors file"):
        sae.load(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(MissingFile, match="sae_weights"):
        sae.load(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        sae.load(tmp_path)


def test_checkpoint_comes_back_with_its_step(tmp_path):
    from sae.files import load_checkpoint, save_checkpoint

    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"a": torch.arange(3)}, step=7)
    tensors, step = load_checkpoint(tmp_path)
    assert step == 7 and torch.equal(tensors["a"], torch.arange(3))
