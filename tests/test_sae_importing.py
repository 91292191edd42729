"""Folders of dictionary_learning and sparsify: what is read does what their code does, written out here."""

import json

import pytest
import torch
from safetensors.torch import save_file

DL = {
    "AutoEncoder": "standard", "AutoEncoderNew": "standard", "GatedAutoEncoder": "gated", "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu", "MatryoshkaBatchTopKSAE": "jumprelu", "JumpReluAutoEncoder": "jumprelu",
}  # fmt: skip


@pytest.mark.parametrize("kind", DL)
def test_dictionary_learning_folders_do_what_its_code_does(kind, make_dictionary, tmp_path):
    """Against dictionary_learning/dictionary.py and trainers/{top_k,batch_top_k,matryoshka_batch_top_k}.py."""
    import sae

    w = {name: value.clone() for name, value in make_dictionary(DL[kind]).weights().items()}
    x, centred = torch.randn(50, 32), kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    pre = (x - w["b_dec"] * centred) @ w["W_enc"] + w["b_enc"]
    linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    square = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    threshold = torch.tensor(0.2)
    if kind == "GatedAutoEncoder":
        raw = (x - w["b_dec"]) @ w["W_enc"]
        latents = (raw + w["b_enc"] > 0) * (raw * w["r_mag"].exp() + w["b_mag"]).relu()
        state = {k: linear[k] for k in ("encoder.weight", "decoder.weight")} | {
            "decoder_bias": w["b_dec"], "r_mag": w["r_mag"], "gate_bias": w["b_enc"], "mag_bias": w["b_mag"]
        }  # fmt: skip
    elif kind == "AutoEncoderTopK":
        top = pre.relu().topk(4)
        latents = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        state = linear | {"b_dec": w["b_dec"], "k": torch.tensor(4), "threshold": torch.tensor(-1.0)}
    elif DL[kind] == "standard":
        latents, state = pre.relu(), linear | {"bias" if centred else "decoder.bias": w["b_dec"]}
    else:
        each = w["threshold"] if kind == "JumpReluAutoEncoder" else threshold
        latents = pre.relu() * (pre > each)
        state = (linear | {"b_dec": w["b_dec"]} if kind == "BatchTopKSAE" else square) | {"threshold": each}
        if kind != "JumpReluAutoEncoder":
            state["k"] = torch.tensor(4)
    torch.save(state, tmp_path / "ae.pt")
    trainer = {"dict_class": kind, "k": 4, "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped",
               "submodule_name": "mlp_layer_3", "activation_dim": 32, "dict_size": 64}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    dct = sae.load(tmp_path)
    torch.testing.assert_close(dct.encode(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dct(x), latents @ w["W_dec"] + w["b_dec"], rtol=1e-5, atol=1e-4)
    assert dct.architecture == DL[kind] and dct.site == "blocks.3.hook_mlp_out" and dct.context == 128
    assert dct.model["name"] == "EleutherAI/pythia-70m-deduped"


@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify_folders_do_what_its_code_does(transcode, make_dictionary, tmp_path):
    """Against sparsify/sparse_coder.py and fused_encoder.py."""
    import sae

    w, x = make_dictionary("topk", skip=transcode).weights(), torch.randn(50, 32)
    folder = tmp_path / ("layers.3.mlp" if transcode else "layers.3")
    folder.mkdir()
    state = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "W_dec": w["W_dec"],
             "b_dec": w["b_dec"]} | ({"W_skip": w["W_skip"]} if transcode else {})  # fmt: skip
    save_file(state, folder / "sae.safetensors")
    cfg = {"activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": 64, "k": 4,
           "skip_connection": transcode, "transcode": transcode, "d_in": 32}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(cfg))
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "ctx_len": 512}))
    top = ((x if transcode else x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu().topk(4)
    out = torch.zeros(50, 64).scatter(1, top.indices, top.values) @ w["W_dec"] + w["b_dec"]
    dct = sae.load(folder)
    torch.testing.assert_close(dct(x), out + x @ w["W_skip"].T if transcode else out, rtol=1e-5, atol=1e-4)
    assert dct.out_sites == ("blocks.3.hook_mlp_out" if transcode else "blocks.3.hook_resid_post",)
    assert dct.is_transcoder == transcode and dct.model["name"] == "EleutherAI/pythia-70m" and dct.context == 512


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pt_file_that_holds_code_is_refused_and_does_not_run(tmp_path):
    import sae
    from interp.errors import InputError

    torch.save({"encoder.weight": Trap(tmp_path / "ran")}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    with pytest.raises(InputError, match="not a file of weights"):
        sae.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_other_libraries_folders_that_cannot_be_read_are_input_errors(tmp_path):
    import sae
    from interp.errors import InputError, MissingFile, UnknownName

    torch.save({"encoder.weight": torch.zeros(3, 2)}, tmp_path / "ae.pt")
    with pytest.raises(MissingFile, match="no config.json"):
        sae.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopk"}}))
    with pytest.raises(UnknownName, match="Nearest: AutoEncoderTopK"):
        sae.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}}))
    with pytest.raises(InputError, match="holds no b_enc"):
        sae.load(tmp_path)
    (tmp_path / "ae.pt").unlink()
    save_file({"encoder.weight": torch.zeros(3, 2)}, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "groupmax", "d_in": 2}))
    with pytest.raises(InputError, match='"groupmax"'):
        sae.load(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 2, "k": 1}))
    with pytest.raises(InputError, match="holds no encoder.bias"):
        sae.load(tmp_path)
