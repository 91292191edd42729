"""What a run takes, estimated before it starts, against what it takes."""

from __future__ import annotations

import pytest
import torch
from families import build


def measured_peak(run):
    """Bytes allocated at the worst moment of run(), as torch's allocator tells its profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("family", ["GPT-2", "BLOOM", "Mistral", "Gemma 2", "Phi 3", "Mixtral", "DeepSeek V3"])
def test_weights_cache_and_captured_are_what_a_config_says(family, tmp_path):
    from transformers import AutoConfig

    from interp.decoder.hooks import captured
    from interp.decoder.loading import load_model
    from interp.decoder.memory import estimate

    folder = build(family, tmp_path / "model")
    model = load_model(str(folder))
    sites = model.sites
    told = estimate(
        AutoConfig.from_pretrained(folder), batch=2, length=8, sites=[*sites, *model.mixtures.read_only], cache=True
    )
    tokens = torch.randint(0, model.d_vocab, (2, 8))
    with torch.no_grad(), captured(model, [*sites, *model.mixtures.read_only]) as cache:
        model(tokens)
        _, kept = model.extend(tokens, plain=True)
    loaded = estimate(model, batch=2, length=8)
    assert loaded.weights == pytest.approx(told.weights, rel=0.01)  # TransformerLens adds a bias of the unembedding
    assert told.captured == sum(value.nbytes for value in cache.values())
    wide = min(8, getattr(model.plain.config, "sliding_window", None) or 8)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    assert held <= told.cache  # a sliding window keeps less
    assert held == told.cache or wide < 8


LARGE = {
    "attention": ({"max_position_embeddings": 192}, (2, 192)),
    "MLP": ({"intermediate_size": 2048}, (4, 32)),
    "logits": ({"vocab_size": 5000}, (4, 32)),
    "stream": ({"hidden_size": 512}, (4, 32)),
}


@pytest.mark.parametrize(("family", "dtype"), [("Pythia (GPT-NeoX)", "bfloat16"), ("Gemma 2", "float32")])
@pytest.mark.parametrize("what", LARGE)
def test_activations_are_within_a_factor_of_two_of_the_measured_peak(family, dtype, what, tmp_path):
    from interp.decoder.loading import load_model
    from interp.decoder.memory import estimate

    settings, (batch, length) = LARGE[what]
    model = load_model(str(build(family, tmp_path / "model", **settings)), dtype=dtype)
    tokens = torch.randint(0, 119, (batch, length))
    with torch.no_grad():
        model(tokens)
        peak = measured_peak(lambda: model(tokens))
    told = estimate(model, batch=batch, length=length).activations
    assert peak / 2 <= told <= 2 * peak, f"{told / peak:.2f} times what was measured"


def test_of_the_bundled_model_activations_are_within_a_factor_of_two():
    from interp.decoder.loading import load_model
    from interp.decoder.memory import estimate

    model = load_model("bundled")
    for batch, length in ((8, 128), (32, 16), (1, 16)):
        tokens = torch.randint(0, model.d_vocab, (batch, length))
        with torch.no_grad():
            model(tokens)
            peak = measured_peak(lambda tokens=tokens: model(tokens))
        assert peak / 2 <= estimate(model, batch=batch, length=length).activations <= 2 * peak


def test_a_model_without_room_is_refused_before_a_weight_is_read(tiny_dir, monkeypatch):
    from interp.decoder import memory
    from interp.decoder.loading import load_model
    from interp.errors import InputError

    monkeypatch.setattr(memory, "available", lambda device: 50_000)
    with pytest.raises(InputError, match=r"needs 1\d\d\.\d kB for its weights in float32; cpu has 50\.0 kB free"):
        load_model(str(tiny_dir))


def test_the_command_asks_a_config_of_seventy_billion_without_its_weights(tmp_path, capsys):
    from transformers import LlamaConfig

    from interp.cli import main

    LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=32000, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path / "big")  # fmt: skip
    asked = ["model", "info", str(tmp_path / "big"), "--no-weights", "--dtype", "bfloat16"]
    assert main([*asked, "--batch", "8", "--length", "128", "--sites", "*.resid_post"]) == 0
    out = capsys.readouterr().out
    assert "138.0 GB" in out  # 68,976,648,192 parameters of two bytes
    assert "1.3 GB" in out  # 80 layers x 1024 tokens x 8192 numbers of two bytes
    assert main([*asked, "--batch", "0"]) == 2
    assert "one or more" in capsys.readouterr().err


def test_the_command_says_what_a_pass_takes(tiny_dir, capsys):
    from interp.cli import main

    assert main(["model", "info", str(tiny_dir), "--batch", "2", "--length", "16"]) == 0
    out = capsys.readouterr().out
    assert "sha256:" in out and "2 x 16 tokens" in out and "keys and values" in out
