"""Every hook point offered is causal, none is left behind, and reading changes nothing."""

import threading

import pytest
import torch
from torch.testing import assert_close

TOKENS = torch.randint(1, 200, (2, 10), generator=torch.Generator().manual_seed(0))


def test_logits_equal_the_plain_hugging_face_forward(tiny_model, tiny_dir):
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
    with torch.no_grad():
        assert_close(tiny_model(TOKENS), hf(TOKENS).logits, atol=1e-4, rtol=0)  # float32, another order of sums


def test_captured_activations_equal_those_of_plain_pytorch_hooks(tiny_model, tiny_dir):
    from transformers import AutoModelForCausalLM

    from interp.decoder.hooks import captured

    hf, seen = AutoModelForCausalLM.from_pretrained(tiny_dir).eval(), {}
    for layer, block in enumerate(hf.transformer.h):
        block.register_forward_hook(
            lambda m, i, o, n=layer: seen.__setitem__(f"{n}.resid_post", o[0] if isinstance(o, tuple) else o)
        )
        block.mlp.register_forward_hook(lambda m, i, o, n=layer: seen.__setitem__(f"{n}.mlp_out", o))
        block.attn.c_proj.register_forward_hook(
            lambda m, i, o, n=layer: seen.__setitem__(f"{n}.z", i[0].unflatten(-1, (4, 8)))
        )
    from interp.decoder.sites import full

    with torch.no_grad(), captured(tiny_model, ["*.resid_post", "*.mlp_out", "*.z"]) as cache:
        tiny_model(TOKENS)
        hf(TOKENS)
    assert len(seen) == len(cache) == 6
    for name, value in seen.items():
        assert_close(cache[full(name)], value, atol=1e-4, rtol=0)


def test_every_hook_point_offered_is_causal(tiny_model):
    from interp.decoder.hooks import captured, edited

    with torch.no_grad():
        clean = tiny_model(TOKENS)
        for site in tiny_model.sites:
            with captured(tiny_model, site) as cache:
                tiny_model(TOKENS)
            assert cache[site].numel(), site
            with edited(tiny_model, {site: lambda v: v + torch.randn_like(v)}):
                assert (tiny_model(TOKENS) - clean).abs().max() > 1e-3, site
        assert torch.equal(tiny_model(TOKENS), clean)


def test_an_identity_edit_changes_nothing(tiny_model):
    from interp.decoder.hooks import edited

    with torch.no_grad(), edited(tiny_model, {site: lambda v: v.clone() for site in tiny_model.sites}):
        edited_logits = tiny_model(TOKENS)
    with torch.no_grad():
        assert_close(edited_logits, tiny_model(TOKENS), atol=1e-5, rtol=0)


def test_hooks_are_gone_after_an_exception(tiny_model):
    from interp.decoder.hooks import edited

    def fail(value):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), edited(tiny_model, {"0.z": fail}):
        tiny_model(TOKENS)
    assert not any(tiny_model.hook_point(site).fwd_hooks for site in tiny_model.sites)
    with torch.no_grad():
        tiny_model(TOKENS)


def test_a_captured_activation_survives_an_edit_in_place_of_the_next(tiny_model):
    from interp.decoder.hooks import captured, edited

    with torch.no_grad():
        with captured(tiny_model, "0.resid_post") as before:
            tiny_model(TOKENS)
        with captured(tiny_model, "0.resid_post") as cache, edited(tiny_model, {"1.resid_pre": lambda v: v.zero_()}):
            tiny_model(TOKENS)
    assert torch.equal(cache["blocks.0.hook_resid_post"], before["blocks.0.hook_resid_post"])


def test_the_head_is_not_read_within_another_threads_pass(tiny_model):
    from interp.decoder.hooks import edited

    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = tiny_model.head(hidden), []
        thread = threading.Thread(target=lambda: found.append(tiny_model.head(hidden)))
        with edited(tiny_model, {"ln_final.hook_normalized": torch.zeros_like}):
            thread.start()
            thread.join(0.2)
        thread.join()
    assert torch.equal(found[0], wanted)


def test_two_threads_on_one_model_do_not_see_each_others_edits(tiny_model):
    from interp.decoder.hooks import edited

    with torch.no_grad():
        clean = tiny_model(TOKENS)
    wrong = []

    def ablating():
        for _ in range(30):
            with torch.no_grad(), edited(tiny_model, {"0.z": torch.zeros_like}):
                tiny_model(TOKENS)

    def reading():
        for _ in range(30):
            with torch.no_grad():
                wrong.append(not torch.equal(tiny_model(TOKENS), clean))

    threads = [threading.Thread(target=ablating), threading.Thread(target=reading)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 30 and not any(wrong)
