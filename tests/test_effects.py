"""Effects: saved and loaded bitwise, and an interval that covers."""

import numpy as np
import pandas as pd
import pytest

COLUMNS = (
    "component kind layer index position method metric baseline value effect effect_std ci_low ci_high n q"
).split()


def test_load_of_save_is_bitwise_the_same(tiny_model, pairs, tmp_path):
    from interp import Effects, ablate

    one = ablate(tiny_model, pairs, components="heads", method=["zero", "mean"], metric=["logit_diff", "loss"])
    one.save(tmp_path / "run")
    two = Effects.load(tmp_path / "run")
    pd.testing.assert_frame_equal(one.table(), two.table(), check_exact=True)
    assert list(one.table().columns) == COLUMNS
    assert one.values.keys() == two.values.keys()
    assert all(np.array_equal(one.values[key], two.values[key]) for key in one.values)
    assert all(np.array_equal(one.baseline[key], two.baseline[key]) for key in one.baseline)
    assert one.about == two.about and two.about["model"]["processing"] == "none" and "torch" in two.about["versions"]


def test_the_table_is_what_the_values_say(tiny_model, pairs):
    from interp import ablate

    one = ablate(tiny_model, pairs, components="heads", method="zero")
    effect = one.values["zero", "logit_diff"] - one.baseline["logit_diff"]
    table = one.table()
    np.testing.assert_allclose(table.effect, effect.mean(1), atol=1e-6)
    np.testing.assert_allclose(table.effect_std, effect.std(1, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(table.value - table.baseline, table.effect, atol=1e-6)
    assert (table.ci_low <= table.effect).all() and (table.effect <= table.ci_high).all()


def test_the_bootstrap_interval_covers_the_mean_19_times_in_20():
    from interp.causal.statistics import bootstrap

    samples = np.random.default_rng(0).normal(1.0, 2.0, (500, 100))
    low, high = bootstrap(samples, seed=1)
    assert 0.92 <= ((low <= 1) & (1 <= high)).mean() <= 0.98


def test_the_same_seed_gives_the_same_interval():
    from interp.causal.statistics import bootstrap

    values = np.random.default_rng(0).normal(size=(3, 20))
    assert np.array_equal(bootstrap(values, 3), bootstrap(values, 3))
    assert not np.array_equal(bootstrap(values, 3), bootstrap(values, 4))


def test_a_folder_without_effects_says_how_to_make_them(tmp_path):
    from interp import Effects
    from interp.errors import MissingFile

    with pytest.raises(MissingFile, match="interp ablate"):
        Effects.load(tmp_path)


def test_a_prompt_without_a_value_does_not_count():
    from interp.causal.statistics import bootstrap, mean_and_std

    values = np.random.default_rng(0).normal(size=(2, 30))
    holes = np.concatenate([values, np.full((2, 5), np.nan)], 1)
    np.testing.assert_allclose(mean_and_std(holes), mean_and_std(values))
    low, high = bootstrap(holes, 0)
    assert (low < values.mean(1)).all() and (values.mean(1) < high).all()
    assert np.isnan(bootstrap(np.full((1, 5), np.nan))).all()


def test_p_values_are_uniform_where_there_is_no_effect_and_small_where_there_is():
    from interp.causal.statistics import p_values

    rng = np.random.default_rng(0)
    p = p_values(rng.normal(size=(2000, 12)))
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p < level).mean() == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 2000) + 0.005)
    assert (p_values(rng.normal(3, 1, size=(50, 12))) < 1e-3).all()
    assert p_values(np.zeros((1, 5)))[0] == 1 and np.isnan(p_values(np.zeros((1, 1)))[0])


def test_benjamini_hochberg_is_the_textbook_loop():
    from interp.causal.statistics import adjusted

    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005, 0.5])
    known = sorted(p[np.isfinite(p)])
    slow = {value: min(known[j] * len(known) / (j + 1) for j in range(i, len(known))) for i, value in enumerate(known)}
    found = adjusted(p)
    assert np.isnan(found[2])
    np.testing.assert_allclose(np.delete(found, 2), [slow[value] for value in np.delete(p, 2)])


def test_false_discoveries_are_kept_to_their_share():
    from interp.causal.statistics import adjusted, p_values

    rng, shares = np.random.default_rng(1), []
    for _ in range(60):
        values = rng.normal(size=(200, 15))
        values[:40] += 1.5
        chosen = adjusted(p_values(values)) < 0.1
        shares.append(chosen[40:].sum() / max(chosen.sum(), 1))
        assert chosen[:40].mean() > 0.9
    assert np.mean(shares) < 0.11


def test_two_runs_are_compared_prompt_by_prompt(tiny_model, pairs):
    from interp import ablate

    mean, zero = (ablate(tiny_model, pairs, components="heads", method=method) for method in ("mean", "zero"))
    table = mean.compare(zero)
    difference = mean.values["mean", "logit_diff"] - zero.values["zero", "logit_diff"]
    np.testing.assert_allclose(table.difference, difference.mean(1), atol=1e-6)
    assert (table.ci_low <= table.difference).all() and (table.difference <= table.ci_high).all() and len(table) == 8
    same = mean.compare(mean)
    assert (same.difference == 0).all() and (same.q == 1).all()


def test_runs_of_other_prompts_cannot_be_compared(tiny_model, pairs):
    from dataclasses import replace

    from interp import InputError, ablate

    one = ablate(tiny_model, pairs, components="L0H0")
    two = ablate(tiny_model, replace(pairs, prompts=pairs.prompts[::-1]), components="L0H0")
    with pytest.raises(InputError, match="same prompts"):
        one.compare(two)
    with pytest.raises(InputError, match="no row in common"):
        one.compare(ablate(tiny_model, pairs, components="L1H0"))
