"""Ablation against a slow, obvious loop over the plain Hugging Face model, and against figures measured elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parent.parent.parent / "shared" / "models"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared/models is not here")


def slow_head_ablation(directory, task, method):
    """Effects on logit_diff [head, prompt], a prompt at a time with PyTorch hooks on c_proj."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    n_heads, effects = hf.config.n_head, []
    d_head = hf.config.n_embd // n_heads
    kept = {}

    def logit_diff(prompt):
        logits = hf(torch.tensor([prompt.clean_tokens])).logits[0, -1]
        return (logits[prompt.targets[0][1]] - logits[prompt.wrong_token]).item()

    with torch.no_grad():
        clean = [logit_diff(p) for p in task.prompts]
        for layer, block in enumerate(hf.transformer.h):
            z = []
            handle = block.attn.c_proj.register_forward_pre_hook(lambda m, i, z=z: z.append(i[0][0].clone()))
            for prompt in task.prompts:
                logit_diff(prompt)
            handle.remove()
            longest = max(map(len, z))
            kept[layer] = [torch.stack([one[pos] for one in z if len(one) > pos]).mean(0) for pos in range(longest)]
        for layer, block in enumerate(hf.transformer.h):
            for head in range(n_heads):
                mine = slice(head * d_head, (head + 1) * d_head)

                def change(module, inputs, mine=mine, layer=layer):
                    value = inputs[0].clone()
                    for pos in range(value.shape[1]):
                        value[0, pos, mine] = 0 if method == "zero" else kept[layer][pos][mine]
                    return (value,)

                handle = block.attn.c_proj.register_forward_pre_hook(change)
                effects.append([logit_diff(p) - c for p, c in zip(task.prompts, clean, strict=True)])
                handle.remove()
    return np.array(effects)


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_head_ablation_equals_a_slow_loop_over_the_plain_model(tiny_model, tiny_dir, pairs, method):
    from interp import ablate

    found = ablate(tiny_model, pairs, components="heads", method=method)
    slow = slow_head_ablation(tiny_dir, pairs, method)
    np.testing.assert_allclose(found.values[method, "logit_diff"] - found.baseline["logit_diff"], slow, atol=1e-4)
    np.testing.assert_allclose(found.table().effect, slow.mean(1), atol=1e-4)


def test_zeroing_an_mlp_is_removing_its_output_from_the_residual_stream(tiny_model, pairs):
    from interp import ablate
    from interp.decoder.hooks import captured, edited

    one = ablate(tiny_model, pairs, components="L0.mlp", method="zero")
    tokens = pairs.tokens()
    with torch.no_grad(), captured(tiny_model, ["0.resid_mid"]) as cache:
        tiny_model(tokens)
    mid = cache["blocks.0.hook_resid_mid"]
    with torch.no_grad(), edited(tiny_model, {"0.resid_post": lambda v: mid}):
        logits = tiny_model(tokens)
    prompt, pos, answer, wrong = pairs.reads()
    expected = logits[prompt, pos, answer] - logits[prompt, pos, wrong]
    np.testing.assert_allclose(one.values["zero", "logit_diff"][0], expected, atol=1e-5)


def test_ablating_at_one_position_touches_no_other(tiny_model, pairs):
    from interp import ablate

    everywhere = ablate(tiny_model, pairs, components="L1H0", method="zero")
    last = ablate(tiny_model, pairs, components="L1H0", method="zero", position=-1)
    first = ablate(tiny_model, pairs, components="L1H0", method="zero", position=0)
    # in the last layer only the position read matters
    np.testing.assert_allclose(last.values["zero", "logit_diff"], everywhere.values["zero", "logit_diff"], atol=1e-5)
    np.testing.assert_allclose(first.table().effect, 0, atol=1e-5)


