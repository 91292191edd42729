"""Tuned lenses: untrained they are the logit lens, trained they are nearer to the output, killed they go on."""

import numpy as np
import pandas as pd
import pytest
import torch

SETTINGS = {"steps": 30, "batch_size": 128, "context": 32, "lr": 1e-2, "n_tokens": 4000}


@pytest.fixture(scope="module")
def trained(tiny_model, tiny_text):
    import interp

    return interp.train_tuned_lens(tiny_model, str(tiny_text), **SETTINGS)


def kl(curve):
    return curve.table().pivot(index="layer", columns="lens", values="value")


def test_without_a_step_it_is_the_logit_lens(tiny_model, tiny_text):
    import interp

    lens = interp.train_tuned_lens(tiny_model, str(tiny_text), **SETTINGS | {"steps": 0})
    found, plain = (interp.logit_lens(tiny_model, [0, 17, 45], tuned=tuned).table() for tuned in (lens, None))
    pd.testing.assert_frame_equal(found, plain)


def test_trained_every_layer_is_nearer_to_the_output_on_text_held_out(trained):
    curve = kl(trained.curve)
    assert (curve["tuned"][:-1] < 0.7 * curve["logit"][:-1]).all() and (curve.loc[1] == 0).all()
    rows = trained.curve.table()
    assert (rows["ci_low"] <= rows["value"]).all() and (rows["value"] <= rows["ci_high"]).all()
    assert rows["n"].unique().tolist() == [12]  # a tenth of 4,000 tokens in windows of 32


def test_a_step_is_adams_on_the_kl_of_the_plain_formula(tiny_model, tiny_text):
    import interp
    from interp.lenses.sources import TextSource
    from interp.lenses.tuned import TunedConfig

    config = TunedConfig(**SETTINGS | {"steps": 1})
    lens = interp.train_tuned_lens(tiny_model, str(tiny_text), config)
    (seen,) = TextSource(tiny_model, str(tiny_text), config).batches(config, 0)
    for at, layer in enumerate(lens.layers):
        A, b = torch.eye(32, requires_grad=True), torch.zeros(32, requires_grad=True)
        q = tiny_model.head(seen.hidden[layer] @ A.T + b).log_softmax(-1)
        loss = torch.nn.functional.kl_div(q, seen.logits.log_softmax(-1), log_target=True, reduction="batchmean")
        for found, gradient in zip((lens.W[at], lens.b[at]), torch.autograd.grad(loss, [A, b]), strict=True):
            sure = gradient.abs() > 1e-5  # Adam's first step is the sign of the gradient, which rounding can turn
            torch.testing.assert_close(found[sure], -config.lr * gradient.sign()[sure], atol=1e-4, rtol=1e-2)


def test_killed_it_goes_on_with_the_same_numbers(tiny_model, tiny_text, tmp_path, monkeypatch):
    import interp
    from interp.lenses import tuned

    text = tmp_path / "text.txt"
    text.write_text(tiny_text.read_text())

    whole = interp.train_tuned_lens(tiny_model, str(text), **SETTINGS, out=tmp_path / "whole")
    monkeypatch.setattr(tuned, "CHECKPOINT_SECONDS", 0.0)
    advance, steps = tuned._Training.advance, []

    def killed(self, seen):
        steps.append(self.step)
        if len(steps) == 12:
            raise KeyboardInterrupt
        return advance(self, seen)

    monkeypatch.setattr(tuned._Training, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        interp.train_tuned_lens(tiny_model, str(text), **SETTINGS, out=tmp_path / "killed")
    with pytest.raises(interp.InputError, match="other settings"):
        interp.train_tuned_lens(tiny_model, str(text), **SETTINGS | {"seed": 1}, out=tmp_path / "killed")
    text.write_text("Another beginning. " + tiny_text.read_text())
    with pytest.raises(interp.InputError, match="other text"):
        interp.train_tuned_lens(tiny_model, str(text), **SETTINGS, out=tmp_path / "killed")
    text.write_text(tiny_text.read_text())
    again = interp.train_tuned_lens(tiny_model, str(text), **SETTINGS, out=tmp_path / "killed")
    assert steps[12] == 11 and len(steps) == 12 + 19
    assert torch.equal(again.W, whole.W) and torch.equal(again.b, whole.b)
    assert not (tmp_path / "killed" / tuned.UNFINISHED).exists()


def test_saved_and_loaded_it_is_the_same_and_of_one_model(trained, tiny_model, make_model, tmp_path):
    import interp
    from interp.errors import WrongModel

    trained.save(tmp_path / "lens")
    again = interp.TunedLens.load(tmp_path / "lens", tiny_model)
    assert torch.equal(again.W, trained.W) and again.layers == trained.layers == (-1, 0) and again.name == "lens"
    pd.testing.assert_frame_equal(again.curve.table(), trained.curve.table())
    other = make_model("gpt2")
    for asked in (
        lambda: interp.TunedLens.load(tmp_path / "lens", other),
        lambda: interp.logit_lens(other, [1, 2], tuned=trained),
    ):
        with pytest.raises(WrongModel, match="was trained on"):
            asked()
    with pytest.raises(interp.InputError, match="interp lens train"):
        interp.TunedLens.load(tmp_path / "none")


def test_a_store_trains_the_layers_that_it_has(tiny_model, tiny_store, make_model, pairs):
    import interp
    from interp.errors import WrongModel

    lens = interp.train_tuned_lens(tiny_model, tiny_store, steps=60, batch_size=256, lr=1e-2)
    assert lens.layers == (0,) and lens.about["source"] == "store tiny"
    curve = kl(lens.curve)
    assert curve["tuned"][0] < 0.7 * curve["logit"][0]
    assert interp.logit_lens(tiny_model, [1, 2], tuned=lens).table()["layer"].unique().tolist() == [0, 1]
    both = interp.lens_curve(tiny_model, pairs, tuned=lens).table().query("metric == 'kl'")
    assert both.groupby("lens")["layer"].apply(list).to_dict() == {"logit": [-1, 0, 1], "tuned": [0, 1]}
    with pytest.raises(WrongModel, match="was recorded from"):
        interp.train_tuned_lens(make_model("gpt2"), tiny_store)


def test_the_stores_order_is_entered_at_any_step(tiny_model, tiny_store):
    from interp.lenses.sources import StoreSource
    from interp.lenses.tuned import TunedConfig

    config = TunedConfig(steps=40, batch_size=256)
    source = StoreSource(tiny_model, tiny_store, config)
    whole = [seen.hidden[0] for seen in source.batches(config, 0)]
    later = [seen.hidden[0] for seen in source.batches(config, 17)]
    assert len(whole) == 40 and all(torch.equal(a, b) for a, b in zip(whole[17:], later, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "-1 steps given"),
        ({"held_out": 1.0}, "held_out 1.0 given"),
        ({"lr": 0.0}, "lr 0.0 given"),
        ({"batch_size": 10**6}, "too few for batches"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_model, tiny_text, settings, message):
    import interp

    with pytest.raises(interp.InputError, match=message):
        interp.train_tuned_lens(tiny_model, str(tiny_text), **SETTINGS | settings)


def test_the_curve_draws_both_lenses(trained):
    figure = trained.curve.figure()
    assert [trace.name for trace in figure.data if trace.name] == ["logit lens", "tuned lens"]
    assert np.isfinite(figure.data[1].y).all()
