"""The bar of pages. Each of its links keeps what applies on that page of what was looked at last: the run or the text,
the head, the latent; and the page's own choices as they were left. So a link of the bar is an address like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import streamlit as st

from app import state
from app.components.links import has

Query = dict[str, str]

LIVE = (state.PROMPT, state.ATTENTION, state.STEER)
SOURCE = ("run", "model", "text", "prompt", "side", "pos", "edit")
"""What the live pages read: they all look at the same."""
LATENT = {state.PROMPT: ("sae", "feature"), state.STEER: ("sae", "feature"), state.FEATURE: ("sae", "feature"),
          state.FEATURES: ("sae",), state.TRAINING: ("sae",)}  # fmt: skip
OF_A_RUN = {
    page: tuple(kind for kind, other in state.PAGE_OF.items() if other == page)
    for page in (state.ABLATION, state.PATCHING, state.CIRCUIT)
}
HEADS = {state.PROMPT: r"L\d+(H\d+|\.mlp)", state.ATTENTION: r"L\d+H\d+", state.CIRCUIT: r"L\d+(H\d+|\.mlp)",
         state.ABLATION: r"L\d+(H\d+|\.mlp|\.attn)", state.PATCHING: r"L\d+H\d+"}  # fmt: skip
"""Components that a page is given by another; of its own it keeps any."""
LISTS = (state.RUNS, state.LISTS, state.JOBS)
"""Pages whose link opens the list, not what was last looked at in it."""


@contextmanager
def bar(pages: Mapping[str, Any], here: str) -> Iterator[None]:
    """The links, that of the page `here` marked, above the page that the block draws.

    A part of a page that is drawn by itself (`state.part`) draws them anew, in a place of its own over the first one:
    what it selected is in them too. While the whole page is drawn that place stays empty.
    """
    _links(st.container(horizontal=True, key="bar"), pages, here)
    anew = st.container(horizontal=True, key="bar-anew")
    st.session_state["draw-bar"] = anew.empty
    try:
        yield
    finally:
        st.session_state["draw-bar"] = lambda: _links(anew, pages, here)


def _links(place: Any, pages: Mapping[str, Any], here: str) -> None:
    visited: dict[str, Query] = st.session_state.setdefault("visited", {})
    visited.pop(here, None)
    visited[here] = state.asked_for().query()  # the last one is the newest
    for name, page in pages.items():
        place.page_link(page, query_params=address(name, visited) if name != here else visited[here])


def address(page: str, visited: Mapping[str, Query]) -> Query:
    """The parameters of the link to `page`, after these pages with these parameters, the newest last."""
    if page in LISTS:
        return {}
    query, own = dict(visited.get(page, {})), visited.get(page, {})
    if page in LIVE:
        query = {name: value for name, value in query.items() if name not in SOURCE} | _source(visited)
    elif page in OF_A_RUN and (run := _run(page, visited)) and run != own.get("run"):
        query = own = {"run": run}
    if page in HEADS:
        query = _with(query, head=_head(page, query, visited))
        if page not in LIVE and query.get("head") != own.get("head"):
            query = _with(query, pos=None, edge=None)
    if page in LATENT:
        sae = _newest("sae", LATENT, visited)
        of_it = [q.get("feature") for q in visited.values() if q.get("feature") and q.get("sae") == sae]
        query = _with(query, sae=sae, feature=of_it[-1] if of_it and "feature" in LATENT[page] else None)
    return query


def _head(page: str, query: Query, visited: Mapping[str, Query]) -> str | None:
    """The component that was looked at last, of those that the page can have."""
    fitting = [q["head"] for q in visited.values() if re.fullmatch(HEADS[page], q.get("head", ""))]
    if fitting and page == state.PATCHING:
        run = next((run for run in state.results("runs", kinds=["patch"]) if run["name"] == query.get("run")), None)
        fitting = fitting if run and has(run["config"], fitting[-1]) else []
    return fitting[-1] if fitting else query.get("head")


def _with(query: Query, **changes: str | None) -> Query:
    return {name: value for name, value in (query | changes).items() if value is not None}


def _newest(field: str, pages: Mapping[str, Any], visited: Mapping[str, Query]) -> str | None:
    """What the newest of the `pages` has of a field."""
    return next((query.get(field) for page, query in reversed(visited.items()) if page in pages), None)


def _source(visited: Mapping[str, Query]) -> Query:
    """What a live page reads: what the last of them read, a text typed in before all; or the prompts of a run that was
    looked at since."""
    newest = [(page, query) for page, query in reversed(visited.items()) if page in LIVE or page in OF_A_RUN]
    live = next(({k: v for k, v in query.items() if k in SOURCE} for page, query in newest if page in LIVE), {})
    if not newest or newest[0][0] in LIVE or "text" in live:
        return live
    page, query = newest[0]
    run = query.get("run") or _shown(page)
    if run is None:
        return live
    same = live if run == live.get("run") else {}
    return same | {"run": run} | {k: v for k, v in query.items() if k == "prompt"}


def _run(page: str, visited: Mapping[str, Query]) -> str | None:
    """The run of a page's kind that was looked at last, on whichever page."""
    names = {run["name"] for run in state.results("runs", kinds=OF_A_RUN[page])}
    return next((query["run"] for query in reversed(visited.values()) if query.get("run") in names), None)


def _shown(page: str) -> str | None:
    """The run that a page shows where none is asked for."""
    runs = state.results("runs", kinds=OF_A_RUN[page])
    return runs[0]["name"] if runs else None