def test_kl_is_zero_at_baseline_and_positive_after(tiny_model, pairs):
    from interp import ablate

    found = ablate(tiny_model, pairs, components="heads", method="zero", metric=["kl", "prob", "loss", "accuracy"])
    assert found.baseline["kl"].max() < 1e-6 and (found.values["zero", "kl"] > 0).all()
    np.testing.assert_allclose(np.exp(-found.baseline["loss"]), found.baseline["prob"], rtol=1e-5)
    assert set(found.table().metric) == {"kl", "prob", "loss", "accuracy"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"components": "L9H9"}, "no component"),
        ({"method": "meen"}, 'no method "meen". Nearest: mean'),
        ({"metric": "logitdiff"}, "Nearest: logit_diff"),
        ({"position": "S9"}, "no position"),
        ({"position": "99"}, "tokens or more"),
    ],
)
def test_wrong_settings_name_what_would_be_right(tiny_model, pairs, given, message):
    from interp import InputError, ablate

    with pytest.raises(InputError, match=message):
        ablate(tiny_model, pairs, **given)


@needs_shared
@pytest.mark.parametrize(
    ("name", "method", "head", "accuracy", "loss"),
    [
        ("unique_char", "zero", "L0H1", 0.337, 18.51),
        ("unique_char", "mean", "L1H2", 0.653, 5.56),
        ("sorted_list", "mean", "L0H1", 0.180, 5.002),
        ("induction", "zero", "L0H2", 0.017, 5.06),
        ("induction", "mean", "L1H1", 0.731, 2.42),
    ],
)
def test_heads_of_the_third_party_models_matter_as_measured_elsewhere(name, method, head, accuracy, loss):
    from interp import ablate, load_model, load_task

    model = load_model(str(SHARED / name))
    task = load_task(SHARED / name / "prompts.jsonl", model)
    table = ablate(model, task, components=head, method=method, metric=["accuracy", "loss"]).table().set_index("metric")
    assert table.value["accuracy"] == pytest.approx(accuracy, abs=6e-4)  # given to three places
    assert table.value["loss"] == pytest.approx(loss, rel=2e-3)


@needs_shared
@pytest.mark.parametrize(
    ("name", "order"),
    [("sorted_list", ["L0H1", "L0H0"]), ("unique_char", ["L0H1", "L0H0", "L0H2"]), ("induction", ["L0H2"])],
)
def test_the_heads_of_published_mechanisms_come_out_on_top(name, order):
    from interp import ablate, load_model, load_task

    model = load_model(str(SHARED / name))
    task = load_task(SHARED / name / "prompts.jsonl", model)
    found = ablate(model, task, components="heads", method="mean", metric="loss")
    table = found.table().set_index("component").sort_values("effect", ascending=False)
    assert list(table.index[: len(order)]) == order and (table.q[order] < 1e-3).all()
    if name == "induction":  # the three induction heads matter, the fourth of the layer does nothing
        assert (table.effect[["L1H1", "L1H2", "L1H3"]] > 0.5).all() and abs(table.effect["L1H0"]) < 0.01


def test_ablating_a_latent_is_splicing_it_out_with_the_error_kept(tiny_model, pairs):
    from interp import ablate
    from sae.dictionary import Dictionary
    from sae.splicing import spliced

    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(32, 20, generator=generator), torch.randn(20, 32, generator=generator)
    dictionary = Dictionary(
        W_enc, torch.zeros(20), W_dec, torch.zeros(32), architecture="standard", site="blocks.0.hook_resid_post"
    )
    found = ablate(tiny_model, pairs, components="demo/3,demo/7", method="zero", dictionaries={"demo": dictionary})

    def without(latent):
        def edit(latents):
            latents = latents.clone()
            latents[..., latent] = 0
            return latents

        return edit

    prompt, pos, answer, wrong = pairs.reads()
    for row, latent in enumerate((3, 7)):
        with torch.no_grad(), spliced(tiny_model, dictionary, edit=without(latent), keep_error=True):
            logits = tiny_model(pairs.tokens())
        expected = logits[prompt, pos, answer] - logits[prompt, pos, wrong]
        np.testing.assert_allclose(found.values["zero", "logit_diff"][row], expected, atol=1e-4)
