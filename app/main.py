"""The frame of the app: `streamlit run app/main.py -- --workspace ./workspace`."""

from __future__ import annotations

import os

import streamlit as st

from app import state

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no page, and no job that a page starts, looks a name up on the network

# Room for results above the fold; links that look like links.
STYLE = """<style>
.stMainBlockContainer {padding-top: 4rem}
h1 {font-size: 1.8rem !important; padding: 0 !important}
[data-testid="stMetricValue"] {font-size: 1.3rem}
.stMain [data-testid="stPageLink-NavLink"] {background: none; padding-left: 0}
.stMain [data-testid="stPageLink-NavLink"] p {text-decoration: underline; font-weight: 500}
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
page = st.navigation(
    list(PAGES.values()),
    position="top",
)
st.session_state["page"] = next(path for path, one in PAGES.items() if one == page)
try:
    page.run()
except Exception as error:  # whatever a file of the workspace made a page do
    state.problem("This page cannot be shown: a file of the workspace is not what it should be.", error)
