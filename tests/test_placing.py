"""Weights that are not all in memory, or not numbers that can be read: what holds, and what is refused."""

from __future__ import annotations

import pytest
import torch
from families import build


@pytest.fixture(scope="module", params=["GPT-2", "Llama"])
def both(request, tmp_path_factory):
    """A model whole, and with most of its weights on disk."""
    pytest.importorskip("accelerate", reason="device auto takes accelerate")
    from interp.decoder.loading import load_model

    folder = build(request.param, tmp_path_factory.mktemp("placing") / "model")
    spread = load_model(
        str(folder), device="auto", max_memory={"cpu": 60_000}, offload=tmp_path_factory.mktemp("offload")
    )
    return load_model(str(folder)), spread


TOKENS = torch.randint(1, 119, (3, 9), generator=torch.Generator().manual_seed(0))


def test_weights_on_disk_give_the_same_logits_and_fingerprint(both):
    whole, spread = both
    assert any(value.is_meta for value in spread.bridge.parameters())
    assert spread.fingerprint == whole.fingerprint and spread.device == whole.device
    with torch.no_grad():
        assert torch.equal(spread(TOKENS), whole(TOKENS))
        torch.testing.assert_close(spread.plain_pass(TOKENS), whole.plain_pass(TOKENS))
        with spread.fused_attention():
            fused = spread(TOKENS)
        torch.testing.assert_close(fused, whole(TOKENS), atol=1e-5, rtol=1e-5)  # float32, two orders of summing


def test_weights_on_disk_can_be_hooked_ablated_and_differentiated(both):
    from interp.decoder.hooks import captured, edited

    found = []
    for model in both:
        with captured(model, model.sites) as cache, edited(model, {"0.z": torch.zeros_like}):
            logits = model(TOKENS)
            site = next(value for name, value in cache.items() if name.endswith("1.hook_resid_pre"))
        (slope,) = torch.autograd.grad(logits[..., 5].sum(), site, allow_unused=True)
        found.append((logits, cache, slope))
    (a, seen_a, slope_a), (b, seen_b, slope_b) = found
    assert torch.equal(a, b) and all(torch.equal(seen_a[name], seen_b[name]) for name in seen_a)
    assert (slope_a is None) == (slope_b is None)


def test_an_ablation_sweep_and_generation_are_the_same_with_weights_on_disk(both):
    import interp
    from interp.data.tasks import Prompt, Task

    rows = TOKENS.tolist()
    task = Task("pairs", [Prompt(row, [(8, 3)], row[:3] + [7] + row[4:], 5, {"end": 8}) for row in rows])
    sweeps = [
        interp.ablate(model, task, components="heads", method="zero", metric="logit_diff").table() for model in both
    ]
    assert sweeps[0]["effect"].tolist() == pytest.approx(sweeps[1]["effect"].tolist(), abs=1e-5)
    written = [interp.generate(model, TOKENS[:1], max_new_tokens=5, temperature=0.0) for model in both]
    assert written[0].table().equals(written[1].table())


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_slopes_and_edges_are_the_same_with_weights_on_disk(both, method):
    import interp
    from interp.causal.attribution import edge_scores
    from interp.data.tasks import Prompt, Task

    rows = TOKENS.tolist()
    task = Task("pairs", [Prompt(row, [(8, 3)], row[:3] + [7] + row[4:], 5, {"end": 8}) for row in rows])
    whole, spread = (edge_scores(model, task, method=method) for model in both)
    assert abs(whole).max() > 0.01 and whole == pytest.approx(spread, abs=1e-6)
    one, two = (interp.attribute(model, task).table().effect.to_numpy() for model in both)
    assert one == pytest.approx(two, abs=1e-6)  # float32, the fused kernel's order


def test_slopes_through_more_than_fits_are_refused_before_a_pass(both, monkeypatch):
    import interp
    from interp.data.tasks import Prompt, Task
    from interp.decoder import memory
    from interp.errors import InputError

    monkeypatch.setattr(memory, "available", lambda device: 1000)
    task = Task("pairs", [Prompt(TOKENS[0].tolist(), [(8, 3)], TOKENS[1].tolist(), 5, {"end": 8})])
    with pytest.raises(InputError, match="attribution patching takes gradients, which hold all weights .* on disk"):
        interp.attribute(both[1], task)


def test_direct_attribution_is_the_same_with_weights_on_disk(both):
    import interp

    one, two = (interp.attribute_logits(model, TOKENS[0].tolist(), answer=3, wrong=5).rows for model in both)
    assert one.contribution.to_numpy() == pytest.approx(two.contribution.to_numpy(), abs=1e-5)


def test_what_reads_all_weights_is_refused_by_name_where_they_are_on_disk(both):
    from interp.decoder.weights import replaced
    from interp.errors import InputError
    from interp.lenses.weights import read

    spread = both[1]
    with pytest.raises(InputError, match="a circuit of weights reads the weights of .* not all in memory"):
        next(read(spread))
    with pytest.raises(InputError, match="other weights in their place"), replaced(spread, {}, "x"):
        pass


def test_two_models_on_disk_do_not_read_each_others_weights(tmp_path):
    """Of experts, which transformers joins, the weights are written to the folder of offloaded ones."""
    pytest.importorskip("accelerate", reason="device auto takes accelerate")
    import gc

    from interp.decoder.loading import load_model

    folder, off = build("Mixtral", tmp_path / "a"), tmp_path / "off"
    other = load_model(str(folder)).plain
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1
    other.save_pretrained(tmp_path / "b")
    where = {"device": "auto", "max_memory": {"cpu": 60_000}, "offload": off}
    first = load_model(str(folder), **where)
    second = load_model(str(tmp_path / "b"), **where)
    with torch.no_grad():
        assert torch.equal(first(TOKENS), load_model(str(folder))(TOKENS))
        assert torch.equal(second(TOKENS), load_model(str(tmp_path / "b"))(TOKENS))
    assert "disk" in first.where and len(list(off.iterdir())) == 2
    del first, second
    gc.collect()
    assert not list(off.iterdir())


@pytest.mark.parametrize("budget", [{"cpu": "much"}, {"gpu": "20GB"}, {0: "20"}])
def test_a_budget_that_is_none_is_one_line(budget, tiny_dir):
    pytest.importorskip("accelerate", reason="device auto takes accelerate")
    from interp.decoder.loading import load_model
    from interp.errors import InputError

    with pytest.raises(InputError, match="0=20GB,cpu=60GB is right"):
        load_model(str(tiny_dir), device="auto", max_memory=budget)


def test_what_is_not_installed_is_said_in_one_line(tiny_dir, monkeypatch, capsys):
    import importlib.util

    from interp.cli import main

    found = importlib.util.find_spec
    missing = ("accelerate", "bitsandbytes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else found(name, *a))
    assert main(["model", "info", str(tiny_dir), "--device", "auto"]) == 2
    assert "takes accelerate, which is not installed" in capsys.readouterr().err
    assert main(["model", "info", str(tiny_dir), "--quantize", "4bit"]) == 2
    assert "takes bitsandbytes, which is not installed" in capsys.readouterr().err
    assert main(["model", "info", str(tiny_dir), "--quantize", "3bit"]) == 2
    assert "unknown quantisation" in capsys.readouterr().err
