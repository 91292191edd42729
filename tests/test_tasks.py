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
        ({"clean": "a", "corrupted": "a b c d", "answer": " shop"}, "must be of one length"),
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
