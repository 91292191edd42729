"""Causal tracing: identities, and a slow twin with the same noise."""

import numpy as np
import pytest
import torch


def test_tracing_equals_a_slow_loop_with_the_same_noise(tiny_model, pairs):
    from interp import trace
    from interp.decoder.hooks import captured, edited

    found = trace(tiny_model, pairs, site="mlp_out", subject="changed", window=2, draws=2, noise=2.0, seed=5)
    tokens = pairs.tokens()
    names = ["hook_embed", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]
    with torch.no_grad(), captured(tiny_model, names) as clean:
        tiny_model(tokens)
    sigma = 2.0 * clean["hook_embed"][:, 3].std()
    generator = torch.Generator().manual_seed(5)
    prompt, pos, answer, _ = pairs.reads()
    slow = np.zeros((2 * pairs.length, len(pairs)))
    noised = np.zeros(len(pairs))
    for _ in range(2):
        noise = torch.randn(*tokens.shape, tiny_model.d_model, generator=generator) * sigma
        noise[:, [at for at in range(pairs.length) if at != 3]] = 0

        def probability(restored, noise=noise):
            def back(name, at):
                def edit(value):
                    value = value.clone()
                    value[:, at] = clean[name][:, at]
                    return value

                return edit

            edits = {"hook_embed": lambda v: v + noise} | {name: back(name, at) for name, at in restored}
            with torch.no_grad(), edited(tiny_model, edits):
                logits = tiny_model(tokens)[prompt, pos]
            return logits.softmax(-1).gather(1, answer[:, None])[:, 0].numpy()

        noised += probability([]) / 2
        for row, (layer, at) in enumerate((layer, at) for layer in range(2) for at in range(pairs.length)):
            window = [0] if layer == 0 else [0, 1]  # two layers: the one before the row's, and its own
            slow[row] += probability([(f"blocks.{i}.hook_mlp_out", at) for i in window]) / 2
    np.testing.assert_allclose(found.baseline["prob"], noised, atol=1e-6)
    np.testing.assert_allclose(found.values["trace", "prob"], slow, atol=1e-6)


def test_the_last_state_restored_is_the_clean_answer_and_an_untouched_one_does_nothing(tiny_model, pairs):
    from interp import trace

    table = trace(tiny_model, pairs, site="resid_post", draws=3).table().set_index(["layer", "position"])
    assert table.normalized[1, "8"] == pytest.approx(1, abs=1e-4)
    before = table.loc[[(layer, str(at)) for layer in range(2) for at in range(3)]]  # the noise is at position 3
    np.testing.assert_allclose(before.effect, 0, atol=1e-6)
    assert set(table.method) == {"trace"} and set(table.metric) == {"prob"}


def test_no_noise_to_speak_of_loses_nothing(tiny_model, pairs):
    from interp import trace

    found = trace(tiny_model, pairs, noise=1e-6, draws=1)
    np.testing.assert_allclose(found.table().effect, 0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"site": "resid_pst"}, "Nearest: resid_post"),
        ({"subject": "sbject"}, "no position"),
        ({"noise": 0.0}, "above 0"),
        ({"draws": 0}, "above 0"),
        ({"metric": "porb"}, "Nearest: prob"),
    ],
)
def test_wrong_settings_name_what_would_be_right(tiny_model, pairs, given, message):
    from interp import InputError, trace

    with pytest.raises(InputError, match=message):
        trace(tiny_model, pairs, **given)


def test_a_task_without_corrupted_prompts_needs_a_subject(tiny_model):
    from interp import InputError, trace
    from interp.data.tasks import Prompt, Task

    task = Task("alone", [Prompt([1, 2, 3, 4], [(3, 5)]), Prompt([6, 7, 8, 9], [(3, 5)])])
    with pytest.raises(InputError, match="no subject given"):
        trace(tiny_model, task)
    assert len(trace(tiny_model, task, subject="1", draws=1).table()) == 2 * 4
