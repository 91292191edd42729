"""Jobs, labels, lists and exports in a real Chromium: what is started is stopped, what is typed stays text,
and nothing is asked of another machine (the `page` of test_browser says so of every test)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect
from test_browser import CHROMIUM, address, chromium, heading, page, selected  # noqa: F401  (fixtures)

from interp.causal.effects import Effects

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no Chromium at {CHROMIUM}")
HOSTILE = "<img src=x onerror=alert(1)> :red[x] ![a](http://elsewhere.example/a.png) $y$"


def workspace_of(page) -> Path:  # noqa: F811
    """The workspace, by the command that the form shows."""
    shown = page.get_by_test_id("stCode").filter(has_text="--workspace=").first.inner_text()
    return Path(re.search(r"--workspace=(\S+)", shown)[1])


def until(page, true: Callable[[], bool]) -> None:  # noqa: F811
    """Wait, the page at work, until a file says so: what is typed is saved by a server that takes its time."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        page.wait_for_timeout(50)


def test_a_job_is_started_stopped_and_continued_from_the_page(page, address):  # noqa: F811
    page.goto(f"{address}/jobs?form=ablate")
    page.get_by_role("combobox", name="components").click()
    page.get_by_role("option", name="neurons").click()
    shown = page.get_by_test_id("stCode").filter(has_text="--components=neurons")
    shown.wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url("**/jobs?job=0001-ablate")
    running = page.get_by_test_id("stMarkdownBadge").or_(page.get_by_text("running", exact=True)).first
    running.wait_for()
    page.reload()  # the job does not need the page
    page.get_by_text(re.compile("^ablating")).first.wait_for(timeout=60_000)  # one that only starts cannot be stopped
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Continue").wait_for(timeout=60_000)
    page.get_by_text(re.compile("^interrupted, exit")).wait_for()
    page.get_by_role("link", name="← all jobs").click()
    page.get_by_role("link", name="0001-ablate").wait_for()
    page.get_by_text("neurons · mean · n 100 → ablate-1").wait_for()  # one, or this refuses


def test_a_label_is_kept_and_never_run(page, address):  # noqa: F811
    page.add_init_script("window.alert = () => { window.alerted = true }")
    page.goto(f"{address}/jobs?form=ablate")
    workspace = workspace_of(page)
    page.goto(f"{address}/ablation?run=ioi-heads&head=L1H2")
    box = page.get_by_label("Label", exact=True)
    box.fill(HOSTILE)
    box.press("Enter")
    until(page, (workspace / "runs" / "ioi-heads" / "notes.json").exists)
    lists = page.get_by_role("combobox", name="Lists")
    lists.click()
    lists.press_sequentially("mine")
    page.get_by_role("option", name=re.compile("mine")).click()
    page.keyboard.press("Escape")
    until(page, (workspace / "lists" / "mine.json").exists)
    page.goto(f"{address}/lists?list=mine")
    page.get_by_text(HOSTILE, exact=True).wait_for()
    assert page.locator("img[src=x], img[src*=elsewhere]").count() == 0 and page.evaluate("window.alerted") is None
    page.get_by_role("link", name="L1H2").click()
    heading(page, "L1H2").wait_for()
    expect(page.get_by_label("Label", exact=True)).to_have_value(HOSTILE, timeout=30_000)
    selected(page, "L1H2")


def test_the_exports_of_a_page_are_the_figure_of_a_notebook(page, address, tmp_path):  # noqa: F811
    page.goto(f"{address}/jobs?form=ablate")
    effects = Effects.load(workspace_of(page) / "runs" / "old")
    page.goto(f"{address}/ablation?run=old")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export HTML").click()
    waiting.value.save_as(tmp_path / "old.html")
    made = (tmp_path / "old.html").read_text()
    start = made.index("Plotly.newPlot(")
    drawn = json.JSONDecoder().raw_decode(made[made.index("[", start) :])[0]
    assert drawn == json.loads(effects.figure().to_json())["data"]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export CSV").click()
    assert len(Path(waiting.value.path()).read_text().splitlines()) == len(effects.table()) + 1
    page.get_by_text("Export PNG").click()
    shown = page.get_by_test_id("stExpander").filter(has_text="Export PNG")
    shown.locator(".plot-container").hover()
    with page.expect_download() as waiting:
        shown.locator(".modebar-btn[data-title*='png' i]").click()
    assert waiting.value.suggested_filename == "old.png"
    assert Path(waiting.value.path()).read_bytes().startswith(b"\x89PNG")
    page.goto((tmp_path / "old.html").as_uri())  # alone, without the app
    page.get_by_text("zero ablation: logit_diff").wait_for()
    expect(page.locator(".modebar-btn")).to_have_count(1, timeout=30_000)
