"""Tasks: prompts that ask what they say, files that are read strictly."""

import json

import pytest
import torch

from interp.data import words


@pytest.fixture(scope="module")
def bundled():
    from interp import load_model

    return load_model("bundled")


def test_ioi_prompts_repeat_the_subject_and_ask_for_the_other_name(bundled):
    from interp import load_task

    task = load_task("ioi", bundled, n=50, seed=3)
    assert len(task) == 50 and task.default_metric == "logit_diff" and task.dropped == 0
    assert task.labels == sorted(task.labels, key=lambda label: task.prompts[0].positions[label])
    for p in task.prompts:
        names = [t for t in bundled.token_text(p.clean_tokens) if t.strip() in words.NAMES]
        answer, wrong = bundled.token_text([p.targets[0][1], p.wrong_token])
        assert sorted(names.count(name) for name in set(names)) == [1, 2]
        assert names.count(wrong) == 2 and names.count(answer) == 1
        others = [t for t in bundled.token_text(p.corrupted_tokens) if t.strip() in words.NAMES]
        assert len(set(others)) == 3 and not set(others) & set(names)
        assert p.clean_tokens[p.positions["S2"]] == p.clean_tokens[p.positions["S1"]] == p.wrong_token
        assert p.clean_tokens[p.positions["IO"]] == p.targets[0][1]
        assert len(p.clean_tokens) == len(p.corrupted_tokens)


def test_agreement_prompts_flip_only_the_subject(bundled):
    from interp import load_task

    for p in load_task("agreement", bundled, n=30).prompts:
        changed = [i for i, (a, b) in enumerate(zip(p.clean_tokens, p.corrupted_tokens, strict=True)) if a != b]
        assert changed == [p.positions["subject"]]
        assert set(bundled.token_text([p.targets[0][1], p.wrong_token])) == {" is", " are"}


def test_induction_reads_the_second_copy(tiny_model):
    from interp import load_task

    task = load_task("induction", tiny_model, n=5)
    for p in task.prompts:
        length = (len(p.clean_tokens) - 1) // 2
        assert p.clean_tokens[1 : length + 1] == p.clean_tokens[length + 1 :]
        assert all(p.clean_tokens[pos + 1] == answer for pos, answer in p.targets)
        assert not set(p.corrupted_tokens[1 : length + 1]) & set(p.clean_tokens[1:])


def test_the_same_seed_gives_the_same_prompts(bundled):
    from interp import load_task

    one, two, other = (load_task("ioi", bundled, n=20, seed=seed) for seed in (1, 1, 2))
    assert one == two and one != other


def test_a_saved_task_is_read_back_the_same(tiny_model, pairs, tmp_path):
    from interp import load_task

    pairs.save(tmp_path / "prompts.jsonl", tiny_model)
    assert load_task(tmp_path / "prompts.jsonl", tiny_model).prompts == pairs.prompts
    line = json.loads((tmp_path / "prompts.jsonl").read_text().splitlines()[0])  # what has no tokenizer reads this
    assert line["clean_pieces"] == tiny_model.token_text(line["clean_tokens"])
    assert line["corrupted_pieces"] == tiny_model.token_text(line["corrupted_tokens"])
    induction = load_task("induction", tiny_model, n=3)
    induction.save(tmp_path / "targets.jsonl")
    assert load_task(tmp_path / "targets.jsonl", tiny_model).prompts == induction.prompts


