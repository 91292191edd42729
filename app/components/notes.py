"""The box in which a component gets its label and is put on lists."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import notes, state
from app.components.token_strip import visible


def labels(run: dict[str, Any]) -> dict[str, str]:
    """The labels of a result by component, with nothing in them that cannot be seen; empty where they cannot be read:
    the box says why."""
    try:
        return {component: visible(text) for component, text in notes.notes(run["path"]).labels.items()}
    except state.UNREADABLE:
        return {}


def pinned(run: dict[str, Any]) -> list[str]:
    """The nodes of a graph that stay in sight; none where the notes cannot be read."""
    try:
        return notes.notes(run["path"]).pins
    except state.UNREADABLE:
        return []


def pin_box(run: dict[str, Any], component: str) -> None:
    """Whether a node stays in sight, however few edges are shown."""
    key = f"pin-{run['name']}-{component}"
    st.session_state[key] = component in pinned(run)

    def save() -> None:
        _try(lambda: notes.pin(run["path"], component, st.session_state[key]))
        st.rerun()  # the graph shows it, too

    st.toggle("Pin: stays in sight, however few edges are shown", key=key, on_change=save)


def label_box(run: dict[str, Any], component: str) -> None:
    """What a component of a result is called, and on which lists it is; a change is saved at once."""
    key = f"{run['folder']}/{run['name']}/{component}"
    entry = notes.Entry(folder=run["folder"], result=run["name"], component=component)
    root = state.workspace()
    try:
        text = notes.notes(run["path"]).labels.get(component, "")
        known = notes.lists(root)
        on = [name for name in known if entry in notes.entries(root, name)]
    except state.UNREADABLE as error:
        state.problem("The notes of this result cannot be read.", error)
        return
    st.session_state[f"label-{key}"], st.session_state[f"lists-{key}"] = text, on

    def save_label() -> None:
        _try(lambda: notes.label(run["path"], component, st.session_state[f"label-{key}"]))
        st.rerun()  # tables and graphs of the page show it, too

    def save_lists() -> None:
        wanted = st.session_state[f"lists-{key}"]
        for name in set(wanted) - set(on):
            _try(lambda name=name: notes.put(root, name, entry))
        for name in set(on) - set(wanted):
            _try(lambda name=name: notes.take(root, name, entry))

    left, right = st.columns(2)
    left.text_input("Label", key=f"label-{key}", on_change=save_label, max_chars=notes.LONGEST,
                    placeholder="what do you think it does?")  # fmt: skip
    right.multiselect("Lists", known, key=f"lists-{key}", on_change=save_lists, accept_new_options=True,
                      placeholder="choose, or type a new name")  # fmt: skip
    if refused := st.session_state.pop("notes-refused", None):
        state.problem("This was not saved.", refused)


def _try(change: Any) -> None:
    try:
        change()
    except state.UNREADABLE as error:
        st.session_state["notes-refused"] = error
