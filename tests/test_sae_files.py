"""Folders of SAELens: what comes back is what was saved, what is read does what its code does, written out here; and,
where sae-lens is at hand, SAELens itself.

sae-lens needs another transformer-lens than we do: INTERP_SAELENS_PYTHON names a Python that has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

KINDS = {
    "standard": {}, "gated": {}, "jumprelu": {}, "topk": {}, "abstopk": {},
    "transcoder": {"architecture": "standard", "out_site": "blocks.1.hook_mlp_out", "d_out": 20},
    "skip_transcoder": {"architecture": "standard", "out_site": "blocks.1.hook_mlp_out", "d_out": 20, "skip": True},
    "jumprelu_transcoder": {"architecture": "jumprelu", "out_site": "blocks.1.hook_mlp_out"},
    "jumprelu_skip_transcoder": {"architecture": "jumprelu", "out_site": "blocks.1.hook_mlp_out", "skip": True},
}  # fmt: skip
"""SAELens' architectures, and ours that are saved as such."""

OURS = KINDS | {
    "topk_transcoder": {"architecture": "topk", "out_site": "blocks.1.hook_mlp_out"},
    "gated_skip_transcoder": {"architecture": "gated", "out_site": "blocks.1.hook_mlp_out", "skip": True},
    "crosscoder": {"architecture": "topk", "site": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]},
}
"""And those that SAELens has no class for; a crosscoder is a plain dictionary to it."""


@pytest.fixture
def make(make_dictionary):
    def make(kind, **changes):
        settings = {"architecture": kind, "model": {"name": "m", "fingerprint": "sha256:1"}, "context": 32}
        return make_dictionary(**(settings | OURS[kind] | changes))

    return make


@pytest.mark.parametrize("kind", OURS)
def test_load_of_save_is_bitwise_the_dictionary(kind, make, tmp_path):
    import sae
    from sae.files import save

    dct = make(kind)
    save(dct, tmp_path)
    again = sae.load(tmp_path)
    assert list(again.weights()) == list(dct.weights())
    for name, value in dct.weights().items():
        assert torch.equal(value, again.weights()[name]), name
    for name in ("architecture", "k", "sites", "out_sites", "context", "model"):
        assert getattr(again, name) == getattr(dct, name), name
    assert again.path == tmp_path
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == ("topk" if kind == "crosscoder" else kind)
    x = torch.randn(40, dct.d_in)
    assert torch.equal(again(x), dct(x))


def test_files_have_the_keys_and_shapes_of_saelens(make, tmp_path):
    from sae.files import save

    bias = {"W_enc": (32, 64), "W_dec": (64, 32), "b_dec": (32,)}
    wanted = {
        "topk": bias | {"b_enc": (64,)}, "jumprelu": bias | {"b_enc": (64,), "threshold": (64,)},
        "gated": bias | {"b_gate": (64,), "b_mag": (64,), "r_mag": (64,)},
        "skip_transcoder": bias | {"b_enc": (64,), "W_dec": (64, 20), "b_dec": (20,), "W_skip": (20, 32)},
    }  # fmt: skip
    for kind, shapes in wanted.items():
        save(make(kind), tmp_path / kind)
        weights = load_file(tmp_path / kind / "sae_weights.safetensors")
        assert {name: tuple(value.shape) for name, value in weights.items()} == shapes
    cfg = json.loads((tmp_path / "topk" / "cfg.json").read_text())
    assert cfg["k"] == 4 and cfg["dtype"] == "float32" and cfg["rescale_acts_by_decoder_norm"] is False
    assert cfg["normalize_activations"] == "none" and cfg["apply_b_dec_to_input"] is True
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")  # else SAELens reads an older layout: no hook_name
    assert cfg["metadata"]["hook_name"] == "blocks.1.hook_resid_post" and cfg["metadata"]["model_name"] == "m"
    save(make("topk", site="blocks.1.attn.hook_z"), tmp_path / "z", dtype=torch.bfloat16)
    cfg = json.loads((tmp_path / "z" / "cfg.json").read_text())
    assert cfg["reshape_activations"] == "hook_z" and cfg["dtype"] == "bfloat16"
    assert load_file(tmp_path / "z" / "sae_weights.safetensors")["W_enc"].dtype == torch.bfloat16


