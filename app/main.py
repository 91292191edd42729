"""The frame of the app: `streamlit run app/main.py -- --workspace ./workspace`."""

from __future__ import annotations

import streamlit as st

from app import state

st.set_page_config(page_title="Interpretability workbench", layout="wide")
page = st.navigation(
    [
        st.Page(state.RUNS, title="Runs", default=True),
        st.Page(state.ABLATION, title="Ablation", url_path="ablation"),
        st.Page(state.FEATURES, title="Features", url_path="features"),
    ],
    position="top",
)
page.run()
