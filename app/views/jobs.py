"""Work started here: the queue, one job with `?job=` in the address, and the forms that start them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

from app import forms, jobs, state
from app.components.job_form import job_form
from app.components.token_strip import visible
from interp import plots

EVERY = 1.0
"""Seconds between two looks at what runs."""
SHOWN, LINES = 15, 20
COLOURS = {"queued": "gray", "running": "blue", "done": "green", "failed": "red", "interrupted": "orange",
           "lost": "violet"}  # fmt: skip
MEANS = {
    "queued": "Waits for its turn.",
    "interrupted": "Stopped before its end. What was finished is kept: the same command continues.",
    "failed": "It failed on the way. What was finished is kept: the same command continues.",
    "lost": "Its processes are gone without a word: the machine was started again, or they were killed. What was "
    "finished is kept: the same command continues.",
}


def page() -> None:
    focus = state.read_focus()
    found = jobs.advance(state.workspace())
    if focus.job:
        one_job(focus.job)
        return
    st.title("Jobs", anchor=False)
    repeating(queue, found)
    st.subheader("Start a job", anchor=False)
    job_form(focus)


def repeating(show: Callable[[], bool], found: list[jobs.Job]) -> None:
    """Show a part of the page, again every second while one of the jobs is active; the whole page when the last has
    ended."""
    active = any(job.active for job in found)

    def again() -> None:
        if not show() and active:
            st.rerun()

    st.fragment(run_every=EVERY if active else None)(again)()


def queue() -> bool:
    """The jobs, newest first; whether any is active."""
    root = state.workspace()
    found = jobs.advance(root)
    if not found:
        st.text("No job yet: what is started below runs in the background, and goes on when this page is closed.")
        return False
    widths = [3, 2, 5, 4, 3]
    for column, heading in zip(st.columns(widths), ("job", "state", "what", "progress", "asked for"), strict=True):
        column.caption(heading)
    for job in found[:SHOWN]:
        name, status, command, progress, asked = st.columns(widths, vertical_alignment="center")
        name.page_link(state.JOBS, label=state.escape(job.id), query_params={"job": job.id})
        with status:
            badge(job)
        command.text(summary(job))
        with progress:
            progress_bar(job)
        asked.text(clock(job.queued))
    if len(found) > SHOWN:
        st.text(f"{len(found) - SHOWN} older ones are in {root / 'jobs'}.")
    st.session_state["at-a-time"] = jobs.at_a_time(root)
    st.number_input("Jobs at a time", 1, 64, key="at-a-time", width=150,
                    on_change=lambda: jobs.set_at_a_time(root, int(st.session_state["at-a-time"])))  # fmt: skip
    return any(job.active for job in found)


def one_job(name: str) -> None:
    st.page_link(state.JOBS, label="← all jobs", query_params={})
    st.title(state.escape(name), anchor=False)
    try:
        job = jobs.find(state.workspace(), name)
    except state.UNREADABLE as error:
        state.problem("There is no such job.", error)
        return

    def show() -> bool:
        now = jobs.read(job.folder)
        status(now)
        return now.active

    repeating(show, [job])
    st.text("The command; here it runs as this list of arguments, without a shell")
    st.code(shown_command(job), language="bash", wrap_lines=True)


def status(job: jobs.Job) -> None:
    """How a job stands, what can be done about it, what it has made and said."""
    with st.container(horizontal=True, vertical_alignment="center"):
        badge(job)
        st.text(times(job))
    if job.error or job.status in MEANS:
        st.text(job.error or MEANS[job.status])
    progress_bar(job)
    buttons(job)
    results(job)
    losses(job)
    said = job.log()
    st.text("The end of what it says" if said else "It has said nothing yet.")
    if said:
        st.code("\n".join(said.splitlines()[-LINES:]), language=None, wrap_lines=True)


def badge(job: jobs.Job) -> None:
    ended = job.exit not in (None, 0)
    st.badge(f"{job.status}, exit {job.exit}" if ended else job.status, color=COLOURS[job.status])


def times(job: jobs.Job) -> str:
    told = [f"asked for {clock(job.queued)}"]
    if job.started:
        until = job.finished or (time.time() if job.status == "running" else None)
        told.append(f"started {clock(job.started)}" + (f", {duration(until - job.started)}" if until else ""))
    return " · ".join(told)


def progress_bar(job: jobs.Job) -> None:
    """How far it is; of a job that runs without having said so, for how long it runs."""
    progress = job.progress() if job.status not in ("queued", "done") else None
    if progress:
        left = f", {duration(progress.left)} left" if progress.left is not None and job.status == "running" else ""
        st.progress(progress.share, text=state.escape(f"{progress.title} {progress.share:.0%}{left}"))
    elif job.status == "running":
        st.text(f"starting, {duration(time.time() - (job.started or job.queued))}")


def buttons(job: jobs.Job) -> None:
    """Cancel while it is active, continue once it has stopped short of its end."""
    asked = f"asked-to-stop-{job.id}-{job.started}"

    def stop(at_once: bool = False) -> None:
        if tried(lambda: jobs.cancel(job, at_once=at_once)):
            st.session_state[asked] = True

    with st.container(horizontal=True, vertical_alignment="center"):
        if job.active and st.session_state.get(asked):
            st.button("Stop at once", key="stop", on_click=stop, kwargs={"at_once": True})
            st.text("Asked to stop: it keeps what is finished.")
        elif job.active:
            st.button("Cancel", key="cancel", on_click=stop)
        elif job.status in jobs.AGAIN:
            st.button("Continue", key="continue", type="primary", on_click=lambda: tried(lambda: jobs.again(job)))
    if refused := st.session_state.pop("job-refused", None):
        state.problem("That could not be done.", refused)


def tried(change: Callable[[], Any]) -> bool:
    try:
        change()
    except state.UNREADABLE as error:
        st.session_state["job-refused"] = error
        return False
    return True


def results(job: jobs.Job) -> None:
    """Links to what it has made."""
    try:
        made = {path.name for path in job.results()}
    except state.UNREADABLE:
        return
    for run in state.results(forms.form(job.form).folder) if made else []:
        if run["name"] in made:
            target, query = state.place(run)
            st.page_link(target, label=f"→ {state.escape(run['folder'])}/{state.escape(run['name'])}",
                         query_params=query)  # fmt: skip


def losses(job: jobs.Job) -> None:
    """The curves of a training, as far as it is."""
    if job.form != "sae-train":
        return
    try:
        logs = [path / "train_log.csv" for path in job.results()]
        tables = {path.parent.name: pd.read_csv(state.inside(path)) for path in logs if path.exists()}
    except state.UNREADABLE as error:
        state.problem("The log of this training cannot be read.", error)
        return
    for name, table in tables.items():
        if len(table):
            st.text(name)
            st.plotly_chart(plots.training(table), key=f"losses-{name}", config={"displayModeBar": False})


def shown_command(job: jobs.Job) -> str:
    try:
        return shlex.join(job.command)
    except state.UNREADABLE as error:
        return str(error)


def summary(job: jobs.Job) -> str:
    """What tells a job from others: the answers of its form, and the name of its result."""
    told = [f"{name} {value}" if value.replace(",", "").isdigit() else value
            for name, value in job.values.items() if name != "out" and value != "bundled"]  # fmt: skip
    return visible(" · ".join(told) + (f" → {job.values['out']}" if "out" in job.values else ""))


def clock(seconds: float) -> str:
    at = datetime.fromtimestamp(seconds)
    return f"{at:%H:%M:%S}" if at.date() == datetime.now().date() else f"{at:%Y-%m-%d %H:%M}"


def duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds < 6000 else f"{seconds / 3600:.1f} h"


page()