def as_saelens(weights, cfg, x):
    """SAELens' encode and forward (sae_lens/saes/*_sae.py, transcoder.py), without its folding or ours."""
    name, transcoder = cfg["architecture"], "transcoder" in cfg["architecture"]
    norm = weights["W_dec"].norm(dim=1) if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(cfg["d_sae"])
    sae_in = x if transcoder or not cfg["apply_b_dec_to_input"] else x - weights["b_dec"]
    if name == "gated":
        gate = (sae_in @ weights["W_enc"] + weights["b_gate"] > 0).float()
        latents = gate * (sae_in @ (weights["W_enc"] * weights["r_mag"].exp()) + weights["b_mag"]).relu()
    else:
        pre = (sae_in @ weights["W_enc"] + weights["b_enc"]) * norm
        latents = pre.relu()
        if "threshold" in weights:
            latents = latents * (pre > weights["threshold"])
        if "k" in cfg:
            top = (pre.abs() if name == "abstopk" else pre).topk(cfg["k"]).indices
            kept = pre.gather(1, top)
            latents = torch.zeros_like(pre).scatter(1, top, kept if name == "abstopk" else kept.relu())
    out = latents / norm @ weights["W_dec"] + weights["b_dec"]
    return latents, out + x @ weights["W_skip"].T if "W_skip" in weights else out


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_does_what_saelens_does_with_the_files(kind, centre, make, tmp_path):
    import sae
    from sae.files import save

    save(make(kind), tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg["apply_b_dec_to_input"] = centre
    if "k" in cfg:
        cfg["rescale_acts_by_decoder_norm"] = centre
    weights = load_file(tmp_path / "sae_weights.safetensors")
    if "threshold" in weights:
        weights["threshold"][:5] = -1.0  # below 0 SAELens' relu decides
    save_file(weights, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    x = torch.randn(200, cfg["d_in"])
    latents, out = as_saelens(weights, cfg, x)
    assert 0.5 < (latents != 0).sum(1).float().mean() < 40
    again = sae.load(tmp_path)
    torch.testing.assert_close(again.encode(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again(x), out, rtol=1e-5, atol=1e-4)  # sums over 64 latents of size 10


def test_a_transcoder_that_does_not_say_its_sites_is_one_all_the_same(make, tmp_path):
    import sae
    from sae.files import save

    save(dct := make("skip_transcoder"), tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"metadata": {"sae_lens_version": "6.54.12"}}))
    again, x = sae.load(tmp_path), torch.randn(9, 32)
    assert again.is_transcoder and again.out_sites == ("unknown",) and torch.equal(again(x), dct(x))


def test_cfg_from_before_saelens_6_is_read(make, tmp_path):
    import sae
    from sae.files import save

    save(dct := make("topk"), tmp_path)
    old = {
        "d_in": 32, "d_sae": 64, "dtype": "float32", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4},
        "model_name": "gpt2-small", "hook_name": "blocks.1.hook_resid_pre", "context_size": 128,
        "apply_b_dec_to_input": True, "normalize_activations": "none", "finetuning_scaling_factor": False,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    again = sae.load(tmp_path)
    assert (again.architecture, again.k, again.site) == ("topk", 4, "blocks.1.hook_resid_pre")
    assert again.model["name"] == "gpt2-small" and again.context == 128
    x = torch.randn(9, 32)
    assert torch.equal(again(x), dct(x))
    save(make("jumprelu"), tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    threshold = weights.pop("threshold").clamp_min(0.01)
    save_file(weights | {"log_threshold": threshold.log()}, tmp_path / "sae_weights.safetensors")
    torch.testing.assert_close(sae.load(tmp_path).threshold, threshold)


def test_folders_that_cannot_be_read_are_input_errors(make, tmp_path):
    import sae
    from interp.errors import InputError, MissingFile, UnknownName
    from sae.files import save

    with pytest.raises(MissingFile, match="no dictionary in"):
        sae.load(tmp_path / "nothing")
    save(make("topk"), tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    weights = load_file(tmp_path / "sae_weights.safetensors")

    def refused(error, match, **changes):
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | changes))
        with pytest.raises(error, match=match):
            sae.load(tmp_path)

    refused(UnknownName, 'unknown architecture "temporal". Nearest: ', architecture="temporal")
    refused(InputError, "one in training", architecture="batchtopk")
    refused(InputError, "threshold should be there", architecture="jumprelu")
    refused(InputError, "W_skip should be there", architecture="topk_skip_transcoder")
    refused(InputError, "normalize_activations", normalize_activations="layer_norm")
    refused(InputError, "finetuning_scaling_factor", finetuning_scaling_factor=True)
    refused(InputError, r"W_enc should be \[6, 64\] as cfg.json says", d_in=6)
    refused(InputError, "k must be between 1 and d_sae", k=65)
    (tmp_path / "cfg.json").write_text(json.dumps({key: value for key, value in cfg.items() if key != "k"}))
    with pytest.raises(InputError, match="does not say k"):
        sae.load(tmp_path)
    save_file(weights | {"b_enc": torch.full((64,), torch.nan)}, tmp_path / "sae_weights.safetensors")
    refused(InputError, "b_enc holds NaN")
    save_file(weights | {"b_enc": torch.zeros(63)}, tmp_path / "sae_weights.safetensors")
    refused(InputError, r"b_enc should be \[64\]")
    save_file({"W_enc": torch.zeros(32, 64)}, tmp_path / "sae_weights.safetensors")
    refused(InputError, "b_enc should be there")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"torn")
    refused(InputError, "not a safetensors file")
    (tmp_path / "sae_weights.safetensors").unlink()
    refused(MissingFile, "sae_weights")
    for content, match in (("{", "not JSON"), ("[]", "no keys")):
        (tmp_path / "cfg.json").write_text(content)
        with pytest.raises(InputError, match=match):
            sae.load(tmp_path)


