"""What a live page asks the model: which model, which text or which prompt of a run, under which edits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app import live, readers, state
from app.components.edit_builder import edit_builder
from interp.errors import WrongModel

TEXT = "When Mary and John went to the store, John gave a drink to"
"""What is looked at where nothing was asked for."""


@dataclass(frozen=True)
class Asked:
    """A model and the tokens it reads; `edit` as typed in, checked. `pair`: the prompt of a run that they come from."""

    model: str
    text: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    edit: str = ""
    pair: dict[str, Any] | None = None

    @property
    def answers(self) -> tuple[int | None, int | None]:
        """The right and the wrong answer of the pair."""
        pair = self.pair or {}
        return pair.get("answer_token"), pair.get("wrong_token")


def asked(focus: state.Focus, here: str) -> Asked | None:
    """The boxes at the top of the live page `here`, and what they ask for; None, with a message, where it cannot."""
    prompts: list[dict[str, Any]] = []
    run = None
    if focus.run and focus.text is None:
        try:
            run = state.result(focus.run, state.results("runs"))
            prompts = readers.prompts(run["path"])
        except state.UNREADABLE as error:
            state.problem("The prompts of this run cannot be read.", error)
    labels = live.models()
    own = live.label_of(run) if run else None
    left, right = st.columns([1, 4])
    with left:
        model = state.choose("Model", list(labels), "model", focus.model or own or "bundled")
    if focus.model not in (None, model):
        st.text(f'No model "{focus.model}" in this workspace: this is {model}.')
    try:
        loaded = live.model(model)
        if run and run["model"].get("fingerprint") not in (None, loaded.fingerprint):
            raise WrongModel(f'the run {run["name"]} was made with another model than "{model}": choose that one.')
        number = min(focus.prompt or 0, len(prompts) - 1)
        pair = prompts[number] if prompts else None
        with right:
            text = _of_pair(focus, here, run, pair, number, len(prompts)) if pair else _typed(focus)
        tokens = tuple(pair[f"{text}_tokens"]) if pair else live.tokens_of(model, text)
        edit = _edits(focus, model)
    except state.UNREADABLE as error:
        state.problem("This cannot be asked of the model.", error)
        return None
    pieces = tuple(loaded.token_text(tokens))
    after = loaded.bos is not None and tokens[0] == loaded.bos
    return Asked(model, "".join(pieces[after:]) if pair else text, tokens, pieces, edit, pair)


def _typed(focus: state.Focus) -> str:
    st.session_state["asked-text"] = focus.text or TEXT

    def written() -> None:
        state.write_focus(text=st.session_state["asked-text"][:2000] or None, run=None, prompt=None, pos=None)

    return st.text_input("Text", key="asked-text", on_change=written, max_chars=2000) or TEXT


def _of_pair(focus: state.Focus, here: str, run: dict[str, Any], pair: dict[str, Any], number: int, n: int) -> str:
    """Which of the prompts of pair `number` of `n`, with boxes to take another pair or the other prompt, or to type."""
    which, side, own = st.columns([2, 2, 2])
    with which:
        st.session_state["asked-prompt"] = number

        def moved() -> None:
            state.write_focus(prompt=int(st.session_state["asked-prompt"]), pos=None)

        st.number_input(f"Prompt of {n}", 0, n - 1, key="asked-prompt", on_change=moved, help="from 0")
    sides = [name for name in ("clean", "corrupted") if pair.get(f"{name}_tokens")]
    with side:
        chosen = state.choose("Prompt of the pair", sides, "side", focus.side)
    with own:
        st.text("of the run " + run["name"])
        clear = dict.fromkeys(("run", "prompt", "side", "pos"))
        state.link(here, "Type a text →", **clear)
    return chosen


def _edits(focus: state.Focus, model: str) -> str:
    """The edits typed in. InputError for what is none."""
    st.session_state["asked-edit"] = focus.edit or ""

    def written() -> None:
        state.write_focus(edit=st.session_state["asked-edit"].strip() or None)

    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "Edits of the run", key="asked-edit", on_change=written, max_chars=400,
            placeholder="none; for example L1.mlp=0, demo/417=8, joy@3.resid_post+4",
        )  # fmt: skip
        edit_builder(focus, model)
    if focus.edit:
        live.edits(model, focus.edit)
    return focus.edit or ""


def at(focus: state.Focus, chosen: Asked) -> int:
    """The position in focus: an index, a label of the pair, or the last."""
    labels = (chosen.pair or {}).get("positions") or {}
    n, asked_for = len(chosen.tokens), focus.pos
    if asked_for in labels:
        return int(labels[asked_for]) if int(labels[asked_for]) < n else n - 1
    if re.fullmatch(r"-?\d+", asked_for or "") and -n <= int(asked_for) < n:
        return int(asked_for) % n
    return n - 1
