"""One text, token by token: how surprising each is, what the layers say there, which parts write it, what fires."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app import live, state
from app.components.asking import Asked, asked, at
from app.components.heat_grid import heat_grid
from app.components.live_source import source
from app.components.prompt_pair import prompt_pair
from app.components.token_strip import Strip, token_strips
from interp.errors import InputError
from interp.plots.labels import visible

COLOURS = {
    "loss": "loss of the token, nats",
    "change": "how much the edits change its loss, nats",
    "entropy": "entropy of what comes next, nats",
    "latent": "activation of one latent",
}
LENS = {
    "top_prob": "probability of the layer's top token",
    "prob": "probability of the token that comes",
    "kl": "KL(output || lens)",
}
N_LATENTS, N_LINKS = 100, 8


def page() -> None:
    focus = state.read_focus()
    st.title("Prompt", anchor=False)
    chosen = asked(focus, state.PROMPT)
    if chosen is None:
        return
    try:
        lens = live.lens(chosen.model, chosen.tokens, chosen.edit)
    except state.UNREADABLE as error:
        state.problem("The model cannot read this.", error)
        return
    state.part(selection, chosen, lens.rows)
    source(
        chosen, lens.table().drop(columns=["top_id"]), lambda: lens.figure(_colour(focus)), name="logit-lens",
        command=["lens", "show", chosen.text],
        lines=f'lens = interp.logit_lens(model, text, edits=edits)\nlens.figure("{_colour(focus)}")',
    )  # fmt: skip


def selection(focus: state.Focus, chosen: Asked, rows: pd.DataFrame) -> None:
    """The text and the position that was clicked: what the layers say there, what writes it, what fires."""
    position = at(focus, chosen)
    _strip(focus, chosen, rows, position)
    _pair(chosen, focus)
    left, right = st.columns([3, 2], gap="large")
    with right:
        _next(chosen, rows, position)
        _links(position)
    with left:
        _lens(focus, chosen, position)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _attribution(focus, chosen, rows, position)
    with right:
        _latents(focus, chosen, position)


def _strip(focus: state.Focus, chosen: Asked, rows: pd.DataFrame, position: int) -> None:
    """The tokens, coloured by what is picked; a click on one moves the position."""
    output = rows[rows["layer"] == rows["layer"].max()].sort_values("position")
    loss = _loss(rows)
    there = {"latent": focus.sae and focus.feature is not None, "change": bool(chosen.edit)}
    kinds = [kind for kind in COLOURS if there.get(kind, True)]
    with st.container(horizontal=True):
        kind = state.choose("Colour of a token", kinds, "method", focus.method, format_func=COLOURS.get, width=300)
    values = loss if kind == "loss" else output["entropy"].to_numpy()
    if kind == "change":
        values = loss - _loss(live.lens(chosen.model, chosen.tokens, "").rows)
    if kind == "latent":
        values = np.zeros(len(chosen.tokens))
        try:
            fired = live.activity(chosen.model, focus.sae, chosen.tokens, chosen.edit)
        except state.UNREADABLE as error:
            state.problem("This latent cannot be read here.", error)
        else:
            mine = fired[fired["latent"] == focus.feature]
            values[mine["position"]] = mine["activation"]
    token_strips(
        [Strip(chosen.pieces, [abs(float(value)) for value in values], marked=position)], key="prompt-strip",
        label="the text, token by token", on_pick=lambda line, place: state.write_focus(pos=place),
    )  # fmt: skip
    names = {"loss": "loss", "entropy": "entropy", "latent": f"{focus.sae}/{focus.feature}",
             "change": "loss with the edits minus loss without"}  # fmt: skip
    number = f"{values[position]:+.3f}" if kind == "change" else f"{values[position]:.3f}"
    told = f"position {position}, token {visible(chosen.pieces[position])!r}: {names[kind]} {number}"
    what = {"loss": "loss of the text", "change": "change over the text"}.get(kind)
    mean = f"; mean {what} {values[1:].mean():.3f} nats" if what and len(loss) > 1 else ""
    st.text(f"{told}{mean} · click a token to look there")


def _loss(rows: pd.DataFrame) -> np.ndarray:
    """Of each token, given those before it; 0 of the first."""
    output = rows[rows["layer"] == rows["layer"].max()].sort_values("position")
    return np.concatenate([[0.0], -np.log(output["prob"].to_numpy()[:-1])])


def _pair(chosen: Asked, focus: state.Focus) -> None:
    if chosen.pair and chosen.pair.get("corrupted_pieces"):
        positions = [str(k) for k in range(len(chosen.tokens))] + list(chosen.pair.get("positions") or {})
        prompt_pair(chosen.pair, positions, key="pair", selected=focus.pos,
                    on_pick=lambda name: state.write_focus(pos=name))  # fmt: skip


def _colour(focus: state.Focus) -> str:
    return focus.metric if focus.metric in LENS else "top_prob"


def _lens(focus: state.Focus, chosen: Asked, position: int) -> None:
    st.subheader("What each layer would say next", anchor=False)
    colour = state.choose("Colour of a cell", list(LENS), "metric", _colour(focus), format_func=LENS.get,
                          label_visibility="collapsed", whole=True)  # fmt: skip
    n = min(14, len(chosen.tokens))
    first = max(0, min(position - n // 2, len(chosen.tokens) - n))
    grid = live.lens_cells(chosen.model, chosen.tokens, chosen.edit, colour, first, n)
    selected = f"{grid.rows[0]}@{position}"
    heat_grid(grid, key="lens", selected=selected, label="top token of every layer at every position",
              on_pick=lambda name: state.write_focus(pos=int(name.rpartition("@")[2])))  # fmt: skip
    st.text(f"{grid.scale.formula}; logit lens: final norm and unembedding applied to each layer; output on top")


def _next(chosen: Asked, rows: pd.DataFrame, position: int) -> None:
    """The likeliest next tokens at the position; of an edited run beside those without the edits."""
    st.subheader(f"What comes after position {position}", anchor=False)
    here = rows[(rows["position"] == position) & (rows["layer"] == rows["layer"].max())].iloc[0]
    table = pd.DataFrame({"token": [visible(token) for token in here["top"]], "probability": here["top_prob"]})
    st.dataframe(
        table, hide_index=True, height=388,
        column_config={"probability": st.column_config.ProgressColumn(format="%.3f", min_value=0, max_value=1)},
    )  # fmt: skip
    told = f"{visible(here['target'])!r}: probability {here['prob']:.3g}, rank {here['rank']:,}"
    if chosen.edit:
        plain = live.lens(chosen.model, chosen.tokens, "").rows
        was = plain[(plain["position"] == position) & (plain["layer"] == plain["layer"].max())].iloc[0]
        told += f"; without the edits {was['prob']:.3g}, rank {was['rank']:,}, and the likeliest "
        told += f"{visible(was['top'][0])!r} {was['top_prob'][0]:.3g}"
    st.text(told)


def _links(position: int) -> None:
    with st.container(horizontal=True):
        state.link(state.ATTENTION, "Where heads look from here →", pos=str(position))
        state.link(state.STEER, "Write on from this text →", pos=None)


def _attribution(focus: state.Focus, chosen: Asked, rows: pd.DataFrame, position: int) -> None:
    """Direct logit attribution: at the end of a pair of its answer, elsewhere of the likeliest token."""
    answer, wrong = chosen.answers if position == len(chosen.tokens) - 1 else (None, None)
    here = rows[(rows["position"] == position) & (rows["layer"] == rows["layer"].max())].iloc[0]
    answer = int(here["top_id"][0]) if answer is None else answer
    said = [
        f"logit({visible(text)!r})"
        for text in live.spelled(chosen.model, [t for t in (answer, wrong) if t is not None])
    ]
    st.subheader("Which parts write it", anchor=False)
    asked_of = (chosen.model, chosen.tokens, chosen.edit, position, answer, wrong)
    try:
        found, grid = live.attribution(*asked_of), live.attribution_cells(*asked_of)
    except (InputError, ValueError) as error:
        st.text(f"Direct attribution does not apply: {error}")
        return
    table = found.rows
    heat_grid(grid, key="attribution", selected=focus.head, label="contribution of each part",
              on_pick=lambda name: state.write_focus(head=name))  # fmt: skip
    st.text(f"{' - '.join(said)} = {found.total.mean():+.2f}, the sum of the parts in nats; red: towards it")
    beside = table[~table["component"].isin({name for line in grid.names for name in line})]
    st.text("beside the map: " + ", ".join(f"{r.component} {r.contribution:+.2f}" for r in beside.itertuples()))
    if focus.head:
        with st.container(horizontal=True):
            state.link(state.ATTENTION, f"Where {focus.head} looks →", pos=str(position))
            state.link(state.STEER, f"Write on without {focus.head} →", edit=f"{focus.head}=0")


def _latents(focus: state.Focus, chosen: Asked, position: int) -> None:
    """The latents of a dictionary that fire at the position, the strongest first; each leads to its page."""
    st.subheader("Which latents fire here", anchor=False)
    names = live.dictionaries(live.model(chosen.model).fingerprint)
    if not names:
        state.empty("No dictionary of this model in the workspace yet. This makes one:",
                    "interp sae train --store demo --site 2.resid_post --out demo")  # fmt: skip
        return
    name = state.choose("Dictionary", names, "sae", focus.sae, resets=("feature",), label_visibility="collapsed")
    try:
        fired = live.activity(chosen.model, name, chosen.tokens, chosen.edit)
    except state.UNREADABLE as error:
        state.problem("The dictionary cannot read this.", error)
        return
    here = fired[fired["position"] == position]
    st.text(f"{len(here)} latents of {name} fire at position {position}; the strongest:")
    with st.container(horizontal=True, gap="small"):
        for row in here.head(N_LINKS).itertuples():
            state.link(state.FEATURE, f"{row.latent}: {row.activation:.2f}", sae=name, feature=row.latent, method=None)
    table = here[["latent", "activation"]].head(N_LATENTS)
    st.dataframe(table, hide_index=True, height=250, column_config=state.number_columns(table))


page()
