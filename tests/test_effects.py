"""Effects: saved and loaded bitwise, and an interval that covers."""

import numpy as np
import pandas as pd
import pytest

COLUMNS = (
    "component kind layer index position method metric baseline value effect effect_std ci_low ci_high n"
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
    from interp.causal.effects import bootstrap

    samples = np.random.default_rng(0).normal(1.0, 2.0, (500, 100))
    low, high = bootstrap(samples, seed=1)
    assert 0.92 <= ((low <= 1) & (1 <= high)).mean() <= 0.98


def test_the_same_seed_gives_the_same_interval():
    from interp.causal.effects import bootstrap

    values = np.random.default_rng(0).normal(size=(3, 20))
    assert np.array_equal(bootstrap(values, 3), bootstrap(values, 3))
    assert not np.array_equal(bootstrap(values, 3), bootstrap(values, 4))


def test_a_folder_without_effects_says_how_to_make_them(tmp_path):
    from interp import Effects
    from interp.errors import MissingFile

    with pytest.raises(MissingFile, match="interp ablate"):
        Effects.load(tmp_path)
