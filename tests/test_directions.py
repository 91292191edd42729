"""Directions: what was planted is found, by loops the same, judged on examples that taught nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

WORDS = "Mary John Tom James Anna Jane shop store bag drink key keys book books garden letter".split()
GLAD = [f"The {a} and {b} are glad" for a in WORDS[:4] for b in WORDS[6:12]]
SAD = [f"The {a} and {b} is a letter" for a in WORDS[:4] for b in WORDS[6:12]]


def planted(n=80, d=12, gap=3.0, seed=0):
    """Examples with a direction in them along which the sets differ, in noise that is wider along another."""
    draw = torch.Generator().manual_seed(seed)
    vector, wide = torch.linalg.qr(torch.randn(d, 2, generator=draw, dtype=torch.double))[0].T
    noise = torch.randn(n, d, generator=draw, dtype=torch.double)
    noise = noise + torch.randn(n, 1, generator=draw, dtype=torch.double) * wide
    is_positive = torch.arange(n) < n // 2
    return noise + gap * is_positive[:, None] * vector, is_positive, vector


@pytest.mark.parametrize("method", ["mean-difference", "pca", "probe"])
def test_a_planted_direction_is_found_and_points_to_the_positive(method):
    from interp.causal.examples import Examples
    from interp.causal.separating import hold_out, judge

    x, is_positive, vector = planted(n=400, gap=6.0)
    examples = Examples(is_positive.numpy(), np.arange(400) % 200, ("yes", "no"), [], paired=True)
    test = hold_out(examples, 0.25, 0)
    found = judge("blocks.0.hook_resid_post", x, examples, test, method, 0)
    assert abs(float(found.fit.vector.norm()) - 1) < 1e-9
    assert found.fit.vector @ vector > 0.95
    assert found.row["accuracy"] > 0.97 and abs(found.row["gap"] - 6) < 0.5
    assert abs(found.row["shuffled"] - 0.5) < 0.25
    assert set(examples.group[test.numpy()]).isdisjoint(examples.group[~test.numpy()])


def test_shuffled_labels_lean_neither_way_where_the_sets_are_odd_and_far_apart():
    from interp.causal.separating import _shuffled

    is_positive, draw = torch.arange(18) < 9, np.random.default_rng(0)
    drawn = [_shuffled(is_positive, draw) for _ in range(200)]
    assert {int(labels.sum()) for labels in drawn} == {9}  # pairs stay pairs
    positive = [int((labels & is_positive).sum()) for labels in drawn]
    assert set(positive) == {4, 5} and 70 < positive.count(4) < 130


RESID = "blocks.1.hook_resid_post"


def test_a_mean_over_tokens_leaves_out_bos_and_no_other_first_token(tiny_model):
    from interp.causal.examples import activations, of_prompts
    from interp.decoder.hooks import captured

    rows = [[number, 40 + number, 7, 9] for number in range(20, 36)]
    found = activations(tiny_model, of_prompts(tiny_model, rows[:8], rows[8:], position="all"), [RESID])
    with torch.no_grad(), captured(tiny_model, RESID) as cache:
        tiny_model(torch.tensor(rows))
    assert all(tiny_model.bos not in row for row in rows)
    assert_close(found[RESID], cache[RESID].mean(1))


def test_where_the_labels_mean_nothing_held_out_accuracy_is_chance():
    from interp.causal.examples import Examples
    from interp.causal.separating import hold_out, judge

    x, is_positive, _ = planted(n=400, d=60, gap=0.0)
    examples = Examples(is_positive.numpy(), np.arange(400), ("yes", "no"), [])
    for method in ("mean-difference", "probe"):
        row = judge("embed", x, examples, hold_out(examples, 0.5, 0), method, 0).row
        assert row["ci_low"] < 0.5 < row["ci_high"] and abs(row["auroc"] - 0.5) < 0.1


def test_components_are_those_of_pairs_or_of_all_about_their_mean():
    from interp.causal.separating import pca

    x, is_positive, _ = planted()
    differences = x[:40] - x[40:]
    outer = sum(torch.outer(row, row) for row in differences)
    centred = x - x.mean(0)
    for paired, matrix in ((True, outer), (False, centred.T @ centred)):
        vector = torch.linalg.eigh(matrix).eigenvectors[:, -1]
        assert_close((pca(x, is_positive, paired).vector @ vector).abs(), torch.tensor(1.0, dtype=torch.double))


@pytest.mark.parametrize("d", [3, 90])
def test_the_regression_is_at_the_least_balanced_loss(d):
    """By autograd: no gradient is left, with more dimensions than examples too."""
    from interp.causal.probing import logistic

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, d, generator=draw, dtype=torch.float64)
    is_label = x[:, 0] + 0.7 * torch.randn(60, generator=draw, dtype=torch.float64) > 0.8
    w = logistic(x, is_label).requires_grad_()
    sign = torch.where(is_label, 1.0, -1.0)
    each = torch.nn.functional.softplus(-sign * (x @ w[:-1] + w[-1]))
    loss = (each[is_label].mean() + each[~is_label].mean()) / 2 + w[:-1].square().sum() / (2 * 60)
    loss.backward()
    assert w.grad.abs().max() < 1e-7  # the bias has a ridge of 1e-9


def test_a_probe_says_what_its_regression_says():
    from interp.causal.probing import logistic
    from interp.causal.separating import probe

    x, is_positive, _ = planted(gap=2.0)
    mean, deviation = x.mean(0), x.std(0)
    w = logistic((x - mean) / deviation, is_positive)
    fit = probe(x, is_positive, False)
    says = ((x - mean) / deviation) @ w[:-1] + w[-1]
    assert ((says > 0) == (x @ fit.vector > fit.threshold)).all()


def test_auroc_and_accuracy_are_those_of_loops():
    from interp.causal.separating import auroc, balanced_accuracy

    along = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0, 1.0, 5.0])
    yes = torch.tensor([True, True, True, False, False, False, False])
    pairs = [(a > b) + (a == b) / 2 for a in along[yes].tolist() for b in along[~yes].tolist()]
    assert auroc(along, yes) == pytest.approx(np.mean(pairs))
    value, low, high = balanced_accuracy(along > 1.5, yes, np.arange(7))
    assert value == pytest.approx((2 / 3 + 1 / 2) / 2) and 0 < low < value < high < 1
    all_right = balanced_accuracy(torch.arange(40) < 20, torch.arange(40) < 20, np.arange(40))
    assert all_right == pytest.approx((1, 0.886, 1), abs=1e-3)
    fewer = balanced_accuracy(torch.arange(40) < 20, torch.arange(40) < 20, np.arange(40) // 2)
    assert fewer[1] < all_right[1]  # examples of one group are not two draws


@pytest.mark.parametrize(("position", "pooled"), [(-1, False), (5, False), ("all", True)])
def test_the_difference_of_means_is_that_of_a_loop_over_prompts(tiny_model, position, pooled):
    from interp.causal.directions import find_direction
    from interp.decoder.hooks import captured

    sad = [text.replace("The", "My") for text in SAD] if position == 5 else SAD
    found = find_direction(tiny_model, GLAD, sad, site="1.resid_post", position=position)
    rows = found.examples[~found.examples["held_out"]]
    means = []
    for name in ("positive", "negative"):
        values = []
        for ids in rows.loc[rows["set"] == name, "tokens"]:
            with torch.no_grad(), captured(tiny_model, "1.resid_post") as cache:
                tiny_model(torch.tensor([list(ids)]))
            x = cache["blocks.1.hook_resid_post"][0]
            values.append(x[1:].mean(0) if pooled else x[-1])
        means.append(torch.stack(values).double().mean(0))
    wanted = means[0] - means[1]
    assert_close(found.vector.double(), wanted / wanted.norm(), atol=1e-5, rtol=0)
    assert found.gap == pytest.approx(float(wanted.norm()), rel=1e-4)
    assert found.examples["held_out"].sum() == 2 * round(0.25 * (rows["set"] == "positive").sum() / 0.75)


def test_the_site_is_chosen_without_the_examples_held_out(tiny_model):
    from interp.causal.directions import find_direction

    found = find_direction(tiny_model, GLAD, SAD, site=["*.resid_post", "*.mlp_out"], method="probe")
    table = found.table()
    best = table.sort_values(["cv_accuracy", "cv_distance"], kind="stable").iloc[-1]
    assert bool(best.chosen) and table.chosen.sum() == 1 and len(table) == 4
    again = find_direction(tiny_model, GLAD, SAD, site=["*.resid_post", "*.mlp_out"], method="probe")
    assert torch.equal(found.vector, again.vector) and found.table().equals(again.table())


def test_of_a_task_prompts_of_one_answer_stand_against_those_of_the_other(tiny_model):
    from interp.causal.examples import of_task
    from interp.data.tasks import Prompt, Task
    from interp.errors import InputError

    draw = np.random.default_rng(0)
    prompts = []
    for k in range(24):
        yes = k % 2 == 0
        rows = [[0, *draw.integers(10, 300, 3).tolist(), 7 if side == yes else 8] for side in (True, False)]
        prompts.append(Prompt(rows[0], [(4, 5 if yes else 6)], rows[1], 6 if yes else 5))
    prompts.append(prompts[0])
    found = of_task(tiny_model, Task("two", prompts))
    assert found.answers == (5, 6) and found.dropped == 1 and found.n == (24, 24)
    assert all((row[-1] == 7) == yes for row, yes in zip(found.tokens, found.is_positive, strict=True))
    assert (found.group[:24] == found.group[24:]).all()
    with pytest.raises(InputError, match="8 of each are needed"):
        of_task(tiny_model, Task("two", prompts[:5]))
    with pytest.raises(InputError, match='the answers of "two" are'):
        of_task(tiny_model, Task("two", prompts), answer=" Mary")


def test_rows_of_a_store_are_examples_and_windows_are_held_out_whole(tiny_store, tiny_model):
    from interp.causal.directions import find_direction
    from interp.errors import InputError

    tokens = tiny_store.tokens[:]
    often = np.bincount(tokens).argsort()[-3:]
    found = find_direction(tiny_store, tokens == often[0], tokens == often[1], site="*.resid_post")
    assert found.accuracy > 0.75 and found.table().auroc.max() > 0.85  # what token stands there can be read
    found.check(tiny_model)
    window = tiny_store.sequence[:][found.examples["row"]]
    assert set(window[found.examples["held_out"]]).isdisjoint(window[~found.examples["held_out"]])
    along = tiny_store[found.site][found.examples["row"].to_numpy()] @ found.vector.numpy()
    np.testing.assert_allclose(along, found.examples["projection"], atol=1e-4)
    with pytest.raises(InputError, match="is in both sets"):
        find_direction(tiny_store, np.array([1, 2, 3]), np.array([3, 4]))


def test_rows_of_a_store_are_labelled_by_a_file(tiny_store, tmp_path):
    import pandas as pd

    import interp
    from interp.errors import InputError, MissingFile, UnknownName

    n = 400
    labels = pd.DataFrame({"row": range(n), "label": ["past" if row % 3 else "present" for row in range(n)]})
    labels.loc[5, "label"] = None
    labels.to_csv(tmp_path / "verbs.csv", index=False)
    labels.to_parquet(tmp_path / "verbs.parquet", index=False)
    known = labels.dropna()
    sides = [known[known.label == label].row.to_numpy() for label in ("past", "present")]
    wanted = interp.find_direction(tiny_store, *sides, site="1.resid_post")
    for name in ("verbs.csv", "verbs.parquet"):
        found = interp.find_direction(tiny_store, tmp_path / name, site="1.resid_post", answer="past")
        assert torch.equal(found.vector, wanted.vector) and found.about["names"] == ['label "past"', 'label "present"']
    yes = tmp_path / "yes.csv"
    labels.assign(label=labels.row % 3 > 0).to_csv(yes, index=False)
    assert interp.find_direction(tiny_store, yes, site="1.resid_post").about["names"][0] == 'label "True"'
    for file, answer, error, message in (
        (tmp_path / "none.csv", "past", MissingFile, "columns row and label"),
        (tmp_path / "verbs.csv", None, InputError, "say which is positive"),
        (tmp_path / "verbs.csv", "pst", UnknownName, "Nearest: past"),
        (Path(__file__), "past", InputError, "cannot be read|no column"),
    ):
        with pytest.raises(error, match=message):
            interp.find_direction(tiny_store, file, site="1.resid_post", answer=answer)


def test_edits_are_of_the_run_that_is_looked_at(tiny_model):
    from interp.causal.directions import find_direction
    from interp.errors import InputError

    plain = find_direction(tiny_model, GLAD, SAD, site="1.resid_post")
    other = find_direction(tiny_model, GLAD, SAD, site="1.resid_post", edits={"0.attn_out": torch.zeros_like})
    assert not torch.equal(plain.vector, other.vector)
    with pytest.raises(InputError, match="the same mean here"):
        find_direction(tiny_model, GLAD, SAD, site="1.resid_post", edits={"1.resid_post": torch.zeros_like})


def test_saved_and_loaded_it_is_the_same_and_of_its_model(tiny_model, make_model, tmp_path):
    from safetensors.torch import load_file

    from interp.causal.directions import Direction, find_direction
    from interp.errors import MissingFile, WrongModel

    found = find_direction(tiny_model, GLAD, SAD, name="glad", paired=True, method="pca")
    found.save(tmp_path)
    again = Direction.load(tmp_path, tiny_model)
    assert torch.equal(again.vector, found.vector) and torch.equal(again.shuffled, found.shuffled)
    assert again.table().equals(found.table()) and again.examples.equals(found.examples)
    assert again.about == found.about and repr(again) == repr(found)
    assert list(load_file(tmp_path / "direction.safetensors")) == ["direction"]
    with pytest.raises(WrongModel, match='"glad" was found in'):
        Direction.load(tmp_path, make_model("llama"))
    with pytest.raises(MissingFile, match="no direction.json"):
        Direction.load(tmp_path / "nowhere")


def test_a_wrong_question_is_one_line(tiny_model, tmp_path):
    from interp.causal.directions import find_direction
    from interp.errors import InputError, MissingFile, UnknownName

    for error, message, given in [
        (UnknownName, 'no method "mean"', {"method": "mean"}),
        (InputError, "a direction is of the stream", {"site": "1.z"}),
        (InputError, "between 0 and 1", {"held_out": 0.0}),
        (InputError, "prompt 1 has 9 tokens, none at position 40|none at position 40", {"position": 40}),
        (InputError, "the same in both sets up to the position read", {"position": 1}),
    ]:
        with pytest.raises(error, match=message):
            find_direction(tiny_model, GLAD, SAD, **given)
    with pytest.raises(InputError, match="8 of each are needed"):
        find_direction(tiny_model, GLAD, SAD[:3])
    with pytest.raises(InputError, match="pairs need as many of each"):
        find_direction(tiny_model, GLAD, SAD[:12], paired=True)
    with pytest.raises(MissingFile, match="a prompt a line"):
        find_direction(tiny_model, tmp_path / "glad.txt", tmp_path / "sad.txt")


def test_figures_show_the_sets_and_the_sites(tiny_model):
    from interp.causal.directions import find_direction

    found = find_direction(tiny_model, GLAD, SAD)
    figure = found.figure()
    assert sum(len(trace.x) for trace in figure.data) == len(found.examples)
    assert "of the held-out examples on the right side" in figure.layout.title.text
    names = [trace.name for trace in found.sites_figure().data]
    assert {"resid_post", "random directions", "shuffled labels"} <= set(names)
