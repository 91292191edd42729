"""Identities of activation patching."""

import numpy as np
import pytest
import torch


def test_patching_every_site_recovers_clean_logits(tiny_model, pairs):
    """All positions of 0.resid_pre together are the whole input."""
    from interp.causal import sweeps
    from interp.decoder.hooks import edited

    cache = sweeps.activations(tiny_model, pairs, ["0.resid_pre"], "clean")
    with torch.no_grad(), edited(tiny_model, {"0.resid_pre": lambda v: cache["blocks.0.hook_resid_pre"]}):
        patched = tiny_model(pairs.tokens("corrupted"))
    with torch.no_grad():
        assert torch.equal(patched, tiny_model(pairs.tokens("clean")))


def test_the_changed_position_alone_carries_everything_at_layer_0(tiny_model, pairs):
    from interp import patch

    table = patch(tiny_model, pairs, site="resid_pre", method="denoise").table()
    first = table[table.layer == 0].set_index("position").normalized
    changed = [i for i in range(pairs.length) if (pairs.tokens()[:, i] != pairs.tokens("corrupted")[:, i]).any()]
    same = [str(i) for i in range(pairs.length) if i not in changed]
    assert len(changed) == 1
    assert first[str(changed[0])] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(first[same], 0, atol=1e-5)


def test_patching_clean_into_clean_changes_nothing(tiny_model, pairs):
    from dataclasses import replace

    from interp import patch
    from interp.data.tasks import Task

    twins = Task("twins", [replace(p, corrupted_tokens=p.clean_tokens) for p in pairs.prompts])
    found = patch(tiny_model, twins, site="z", by=("layer", "head"), metric="loss")
    np.testing.assert_allclose(found.table().effect, 0, atol=1e-5)


def test_patching_equals_a_slow_loop_over_the_plain_model(tiny_model, tiny_dir, pairs):
    from transformers import AutoModelForCausalLM

    from interp import patch

    hf = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()
    found = patch(tiny_model, pairs, site="resid_pre", method="noise")
    slow = []
    with torch.no_grad():
        for layer in range(2):
            for pos in range(pairs.length):
                row = []
                for prompt in pairs.prompts:
                    seen = []
                    block = hf.transformer.h[layer]
                    handle = block.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0].clone()))
                    hf(torch.tensor([prompt.corrupted_tokens]))
                    handle.remove()

                    def put(module, args, pos=pos, seen=seen):
                        value = args[0].clone()
                        value[0, pos] = seen[0][0, pos]
                        return (value, *args[1:])

                    handle = block.register_forward_pre_hook(put)
                    logits = hf(torch.tensor([prompt.clean_tokens])).logits[0, -1]
                    handle.remove()
                    row.append((logits[prompt.targets[0][1]] - logits[prompt.wrong_token]).item())
                slow.append(row)
    np.testing.assert_allclose(found.values["noise", "logit_diff"], slow, atol=1e-4)


def test_noising_starts_from_clean_and_denoising_from_corrupted(tiny_model, pairs):
    from interp import ablate, patch

    noise, denoise = (patch(tiny_model, pairs, method=method) for method in ("noise", "denoise"))
    clean = ablate(tiny_model, pairs, components="L0H0").baseline["logit_diff"]
    np.testing.assert_allclose(noise.baseline["logit_diff"], clean, atol=1e-5)
    assert not np.allclose(denoise.baseline["logit_diff"], clean, atol=1e-2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"site": "resid_pree"}, "Nearest: resid_pre"),
        ({"site": "pattern"}, "no site"),
        ({"by": ("layer", "token")}, "by"),
        ({"by": ("layer", "head")}, "has no heads"),
        ({"method": "nois"}, "Nearest: noise"),
    ],
)
def test_wrong_settings_name_what_would_be_right(tiny_model, pairs, given, message):
    from interp import InputError, patch

    with pytest.raises(InputError, match=message):
        patch(tiny_model, pairs, **given)


def test_a_task_without_corrupted_prompts_cannot_be_patched(tiny_model):
    from interp import InputError, patch
    from interp.data.tasks import Prompt, Task

    with pytest.raises(InputError, match="corrupted"):
        patch(tiny_model, Task("alone", [Prompt([1, 2, 3], [(2, 4)])]), metric="loss")
