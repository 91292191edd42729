"""Where every head looks in a text or a prompt of a run: as it is, weighted by what is written, or as a difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import live, state
from app.components.asking import Asked, asked, at
from app.components.live_source import source
from app.components.patterns import patterns

SHOWN = {
    None: "attention",
    "value": "attention × length of what is written",
    "difference": "difference of two runs",
}
COLUMNS = ["component", "previous_token", "first_token", "first_token_weighted", "entropy"]


def page() -> None:
    focus = state.read_focus()
    st.title("Attention", anchor=False)
    chosen = asked(focus, state.ATTENTION)
    if chosen is None:
        return
    try:
        seen = live.patterns(chosen.model, chosen.tokens, chosen.edit)
        values, formula, signed = _values(focus, chosen, seen)
    except state.UNREADABLE as error:
        state.problem("Attention of this text cannot be shown.", error)
        return
    state.part(selection, chosen, seen, values, formula, signed)


def selection(focus: state.Focus, chosen: Asked, seen: Any, values: np.ndarray, formula: str, signed: bool) -> None:
    """The patterns, the head and the query that were clicked."""
    table = seen.table()
    head = focus.head if focus.head in set(table["component"]) else _first(table)
    if focus.head not in (None, head):
        st.text(f"{focus.head} is not a head of this model with a pattern; showing {head}.")
    position = at(focus, chosen)
    limit = float(np.abs(values).max()) if signed or focus.weigh == "value" else 1.0
    said = [
        f"to the token before {row.previous_token:.2f}, to the first {row.first_token:.2f}, entropy {row.entropy:.2f}"
        for row in table.itertuples()
    ]
    patterns(
        values, seen.layers, seen.text, key="patterns", head=head, pos=position, said=said, limit=limit, signed=signed,
        on_head=lambda name: state.write_focus(head=name), on_pos=lambda place: state.write_focus(pos=place),
        label="attention of every head", formula=formula,
    )  # fmt: skip
    st.text(formula)
    left, right = st.columns(2, gap="large")
    with left:
        _row(seen, values, head, position)
    with right:
        _links(focus, chosen, head, position)
        st.text("All heads on this text: attention to the token before, to the first token; entropy in nats")
        shown = table[COLUMNS].sort_values("previous_token", ascending=False)
        st.dataframe(shown, hide_index=True, height=280, column_config=state.number_columns(shown))
    other = _other(chosen) if focus.weigh == "difference" else None
    drawn = values.reshape(-1, *values.shape[2:])[list(table["component"]).index(head)]
    source(
        chosen, _long(seen, drawn, head), lambda: _figure(focus, chosen, seen, head),
        name=f"attention-{head}-{focus.weigh}" if focus.weigh else f"attention-{head}",
        command=["heads", "--text", chosen.text], lines=_lines(head, focus.weigh == "value", other),
    )  # fmt: skip


def _long(seen: Any, drawn: np.ndarray, head: str) -> pd.DataFrame:
    """What is drawn of one head as a table: a row a query and a key that it can look at."""
    query, key = np.tril_indices(len(drawn))
    text = np.array([str(token) for token in seen.text], dtype=object)
    return pd.DataFrame({"component": head, "query": query, "query_token": text[query], "key": key,
                         "key_token": text[key], "value": drawn[query, key].astype(float)})  # fmt: skip


def _figure(focus: state.Focus, chosen: Asked, seen: Any, head: str) -> Any:
    """What the page shows of one head, as a notebook draws it."""
    other = _other(chosen) if focus.weigh == "difference" else None
    if other is None:
        return seen.figure(head, weighted=focus.weigh == "value")
    tokens, edit, said = other
    called = said.partition(":")[0]
    return seen.figure(head, less=live.patterns(chosen.model, tokens, edit), called=called)


def _lines(head: str, weighted: bool, other: tuple[tuple[int, ...], str, str] | None) -> str:
    """The same in a notebook."""
    lines = "heads = interp.patterns(model, text, edits=edits)\n"
    if other is None:
        return f'{lines}heads.figure("{head}"{", weighted=True" if weighted else ""})'
    return f'{lines}other = interp.patterns(model, {list(other[0])})\nheads.figure("{head}", less=other)'


def _values(focus: state.Focus, chosen: Asked, seen: Any) -> tuple[np.ndarray, str, bool]:
    """What is drawn of the patterns, the formula that says so, and whether it has a sign."""
    others = _other(chosen)
    options = [key for key in SHOWN if key != "difference" or others is not None]
    names = [SHOWN[key] for key in options]
    st.session_state["attention-shown"] = SHOWN[focus.weigh if focus.weigh in options else None]

    def picked() -> None:
        state.write_focus(weigh=options[names.index(st.session_state["attention-shown"])])

    st.radio("Show", names, key="attention-shown", horizontal=True, on_change=picked, label_visibility="collapsed")
    if focus.weigh == "value":
        return seen.weighted, "attention x |v W_O|: how long a vector the query gets from the key", False
    if focus.weigh == "difference" and others is not None:
        tokens, edit, said = others
        return seen.pattern - live.patterns(chosen.model, tokens, edit).pattern, said, True
    return seen.pattern, "every row is a query; its attention to the keys before it sums to 1", False


def _other(chosen: Asked) -> tuple[tuple[int, ...], str, str] | None:
    """The run that a difference is taken to: without the edits, or of the other prompt of the pair."""
    if chosen.edit:
        return chosen.tokens, "", "edited - not edited: blue = looks there more with the edits, red = less"
    pair = chosen.pair or {}
    sides = {name: tuple(pair.get(f"{name}_tokens") or ()) for name in ("clean", "corrupted")}
    mine = next((name for name, tokens in sides.items() if tokens == chosen.tokens), "clean")
    other = "corrupted" if mine == "clean" else "clean"
    if len(sides[other]) != len(chosen.tokens):
        return None
    return sides[other], "", f"{mine} - {other}: blue = looks there more on the {mine} prompt, red = less"


def _first(table: pd.DataFrame) -> str:
    """The head shown where none was asked for: the one that most looks at the token before."""
    return str(table.loc[table["previous_token"].idxmax(), "component"])


def _row(seen: Any, values: np.ndarray, head: str, position: int) -> None:
    """Where the query in focus looks, the strongest first."""
    from interp.plots.labels import visible

    st.text(f"{head} from position {position}, token {visible(seen.text[position])!r}")
    names = list(seen.table()["component"])
    line = values.reshape(-1, *values.shape[2:])[names.index(head)][position, : position + 1]
    order = np.argsort(-np.abs(line), kind="stable")
    keys = pd.DataFrame(
        {"key": order, "token": [visible(seen.text[k]) for k in order], "value": line[order].astype(float)}
    )
    st.dataframe(keys, hide_index=True, height=280, column_config=state.number_columns(keys))


def _links(focus: state.Focus, chosen: Asked, head: str, position: int) -> None:
    with st.container(horizontal=True):
        state.link(state.PROMPT, f"This text at position {position} →", pos=str(position), head=head)
        moved = {"edit": f"{head}=0", "method": "change", "pos": str(position), "head": head}
        state.link(state.PROMPT, f"Which tokens {head} moves →", **moved)
        state.link(state.STEER, f"Write on without {head} →", edit=f"{head}=0", model=chosen.model)
        if any(state.results("runs", kinds=("ablate",))):
            state.link(state.ABLATION, f"Ablate {head} →", head=head, pos=None, run=_run(focus, "ablate"))


def _run(focus: state.Focus, kind: str) -> str | None:
    runs = [run["name"] for run in state.results("runs", kinds=(kind,))]
    return focus.run if focus.run in runs else None


page()
