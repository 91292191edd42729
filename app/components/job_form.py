"""The form of a command: its options as boxes, the command that they make, and the button that queues it."""

from __future__ import annotations

import shlex
from typing import Any

import streamlit as st

from app import forms, jobs, state

NAMES = {"record": "Record", "sae-train": "Train a dictionary", "sae-features": "Collect features",
         "sae-eval": "Evaluate a dictionary", "ablate": "Ablate", "patch": "Patch",
         "circuit-find": "Find a circuit", "heads": "Score heads", "direction-find": "Find a direction",
         "direction-test": "Test a direction", "lens-show": "Lens", "lens-attribute": "Attribute a logit",
         "lens-train": "Train a lens", "generate": "Generate"}  # fmt: skip
KINDS = {"direction-test": {"names": "direction"}}
"""Of a form's boxes that name a run: of which kind."""
COLUMNS = 4


def job_form(focus: state.Focus) -> None:
    """Choose a command, answer what it asks, see the command, start it. The address may name the form, and the result
    that it begins with."""
    options = list(forms.FORMS)
    st.session_state["job-form"] = focus.form if focus.form in options else options[0]
    key = st.segmented_control(
        "Command", options, key="job-form", format_func=lambda key: NAMES.get(key, key), required=True,
        label_visibility="collapsed", on_change=lambda: state.write_focus(form=st.session_state["job-form"]),
    )  # fmt: skip
    form = forms.form(key)
    st.text(form.asks)
    values = answers(form, focus)
    try:
        command = forms.command(key, values, state.workspace())
    except state.UNREADABLE as error:
        st.warning("This would not run:")
        st.code(str(error), language=None, wrap_lines=True)
        return
    st.text("This will run, as a list of arguments, without a shell")
    st.code(shlex.join(["interp", *command]), language="bash", wrap_lines=True)
    with st.container(horizontal=True):
        if st.button("Start", type="primary", key="job-start"):
            start(key, values)
        if forms.has_dry_run(key) and st.button("Try without running", key="job-dry", help="--dry-run: what it would "
                                                "do, and how long it would take"):  # fmt: skip
            dry_run(command)


def answers(form: forms.Form, focus: state.Focus) -> dict[str, str]:
    """What stands in the boxes; an empty one leaves the command's own default."""
    fields, values = forms.fields(form.key), {}
    for name in (name for name in form.first if fields[name].name in forms.TEXTS):
        values[name] = box(form, fields[name])  # a line of its own: a text is long
    columns = st.columns(COLUMNS)
    if form.of:
        with columns[0]:
            values[form.of] = choice("Dictionary", form.of, form, form.folder, getattr(focus, "sae", None))
    boxes = [name for name in form.first if name not in values]
    for k, name in enumerate(boxes, start=1 if form.of else 0):
        with columns[k % COLUMNS]:
            values[name] = box(form, fields[name])
    with st.expander("More settings"):
        columns = st.columns(COLUMNS)
        for k, name in enumerate(name for name in fields if name not in form.first):
            with columns[k % COLUMNS]:
                values[name] = box(form, fields[name])
    if form.of is None:
        suggested = forms.free_name(form.key, state.workspace())
        values["out"] = st.text_input(f"Name of the result, in {form.folder}/", suggested, max_chars=100, width=350,
                                      key=f"job-{form.key}-out-{suggested}").strip()  # fmt: skip
    return values


def box(form: forms.Form, field: forms.Field) -> str:
    """One option: a list of what the workspace has, a choice that can be typed, yes or no, or a line of text."""
    label, key = field.name.replace("_", " "), f"job-{form.key}-{field.name}"
    first = form.first.get(field.name, "")
    if field.name in form.names:
        return choice(label, field.name, form, form.names[field.name], None, help=plain(field.help))
    if field.type is bool:
        words = {"": "default", "true": "yes", "false": "no"}
        offered = [value for value in words if value != "false" or field.off]
        begin = offered.index(first) if first in offered else 0
        return st.selectbox(label, offered, begin, key=key, format_func=words.get, help=plain(field.help))
    if offered := form.choices.get(field.name):
        chosen = st.selectbox(
            label, offered, key=key, index=offered.index(first) if first in offered else None,
            accept_new_options=True, placeholder="default", help=plain(field.help),
        )  # fmt: skip
        return (chosen or "").strip()
    value = st.text_input(label, first, key=key, placeholder="default", max_chars=1000, help=plain(field.help))
    return value if value.strip() else ""  # the space of " are" is part of it


def choice(label: str, name: str, form: forms.Form, folder: str, first: str | None, **kwargs: Any) -> str:
    """A result of the workspace, or nothing where it has none."""
    kind = KINDS.get(form.key, {}).get(name)
    there = [run["name"] for run in state.results(folder, kinds=[kind] if kind else ())]
    index = there.index(first) if first in there else 0 if there else None
    chosen = st.selectbox(label, there, index=index, key=f"job-{form.key}-{name}", placeholder=f"none in {folder}/",
                          **kwargs)  # fmt: skip
    return chosen or ""


def plain(text: str) -> str | None:
    """Help of a command as Markdown that says the same."""
    return state.escape(text) or None


def start(key: str, values: dict[str, str]) -> None:
    try:
        job = jobs.submit(state.workspace(), key, values)
    except state.UNREADABLE as error:
        state.problem("This was not started.", error)
        return
    st.switch_page(state.JOBS, query_params={"job": job.id})


def dry_run(command: list[str]) -> None:
    """What the command says with --dry-run."""
    with st.spinner("Asking the command"):
        said = jobs.dry_run(command)
    st.code(said, language=None, wrap_lines=True)
