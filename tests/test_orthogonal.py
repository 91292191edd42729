"""A direction taken out of the weights: the same as projecting it out at every write; saved whole or not at all."""

import json

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

TOKENS = torch.randint(1, 200, (3, 9), generator=torch.Generator().manual_seed(0))


def direction_of(model):
    from interp.causal.directions import Direction

    vector = torch.nn.functional.normalize(
        torch.randn(model.d_model, generator=torch.Generator().manual_seed(3)), dim=0
    )
    sites, about = pd.DataFrame(), {"model": model.provenance()}
    return Direction(vector, 0.0, "blocks.1.hook_resid_post", "up", "pca", pd.DataFrame(), sites, vector[None], about)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "neox", "mixtral"])
def test_the_saved_model_does_what_projecting_at_every_write_does(make_model, family, tmp_path):
    from transformers import AutoModelForCausalLM

    from interp.causal.orthogonal import orthogonalise
    from interp.decoder.hooks import edited

    model = make_model(family)
    up, to = direction_of(model), tmp_path / "models" / "without"
    with torch.no_grad():
        before = model(TOKENS)
        changed = orthogonalise(model, up, to)
        assert_close(model(TOKENS), before, atol=0, rtol=0)  # the model given stays as it is
        with edited(model, up.ablate(model)):
            wanted = model(TOKENS)
        assert_close(changed(TOKENS), wanted, atol=1e-4, rtol=0)
        plain = AutoModelForCausalLM.from_pretrained(to).eval()
        assert_close(plain(TOKENS).logits, wanted, atol=1e-4, rtol=0)
    assert float((wanted - before).abs().max()) > 0.1
    assert changed.fingerprint != model.fingerprint and changed.name == str(to)
    said = json.loads((to / "orthogonalised.json").read_text())
    assert said["from"]["fingerprint"] == model.fingerprint and len(said["vector"]) == model.d_model
    assert [path.name for path in to.parent.iterdir()] == ["without"]


def test_a_tied_unembedding_is_kept_as_it_was(make_model, tmp_path):
    from safetensors.torch import load_file

    from interp.causal.orthogonal import orthogonalise

    model = make_model("gpt2")
    changed, up = orthogonalise(model, direction_of(model), tmp_path / "without"), direction_of(model).vector
    assert torch.equal(changed.bridge.unembed.W_U, model.bridge.unembed.W_U)
    assert not torch.equal(changed.bridge.embed.W_E, model.bridge.embed.W_E)
    assert json.loads((tmp_path / "without" / "config.json").read_text())["tie_word_embeddings"] is False
    weights = load_file(tmp_path / "without" / "model.safetensors")
    for name in ("wte", "wpe", "h.0.attn.c_proj", "h.2.mlp.c_proj"):
        assert float((weights[f"transformer.{name}.weight"] @ up).abs().max()) < 1e-6
    assert float((weights["transformer.h.0.attn.c_attn.weight"].T @ up).abs().max()) > 0.1  # it reads


def test_a_norm_after_what_is_written_is_found_out_and_refused_by_name(tiny_dir, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, Gemma2Config

    from interp.causal.orthogonal import orthogonalise
    from interp.decoder.loading import load_model
    from interp.errors import InputError

    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    for name, config in {
        "bloom": BloomConfig(n_layer=2, n_head=4, hidden_size=32, initializer_range=0.2, **ids),
        "gemma2": Gemma2Config(
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size=32,
            intermediate_size=48, max_position_embeddings=32, initializer_range=0.2, **ids,
        ),
    }.items():  # fmt: skip
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        model = load_model(str(tmp_path / name))
        with pytest.raises(InputError, match=f"{name}.*cannot be made orthogonal .*a norm after them"):
            orthogonalise(model, direction_of(model), tmp_path / "out" / name)
        assert not list((tmp_path / "out").iterdir())


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tiny_model, make_model, tmp_path, monkeypatch):
    from interp.causal import orthogonal
    from interp.errors import AlreadyExists, WrongModel

    up = direction_of(tiny_model)
    (tmp_path / "there").mkdir()
    with pytest.raises(AlreadyExists, match="name a directory that does not"):
        orthogonal.orthogonalise(tiny_model, up, tmp_path / "there")
    with pytest.raises(WrongModel, match="was found in"):
        orthogonal.orthogonalise(make_model("llama"), up, tmp_path / "new")

    def broken(*args):
        raise RuntimeError("disk full")

    monkeypatch.setattr(orthogonal, "_check", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        orthogonal.orthogonalise(tiny_model, up, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