def test_padding_does_not_reach_what_is_read(tiny_model):
    from interp.data.tasks import Prompt, Task

    long, short = Prompt([5, 6, 7, 8, 9], [(4, 3)]), Prompt([5, 6], [(1, 3)])
    both, alone = Task("both", [long, short]).tokens(), Task("alone", [short]).tokens()
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(both)[1, :2], tiny_model(alone)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"clean": "a b", "answer": " shop", "wrongg": " x"}, 'line 1, key "wrongg".*Nearest: wrong'),
        ({"answer": " shop"}, 'neither "clean"'),
        ({"clean": "a b"}, 'none of "answer"'),
        ({"clean": "a b", "answer": " Maryland and more"}, "answer is one token"),
        ({"clean_tokens": [1, 2], "answer_token": 99999}, "token 99999"),
        ({"clean_tokens": [1, 2], "targets": [[5, 1]]}, "positions go from 0 to 1"),
        ({"clean_tokens": [1, 2], "answer_token": 3, "positions": {"IO": 7}}, 'position "IO" is 7'),
        ({"clean_tokens": list(range(65)), "answer_token": 3}, "at most 64"),
        ("not json", "line 1"),
    ],
)
def test_a_wrong_line_is_named(tiny_model, tmp_path, line, message):
    from interp import InputError, load_task

    path = tmp_path / "prompts.jsonl"
    path.write_text((line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(InputError, match=message) as error:
        load_task(path, tiny_model)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_unknown_tasks_and_missing_files_name_the_nearest(tiny_model, tmp_path):
    from interp import load_task
    from interp.errors import MissingFile, UnknownTask

    with pytest.raises(UnknownTask, match="Nearest: ioi"):
        load_task("iio", tiny_model)
    with pytest.raises(MissingFile, match="no file"):
        load_task(tmp_path / "none.jsonl", tiny_model)


PAIRED = [
    "ioi", "greater_than", "agreement", "simple_agreement", "docstring", "gendered_pronoun", "capital_country",
    "coloured_objects", "mcqa",
]  # fmt: skip


@pytest.mark.parametrize("name", PAIRED)
def test_clean_and_corrupted_align_and_the_answers_are_single_tokens(bundled, name):
    from interp import load_task

    task = load_task(name, bundled, n=20, seed=2)
    assert task.name == name and len(task) == 20 and not task.unaligned and "end" in task.labels
    assert (task.tokens("clean") != task.tokens("corrupted")).any(1).all()
    for p in task.prompts:
        (read, answer), wrong = p.targets[0], p.wrong_token
        assert read == p.positions["end"] == len(p.clean_tokens) - 1 and answer != wrong
        assert all(text.strip() for text in bundled.token_text([answer, wrong]))
    assert bool(task.dropped) == bool(task.note)


def test_the_swap_corruption_of_ioi_makes_the_wrong_answer_right(bundled):
    from interp import InputError, load_task

    abc, swap = (load_task("ioi", bundled, n=20, corruption=kind) for kind in (None, "swap"))
    assert [p.clean_tokens for p in abc.prompts] == [p.clean_tokens for p in swap.prompts]
    for p in swap.prompts:
        changed = [i for i, (a, b) in enumerate(zip(p.clean_tokens, p.corrupted_tokens, strict=True)) if a != b]
        assert changed == [p.positions["S2"]] and p.corrupted_tokens[changed[0]] == p.targets[0][1]
    with pytest.raises(InputError, match="Nearest: swap"):
        load_task("ioi", bundled, corruption="swp")
    with pytest.raises(InputError, match="only ioi"):
        load_task("agreement", bundled, corruption="swap")


def test_later_years_are_right_and_earlier_ones_wrong(bundled):
    from interp import load_task

    task = load_task("greater_than", bundled, n=30)
    assert task.default_metric == "prob_diff"
    for p in task.prompts:
        start = int(bundled.token_text([p.clean_tokens[p.positions["start"]]])[0])
        later, earlier = ([int(y) for y in bundled.token_text(ids)] for ids in (p.answers, p.wrong_answers))
        assert 1 < start < min(later) and max(earlier) <= start and len(later) + len(earlier) == 100
        assert p.targets[0][1] in p.answers and p.wrong_token in p.wrong_answers
        assert bundled.token_text([p.corrupted_tokens[p.positions["start"]]]) == ["01"]


def test_prob_diff_is_the_probability_of_all_right_answers_minus_that_of_all_wrong_ones(tiny_model):
    from interp import ablate
    from interp.data.tasks import Prompt, Task

    sets = [([3, 4, 5], [6]), ([7], [8, 9])]
    task = Task(
        "sets", [Prompt([1, 2, 10 + i], [(2, a[0])], None, b[0], answers=a, wrong_answers=b)
                 for i, (a, b) in enumerate(sets)]
    )  # fmt: skip
    found = ablate(tiny_model, task, components="L0H0").baseline
    assert list(found) == ["prob_diff"]
    with torch.no_grad():
        p = tiny_model(task.tokens())[:, -1].softmax(-1)
    expected = [(p[i, a].sum() - p[i, b].sum()).item() for i, (a, b) in enumerate(sets)]
    assert found["prob_diff"].tolist() == pytest.approx(expected, abs=1e-6)


def test_sets_of_answers_are_saved_and_read_back(bundled, tmp_path):
    from interp import load_task

    task = load_task("greater_than", bundled, n=3)
    task.save(tmp_path / "prompts.jsonl", bundled)
    assert load_task(tmp_path / "prompts.jsonl", bundled).prompts == task.prompts


def test_a_model_without_the_words_is_told_what_is_missing(tiny_model):
    from interp import InputError, load_task

    with pytest.raises(InputError, match="numbers as single tokens"):
        load_task("arithmetic", tiny_model)
    task = load_task("ioi", tiny_model, n=3)
    assert task.dropped > 0 and "names (" in task.note and "Elizabeth" in task.note


def test_the_file_of_auto_circuit_is_read(tiny_model, tmp_path):
    from interp import load_task

    pair = {"clean": "When Mary and John", "corrupt": "When Anna and John", "answers": [" Mary"],
            "wrong_answers": [" John"]}  # fmt: skip
    path = tmp_path / "ioi_prompts.json"
    path.write_text(json.dumps({
        "prompts": [pair, pair | {"answers": [" Mary", " Anna"]}], "seq_labels": ["When", "IO", "and", "S1"],
        "word_idxs": {"name": 1, "end": 3}, "note": "other keys of the file are its own",
    }))  # fmt: skip
    task = load_task(path, tiny_model)
    one, two = task.prompts
    assert tiny_model.token_text(one.clean_tokens)[one.positions["IO"]] == " Mary"
    assert one.positions["name"] == one.positions["IO"] == 2 and one.positions["end"] == 4  # BOS stands before
    assert one.answers == [] and len(two.answers) == 2 and two.wrong_answers == [two.wrong_token]
    assert len(load_task(path, tiny_model, n=1)) == 1
    ids = {"prompts": [{"clean": [1, 2, 3], "corrupt": [1, 4, 3], "answers": [5], "wrong_answers": [6]}]}
    path.write_text(json.dumps(ids | {"word_idxs": {"changed": 1}}))
    (read,) = load_task(path, tiny_model).prompts
    assert (read.clean_tokens, read.targets, read.wrong_token) == ([1, 2, 3], [(2, 5)], 6)
    assert read.positions == {"changed": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "Invalid JSON"),
        ({"prompts": [{"clean": "a", "corrupt": "b", "answers": [" x"], "wrong": [" y"]}]}, "Nearest: wrong_answers"),
        ({"prompts": []}, "no prompts"),
        ({"pairs": []}, 'key "prompts"'),
        (
            {"prompts": [{"clean": "a", "corrupt": "b", "answers": [" shop store"]}]},
            "pair 1: .* an answer is one token",
        ),
        ({"prompts": [{"clean": "a", "corrupt": "b", "answers": []}]}, "pair 1: none of"),
    ],
)
def test_a_wrong_file_of_auto_circuit_is_named(tiny_model, tmp_path, content, message):
    from interp import InputError, load_task

    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        load_task(path, tiny_model)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
