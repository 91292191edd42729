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
    np.testing.assert_allclose(first[same], 0, atol=1e-4)  # float32, over the difference of the two runs


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
        ({"site": "9.z"}, "Nearest: "),
        ({"by": ("layer", "token")}, 'by "token" given. Nearest: '),
        ({"by": ("layer", "positon")}, "Nearest: position"),
        ({"by": ("layer", "head")}, "has no heads"),
        ({"site": "z", "by": ("layer", "neuron")}, "goes with post, pre"),
        ({"site": "z", "by": ("layer", "head"), "components": "L9H1"}, 'no component "L9H1"'),
        ({"site": "z", "by": ("layer", "head"), "components": "L0.mlp"}, "is no head"),
        ({"components": "L0H1"}, "by head, neuron, expert or latent"),
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


def test_a_pair_of_two_lengths_cannot_be_patched_and_is_named(tiny_model, pairs):
    from dataclasses import replace

    from interp import InputError, ablate, patch
    from interp.data.tasks import Task

    longer = replace(pairs.prompts[1], corrupted_tokens=[*pairs.prompts[1].corrupted_tokens, 5])
    task = Task("uneven", [pairs.prompts[0], longer])
    assert task.unaligned == [2]
    with pytest.raises(InputError, match="pair 2 .* 9 tokens clean and 10 corrupted"):
        patch(tiny_model, task)
    with pytest.raises(InputError, match="pair 2 "):
        ablate(tiny_model, task, components="L0H0", method="resample")
    assert len(ablate(tiny_model, task, components="L0H0", method="zero").table()) == 1


@pytest.mark.parametrize(("which", "source"), [("corrupted", "clean"), ("clean", "corrupted")])
def test_every_component_carried_over_at_once_gives_the_other_run(tiny_double, pairs, which, source):
    """Denoising all of them recovers clean, noising all gives corrupted."""
    from interp.causal.interventions import Intervention, Whole, Write
    from interp.causal.sweeps import sweep

    sites = [name for name in tiny_double.sites if name.endswith(("hook_attn_out", "hook_mlp_out", "hook_embed"))]
    everything = Intervention(tuple(Write(Whole(site), None) for site in sites))
    found = sweep(
        tiny_double, pairs, [everything], metrics=["logit_diff"], which=which, donors=pairs.tokens(source)
    ).values["logit_diff"][0]
    expected = sweep(tiny_double, pairs, [], metrics=["logit_diff"], which=source).baseline["logit_diff"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("method", "normalized"), [("denoise", 1), ("noise", 0)])
def test_the_whole_residual_stream_of_any_layer_gives_the_other_run(tiny_model, pairs, method, normalized):
    from interp import patch

    table = patch(tiny_model, pairs, site="resid_post", by="layer", method=method).table()
    assert list(table.component) == ["L0.resid_post", "L1.resid_post"] and set(table.position) == {"all"}
    np.testing.assert_allclose(table.normalized, normalized, atol=1e-4)


def test_a_table_of_units_names_them_and_keeps_their_index(tiny_model, pairs):
    from interp import patch

    heads = patch(tiny_model, pairs, site="1.q", by="layer,head").table()
    assert list(heads.component) == [f"L1H{head}.q" for head in range(4)] and set(heads.kind) == {"q"}
    both = patch(tiny_model, pairs, site="z", by="layer,head,position", components="L1H3,L0H2").table()
    assert list(both.component.unique()) == ["L0H2", "L1H3"] and len(both) == 2 * pairs.length
    assert set(both.kind) == {"head"} and list(both["index"].unique()) == [2, 3]
    neurons = patch(tiny_model, pairs, site="post", by="layer,neuron", components="L1.neurons")
    assert len(neurons.table()) == tiny_model.d_mlp and neurons.table().component[7] == "L1N7"
    assert list(patch(tiny_model, pairs, site="hook_embed").table().component.unique()) == ["embed"]


def test_patching_a_latent_is_splicing_in_its_value_of_the_other_run(tiny_model, pairs, make_dictionary):
    from interp import patch
    from interp.decoder.hooks import captured
    from sae.splicing import spliced

    dictionary = make_dictionary("standard", d_sae=20, site="blocks.0.hook_resid_post")
    found = patch(
        tiny_model, pairs, site="demo", by="latent,position", components="demo/3,demo/7",
        dictionaries={"demo": dictionary},
    )  # fmt: skip
    assert list(found.table().component.unique()) == ["demo/3", "demo/7"] and len(found.table()) == 2 * pairs.length
    with torch.no_grad(), captured(tiny_model, "0.resid_post") as cache:
        tiny_model(pairs.tokens("clean"))
    clean = dictionary.encode(cache["blocks.0.hook_resid_post"])
    prompt, pos, answer, wrong = pairs.reads()
    for row, (latent, at) in enumerate((latent, at) for latent in (3, 7) for at in range(pairs.length)):

        def edit(latents, latent=latent, at=at):
            latents = latents.clone()
            latents[:, at, latent] = clean[:, at, latent]
            return latents

        with torch.no_grad(), spliced(tiny_model, dictionary, edit=edit, keep_error=True):
            logits = tiny_model(pairs.tokens("corrupted"))[prompt, pos]
        expected = logits.gather(1, answer[:, None])[:, 0] - logits.gather(1, wrong[:, None])[:, 0]
        np.testing.assert_allclose(found.values["denoise", "logit_diff"][row], expected, atol=1e-4)
