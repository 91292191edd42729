"""Kinds of token, on tokens whose kind is plain."""

import pytest


def masks(tiny_model, text, names=("built-in",), **labels):
    from interp.data.classes import classes
    from interp.data.tasks import Prompt, Task

    ids = tiny_model.to_tokens(text)
    task = Task("t", [Prompt(ids, list(enumerate(ids[1:])), labels=labels)])
    return tiny_model.token_text(ids[1:]), {
        name: mask.tolist() for name, mask in classes(tiny_model, task, names).items()
    }


def test_each_token_is_of_the_kinds_that_it_looks_like(tiny_model):
    tokens, found = masks(tiny_model, "When Mary and John went, the book is 7.")
    for token, *kinds in zip(tokens, *(found[k] for k in ("punctuation", "capitalised", "digit")), strict=True):
        text = token.strip()
        assert kinds == [text in [",", "."], text[:1].isupper(), "7" in text], token
    after = [before.strip() in ("book", "books") for before in ["", *tokens[:-1]]]
    assert found.get("after_noun", [False] * len(tokens)) == after


def test_a_token_is_repeated_when_it_stood_before_in_the_prompt(tiny_model):
    tokens, found = masks(tiny_model, " Mary and John and Mary", ["repeated"])
    assert found["repeated"] == [token in tokens[:i] for i, token in enumerate(tokens)]


def test_labels_of_the_prompts_are_classes(tiny_model):
    from interp.errors import UnknownName

    tokens, found = masks(tiny_model, "a b", ["kind"], kind="relative clause")
    assert found == {"relative_clause": [True] * len(tokens)}
    with pytest.raises(UnknownName, match="Nearest: .*kind"):
        masks(tiny_model, "a b", ["kinds"], kind="x")


def test_text_is_predicted_token_by_token(tiny_model, tiny_text):
    from interp.data.classes import text_task

    task = text_task(tiny_model, str(tiny_text), n=3, context=16)
    assert len(task) == 3 and task.length == 16 and task.default_metric == "loss"
    for prompt in task.prompts:
        assert prompt.targets == [(i, prompt.clean_tokens[i + 1]) for i in range(15)]