def test_checkpoint_comes_back_with_its_step(tmp_path):
    from sae.files import load_checkpoint, save_checkpoint

    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"a": torch.arange(3)}, step=7)
    tensors, step = load_checkpoint(tmp_path)
    assert step == 7 and torch.equal(tensors["a"], torch.arange(3))


PYTHON = os.environ.get("INTERP_SAELENS_PYTHON") or (sys.executable if importlib.util.find_spec("sae_lens") else None)
SIDE = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.registry import get_sae_class

def outputs(sae, x):
    with torch.no_grad():
        latents = sae.encode(x)
        return {"latents": latents.to_dense().contiguous(), "out": sae(x).contiguous()}

root = Path(sys.argv[2])
for name in sys.argv[3:]:
    x = load_file(root / "x.safetensors")
    if sys.argv[1] == "read":
        sae = SAE.load_from_disk(root / name)
        assert sae.cfg.architecture() == name, (sae.cfg.architecture(), name)
        assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post" and sae.cfg.metadata.model_name == "m"
    else:
        kind, config = get_sae_class(name)
        more = {"d_out": 20, "apply_b_dec_to_input": False} if "transcoder" in name else {}
        more |= {"k": 4, "rescale_acts_by_decoder_norm": True} if "topk" in name else {}
        sae = kind(config(d_in=32, d_sae=64, **more))
        torch.manual_seed(1)
        for key, p in sae.named_parameters():
            p.data.copy_(torch.randn_like(p) * 0.2)
            if key == "threshold":
                p.data.abs_()
        sae.save_model(root / name)
    save_file(outputs(sae, x["x"]), root / name / "theirs.safetensors")
"""

saelens = pytest.mark.skipif(PYTHON is None, reason="no sae-lens here: name a Python with it in INTERP_SAELENS_PYTHON")


def side(mode, folder):
    """SAELens' own latents and outputs for every kind, in `folder`/KIND/theirs.safetensors."""
    save_file({"x": torch.randn(100, 32)}, folder / "x.safetensors")
    done = subprocess.run([PYTHON, "-c", SIDE, mode, str(folder), *KINDS], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "x.safetensors")["x"]


@saelens
def test_saelens_itself_loads_what_we_save_and_says_the_same(make, tmp_path):
    from sae.files import save

    made = {kind: make(kind) for kind in KINDS}
    for kind, dct in made.items():
        save(dct, tmp_path / kind)
    x = side("read", tmp_path)
    for kind, dct in made.items():
        theirs = load_file(tmp_path / kind / "theirs.safetensors")
        torch.testing.assert_close(dct.encode(x), theirs["latents"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dct(x), theirs["out"], rtol=1e-5, atol=1e-4)


@saelens
def test_what_saelens_itself_saves_we_load_and_say_the_same(tmp_path):
    import sae

    x = side("write", tmp_path)
    for kind in KINDS:
        dct, theirs = sae.load(tmp_path / kind), load_file(tmp_path / kind / "theirs.safetensors")
        torch.testing.assert_close(dct.encode(x), theirs["latents"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dct(x), theirs["out"], rtol=1e-5, atol=1e-5)
