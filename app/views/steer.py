"""What the model writes when it is pushed: edited beside baseline, token by token as they come, with KL of each."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import streamlit as st

from app import live, state
from app.components.asking import Asked, asked
from app.components.live_source import source
from app.components.token_strip import Strip, token_strips
from interp.plots.generation import kl_by_token
from interp.plots.labels import visible

WHERE = ["all", "prompt", "new"]
PATTERNS = ["live", "frozen"]
COUNTS = [20, 40, 60, 100]
HOTTEST, LAST_SEED = 9.0, 10**7 - 1
"""The largest temperature and seed that an address can have."""


def page() -> None:
    focus = state.read_focus()
    st.title("Steer", anchor=False)
    chosen = asked(focus, state.STEER)
    if chosen is None:
        return
    _strength(focus)
    settings = _settings(focus, chosen)
    if settings is None:
        return
    key = (chosen, tuple(sorted(settings.items())))
    asked_for = st.button("Write on", type="primary", on_click=lambda: state.write_focus(seed=settings["seed"]))
    if asked_for or (focus.seed is not None and "written" not in st.session_state):  # a link shows what it is of
        try:
            st.session_state["written"] = (key, _write(chosen, settings))
        except state.UNREADABLE as error:
            state.problem("The model cannot write this.", error)
            return
    made = st.session_state.get("written")
    if made is None:
        st.text("Nothing written yet: choose edits above, then write on.")
        return
    if made[0] != key:
        st.text("Written with other settings than those above: write on again to see these.")
    _shown(*made[0], made[1])


def _strength(focus: state.Focus) -> None:
    """A slider for the number of a single edit; the latent or direction of the Focus as a first edit."""
    if not focus.edit and focus.sae and focus.feature is not None:
        state.link(state.STEER, f"Hold latent {focus.sae}/{focus.feature} at 8", edit=f"{focus.sae}/{focus.feature}=8")
    head, operator, number = _parts(focus.edit or "")
    if operator != "*" and not set(head) & set("/@"):
        return
    most = max(3.0 if operator == "*" else 30.0, abs(number))
    st.session_state["strength"] = number

    def moved() -> None:
        value = st.session_state["strength"]
        state.write_focus(edit=f"{head}{operator}{value:g}" if operator != "+" else f"{head}{value:+g}")

    st.slider(f"Strength of {state.escape(head)}", -most, most, step=most / 60, key="strength", on_change=moved)


def _parts(edit: str) -> tuple[str, str, float]:
    """The component, the operator and the number of one edit; nothing for several or none."""
    from interp.causal.edits import split
    from interp.errors import InputError

    try:
        specs = split(edit) if edit else []
    except InputError:
        return "", "", 0.0
    return (specs[0].component, specs[0].operator, specs[0].number) if len(specs) == 1 else ("", "", 0.0)


def _settings(focus: state.Focus, chosen: Asked) -> dict[str, Any] | None:
    """How it is written: the boxes, each of which is in the address."""
    boxes = st.columns(5)
    with boxes[0]:
        asked_where = _where(focus.where)
        options = WHERE if asked_where in WHERE else [*WHERE, asked_where]
        where = state.choose("Positions edited", options, "where", asked_where,
                             help="or numbers in the address, such as where=3,4: the positions of the text, from 0; -1 "
                                  "is the last of the prompt")  # fmt: skip
    with boxes[1]:
        patterns = state.choose("Attention", PATTERNS, "patterns", focus.patterns or "live",
                                help="frozen: attention is where it is without the edits")  # fmt: skip
    with boxes[2]:
        counts = sorted({*map(str, COUNTS), *([str(focus.n)] if focus.n else [])}, key=int)
        n = state.choose("New tokens", counts, "n", str(focus.n or 40))
    for number, (label, name, value, step) in enumerate(
        [("Temperature", "temperature", _temperature(focus), 0.1), ("Seed", "seed", focus.seed or 0, 1)], 3
    ):
        with boxes[number]:
            _number(label, name, value, step)
    room = live.model(chosen.model).n_ctx - len(chosen.tokens)
    if room < 1:
        st.text(f"The text fills the {len(chosen.tokens)} positions of the model: take a shorter one.")
        return None
    if room < int(n):
        st.text(f"The model has room for {room} more tokens: so many are written.")
    return {
        "where": where, "patterns": patterns, "max_new_tokens": min(int(n), room),
        "temperature": _temperature(focus), "seed": focus.seed or 0,
    }  # fmt: skip


def _where(asked_for: str | None) -> str:
    """The positions in the address: a name, or numbers with commas; all of them, with a word, where it is neither."""
    plain = (asked_for or "all").replace(" ", "")
    if plain in WHERE or re.fullmatch(r"-?\d{1,6}(,-?\d{1,6})*", plain):
        return plain
    st.text(f'No positions "{asked_for}": all, prompt, new, or numbers with commas. All are edited.')
    return "all"


def _temperature(focus: state.Focus) -> float:
    return min(float(focus.temperature or 0.8), HOTTEST)


def _number(label: str, field: str, value: float, step: float) -> None:
    st.session_state[f"steer-{field}"] = value

    def typed() -> None:
        state.write_focus(**{field: f"{round(st.session_state[f'steer-{field}'], 3)}"})

    most = HOTTEST if field == "temperature" else LAST_SEED
    st.number_input(label, min_value=type(value)(0), max_value=type(value)(most), step=type(value)(step),
                    key=f"steer-{field}", on_change=typed)  # fmt: skip


def _positions(where: str) -> str | list[int]:
    return where if where in WHERE else [int(number) for number in where.split(",")]


def _write(chosen: Asked, settings: dict[str, Any]) -> pd.DataFrame:
    """Both continuations, shown as they come; a row a token."""
    from interp.decoder.generation import Sampling

    sampling = Sampling(settings["max_new_tokens"], settings["temperature"], seed=settings["seed"])
    kinds = ["edited", "baseline"] if chosen.edit else ["baseline"]
    places, rows = [column.empty() for column in st.columns(len(kinds))], []
    runs = [
        live.written(
            chosen.model, chosen.tokens, sampling, chosen.edit if kind == "edited" else "",
            **({"where": _positions(settings["where"]), "patterns": settings["patterns"]} if kind == "edited" else {}),
        )
        for kind in kinds
    ]  # fmt: skip
    said = dict.fromkeys(kinds, "")
    for number in range(settings["max_new_tokens"]):
        for kind, run, place in zip(kinds, runs, places, strict=True):
            if (found := next(run, None)) is None:
                continue
            token, text, step = found
            said[kind] += text
            rows.append({
                "prompt": 0, "sample": 0, "run": kind, "step": number, "token": token, "text": text,
                "logprob": float(step.logprob[0]), "baseline_logprob": float(step.baseline_logprob[0]),
                "kl": float(step.kl[0]),
            })  # fmt: skip
            place.text(f"{kind}: {visible(said[kind])}")
    for place in places:
        place.empty()
    return pd.DataFrame(rows)


def _shown(chosen: Asked, settings: tuple[tuple[str, Any], ...], rows: pd.DataFrame) -> None:
    """The continuations on one scale of KL, the figure, the numbers, the source."""
    asked_for = dict(settings)
    order = [kind for kind in ("edited", "baseline") if kind in set(rows["run"])]
    parts = {kind: rows[rows["run"] == kind] for kind in order}
    token_strips(
        [Strip([*chosen.pieces, *mine["text"]], [0.0] * len(chosen.pieces) + list(mine["kl"]), head=kind)
         for kind, mine in parts.items()], key="written", label="what was written",
    )  # fmt: skip
    boxes = st.columns(3)
    for box, (kind, mine) in zip(boxes, parts.items(), strict=False):
        box.metric(f"{kind}: log-probability a token", f"{mine['logprob'].mean():.2f}")
    if "edited" in parts:
        boxes[2].metric("mean KL(edited ‖ baseline), nats a token", f"{parts['edited']['kl'].mean():.3f}")
        st.plotly_chart(kl_by_token(rows), key="kl-by-token", theme=None)
        st.text("blue: KL(edited || baseline) of the token, after the same text; the baseline's own tokens have none")
    else:
        st.text("No edit: this is the model's own text. Type one above, or come from a feature or a head.")
    st.dataframe(
        rows.assign(text=rows["text"].map(visible)).drop(columns=["prompt", "sample"]), hide_index=True, height=240,
        column_config=state.number_columns(rows),
    )  # fmt: skip
    flags = {"--where": asked_for["where"], "--patterns": asked_for["patterns"]} if chosen.edit else {}
    flags |= {
        "--max-new-tokens": asked_for["max_new_tokens"], "--temperature": asked_for["temperature"],
        "--seed": asked_for["seed"],
    }  # fmt: skip
    text = chosen.text
    read = {name: _positions(value) if name == "--where" else value for name, value in flags.items()}
    given = ", ".join(f"{name.lstrip('-').replace('-', '_')}={value!r}" for name, value in read.items())
    source(
        chosen, rows, lambda: kl_by_token(rows), name="steered",
        command=["generate", text, *(part for name, value in flags.items() for part in (name, f"{value}"))],
        lines=f"made = interp.generate(model, text, edits=edits, {given})\nmade.table()",
    )  # fmt: skip


page()
