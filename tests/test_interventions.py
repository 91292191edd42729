"""Parts and methods, each against its formula worked out by hand."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

DOUBLE = torch.float64  # so that what rounding does is far below what is asked
EVERYBODY = torch.arange(3)


def changed(part, new, x, where=None, first=0, donor=None):
    from interp.causal.interventions import Write

    x = x.clone()
    Write(part, new, where).apply(x, EVERYBODY, first, donor)
    return x


def test_a_head_is_replaced_at_the_positions_asked_for_and_nothing_else():
    from interp.causal.interventions import Whole

    x = torch.randn(3, 5, 4, 2, dtype=DOUBLE)
    where = torch.zeros(3, 5, dtype=torch.bool)
    where[1, 2] = where[2, 4] = True
    expected = x.clone()
    expected[1, 2, 3] = expected[2, 4, 3] = 0
    assert torch.equal(changed(Whole("blocks.0.attn.hook_z", 3), torch.zeros(()), x, where), expected)


def test_positions_count_from_the_first_one_given():
    from interp.causal.interventions import Whole

    x = torch.randn(3, 2, 6, dtype=DOUBLE)  # positions 3 and 4 of five
    new, where = torch.arange(5.0), torch.zeros(3, 5, dtype=torch.bool)
    where[:, 4] = True
    found = changed(Whole("blocks.0.mlp.hook_post", 1), new, x, where, first=3)
    assert (found[:, 1, 1] == 4).all() and torch.equal(found[:, 0], x[:, 0])


def test_projecting_out_a_direction_leaves_nothing_along_it_and_all_across_it():
    from interp.causal.interventions import Along

    x, v = torch.randn(3, 5, 8, dtype=DOUBLE), torch.randn(8, dtype=DOUBLE) * 7
    found = changed(Along("blocks.0.hook_resid_post", v), torch.zeros(()), x)
    unit = v / v.norm()
    assert_close(found, x - (x @ unit)[..., None] * unit, atol=1e-6, rtol=0)
    assert (found @ unit).abs().max() < 1e-6


def test_a_latent_is_taken_out_and_the_error_stays():
    from interp.causal.interventions import Latent

    class Dictionary(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.W = torch.nn.Parameter(torch.randn(8, 12, dtype=DOUBLE))

        def encode(self, x):
            return (x @ self.W).relu()

        def decode(self, latents):
            return latents @ self.W.T + 1

    x, dictionary = torch.randn(3, 5, 8, dtype=DOUBLE), Dictionary()
    found = changed(Latent("blocks.0.hook_resid_post", dictionary, 4), torch.zeros(()), x)
    expected = x - (x @ dictionary.W)[..., 4].relu()[..., None] * dictionary.W[:, 4]
    assert_close(found, expected.detach(), atol=1e-5, rtol=0)


def test_without_a_value_the_donor_gives_its_own():
    from interp.causal.interventions import Whole

    x, donor = torch.randn(2, 3, 5, 4, 2, dtype=DOUBLE)
    found = changed(Whole("blocks.0.attn.hook_z", 1), None, x, donor=donor)
    assert torch.equal(found[:, :, 1], donor[:, :, 1]) and torch.equal(found[:, :, 0], x[:, :, 0])


def test_means_are_over_the_prompts_that_reach_a_position(tiny_double):
    from interp.causal.interventions import Whole
    from interp.causal.references import Means
    from interp.data.tasks import Prompt, Task
    from interp.decoder.hooks import captured

    task = Task("lengths", [Prompt([5, 6, 7, 8], [(3, 1)]), Prompt([9, 10], [(1, 1)]), Prompt([11, 12, 13], [(2, 1)])])
    part, rows = Whole("blocks.1.attn.hook_z", 2), []
    for prompt in task.prompts:
        with torch.no_grad(), captured(tiny_double, "1.z") as cache:
            tiny_double(torch.tensor([prompt.clean_tokens]))
        rows.append(cache["blocks.1.attn.hook_z"][0, :, 2])
    means = Means(tiny_double, task, [part], batch=2)
    expected = torch.stack([torch.stack([row[pos] for row in rows if len(row) > pos]).mean(0) for pos in range(4)])
    assert_close(means.of(part, 4, by_position=True), expected, atol=1e-6, rtol=0)
    assert_close(means.of(part, 4, by_position=False)[2], torch.cat(rows).mean(0), atol=1e-6, rtol=0)


def test_nobody_is_shuffled_onto_themselves_and_lengths_stay(pairs):
    from interp.causal.references import shuffled

    one, two = shuffled(pairs, 0), shuffled(pairs, 0)
    assert torch.equal(one, two) and not torch.equal(one, shuffled(pairs, 1))
    assert sorted(one.tolist()) == sorted(pairs.tokens().tolist())
    assert (one != pairs.tokens()).any(1).all()


def test_a_prompt_alone_in_its_length_cannot_be_shuffled():
    from interp.causal.references import shuffled
    from interp.data.tasks import Prompt, Task
    from interp.errors import InputError

    with pytest.raises(InputError, match="only one of 2 tokens"):
        shuffled(Task("t", [Prompt([1, 2, 3], [(2, 1)]), Prompt([1, 2], [(1, 1)])]), 0)


@pytest.mark.parametrize(
    ("name", "base", "held"),
    [("mean", "mean", set()), ("mean-all", "mean-all", set()), ("mean-all-frozen", "mean-all", {"ln", "pattern"}),
     ("zero-frozen-ln", "zero", {"ln"})],
)  # fmt: skip
def test_methods_are_read_with_what_they_hold(name, base, held):
    from interp.causal.interventions import split_method

    assert split_method(name) == (base, held)


def test_with_everything_held_a_head_of_an_attention_only_stream_has_its_direct_effect(tiny_model, pairs):
    """With scales and patterns frozen and no MLP after it, the last layer's head acts through the unembedding alone."""
    from interp import ablate
    from interp.decoder.hooks import captured, edited

    found = ablate(tiny_model, pairs, components="L1H2", method="zero-frozen")
    tokens = pairs.tokens()
    scales = tiny_model.scales
    with torch.no_grad(), captured(tiny_model, [*scales, "*.pattern"]) as cache:
        tiny_model(tokens)
    held = {site: (lambda value, site=site: cache[site]) for site in scales if not site.startswith("blocks.0")}
    held |= {"1.pattern": lambda value: cache["blocks.1.attn.hook_pattern"]}

    def zero(value):
        value = value.clone()
        value[:, :, 2] = 0
        return value

    with torch.no_grad(), edited(tiny_model, held | {"1.z": zero}):
        logits = tiny_model(tokens)
    prompt, pos, answer, wrong = pairs.reads()
    expected = logits[prompt, pos, answer] - logits[prompt, pos, wrong]
    np.testing.assert_allclose(found.values["zero-frozen", "logit_diff"][0], expected, atol=1e-5)
