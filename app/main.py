"""The frame of the app: `streamlit run app/main.py -- --workspace ./workspace`."""

from __future__ import annotations

import os

import streamlit as st

from app import state
from app.components.bar import bar

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no page, and no job that a page starts, looks a name up on the network

# Room for results above the fold; links that look like links.
STYLE = """<style>
.stMainBlockContainer {padding-top: 4rem}
h1 {font-size: 1.8rem !important; padding: 0 !important}
[data-testid="stMetricValue"] {font-size: 1.3rem}
[data-testid="stMetricValue"] *, [data-testid="stMetricLabel"] * {overflow: visible}
.stMain [data-testid="stPageLink-NavLink"]:not(.st-key-bar *, .st-key-bar-anew *) {background: none; padding-left: 0}
.stMain [data-testid="stPageLink-NavLink"]:not(.st-key-bar *, .st-key-bar-anew *) p,
.stMain [data-testid="stBaseButton-tertiary"] p {text-decoration: underline; font-weight: 500}
.stMain [data-testid="stBaseButton-tertiary"] {min-height: 0; padding: .2rem 0}
.stMain:has(.st-key-bar-anew a) .st-key-bar {display: none}
.st-key-bar, .st-key-bar-anew {position: fixed; top: 0; left: 0; right: 0; z-index: 999990; height: 2.9rem;
  padding: 0 4rem 0 1rem; flex-wrap: nowrap; align-items: center; gap: .2rem !important; overflow-x: auto;
  background: color-mix(in srgb, Canvas 85%, transparent); backdrop-filter: blur(8px); border-bottom: 1px solid #8884}
.st-key-bar-anew:not(:has(a)) {display: none}
.st-key-bar > div, .st-key-bar-anew > div {flex: none !important; width: auto !important}
.st-key-bar p, .st-key-bar-anew p {white-space: nowrap}
</style>"""

st.set_page_config(page_title="Interpretability workbench", layout="wide")
st.html(STYLE)
PAGES = {
    state.RUNS: st.Page(state.RUNS, title="Runs", default=True),
    state.PROMPT: st.Page(state.PROMPT, title="Prompt", url_path="prompt"),
    state.ATTENTION: st.Page(state.ATTENTION, title="Attention", url_path="attention"),
    state.ABLATION: st.Page(state.ABLATION, title="Ablation", url_path="ablation"),
    state.PATCHING: st.Page(state.PATCHING, title="Patching", url_path="patching"),
    state.CIRCUIT: st.Page(state.CIRCUIT, title="Circuit", url_path="circuit"),
    state.FEATURES: st.Page(state.FEATURES, title="Features", url_path="features"),
    state.FEATURE: st.Page(state.FEATURE, title="Feature", url_path="feature"),
    state.STEER: st.Page(state.STEER, title="Steer", url_path="steer"),
    state.TRAINING: st.Page(state.TRAINING, title="Training", url_path="training"),
    state.LISTS: st.Page(state.LISTS, title="Lists", url_path="lists"),
    state.JOBS: st.Page(state.JOBS, title="Jobs", url_path="jobs"),
}
page = st.navigation(list(PAGES.values()), position="hidden")
st.session_state["page"] = next(path for path, one in PAGES.items() if one == page)
with bar(PAGES, st.session_state["page"]):
    try:
        page.run()
    except Exception as error:  # whatever a file of the workspace made a page do
        state.problem("This page cannot be shown: a file of the workspace is not what it should be.", error)
