"""The app as a reader meets it: `streamlit run` on a free port, a real Chromium, no request to any other machine."""

from __future__ import annotations

import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from test_app import MAIN, NASTY, STRONGEST, free_port, write_workspace

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason=f"no Chromium at {CHROMIUM}")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The app, started by the command's own arguments on a workspace of test_app."""
    from interp.cli.app import command

    workspace = write_workspace(tmp_path_factory.mktemp("browser"))
    port = free_port()
    log = workspace / "log.txt"
    with open(log, "wb") as output:
        arguments = command(MAIN, workspace, "127.0.0.1", port, headless=True)
        environment = os.environ | {"PYTHONPATH": f"{MAIN.parent.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        server = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/_stcore/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"the app did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page that fails its test if it asked anything of another machine, or if a script of it failed."""
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(30_000)
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    yield page
    page.close()
    local = ("127.0.0.1", None)  # None: data: and blob:
    assert asked and [url for url in asked if urlsplit(url).hostname not in local and not url.startswith("blob:")] == []
    assert failed == []


def cell(page, name: str):
    return page.get_by_role("gridcell", name=re.compile(f"^{re.escape(name)}: "))


def selected(page, name: str) -> None:
    """The cell is, or becomes, the chosen one."""
    cell(page, name).and_(page.locator("[aria-selected=true]")).wait_for()


def heading(page, name: str):
    return page.get_by_role("heading", name=name, exact=True)


def test_a_click_on_a_head_changes_the_address_and_the_details(page, address):
    page.goto(f"{address}/ablation?run=ioi-heads")
    heading(page, STRONGEST).wait_for()
    selected(page, STRONGEST)
    box = cell(page, "L1H4").bounding_box()
    for name, x, y in (("L1H4", 2, 2), ("L3.mlp", 15, 15), ("L0H0", box["width"] - 2, box["height"] - 2)):
        cell(page, name).click(position={"x": x, "y": y})
        heading(page, name).wait_for()
        page.wait_for_url(f"**/ablation?run=ioi-heads&head={name}")
        selected(page, name)
    page.go_back()
    heading(page, "L3.mlp").wait_for()


def test_the_map_answers_to_the_keyboard(page, address):
    page.goto(f"{address}/ablation?run=ioi-heads&head=L1H1")
    heading(page, "L1H1").wait_for()
    cell(page, "L1H1").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    heading(page, "L2H2").wait_for()
    page.wait_for_url("**head=L2H2**")


def test_home_leads_to_the_map_and_to_the_features(page, address):
    page.goto(address)
    page.get_by_role("link", name="ioi-heads").click()
    heading(page, STRONGEST).wait_for()
    page.wait_for_url(f"{address}/ablation?run=ioi-heads")
    page.goto(address)
    page.get_by_role("link", name="demo").first.click()
    heading(page, "Features").wait_for()
    page.wait_for_url(f"{address}/features?sae=demo")


def test_a_row_of_the_table_opens_its_latent_and_back_returns(page, address):
    page.goto(f"{address}/features?sae=demo")
    heading(page, "Features").wait_for()
    table = page.get_by_test_id("stDataFrame").first
    table.get_by_text("300").first.wait_for(state="attached")  # the rows are there for a screen reader, so for a click
    table.click(position={"x": 15, "y": 35 + 34 * 2 + 17})
    heading(page, "demo/2").wait_for()
    page.wait_for_url("**/feature?sae=demo&feature=2")
    page.go_back()
    heading(page, "Features").wait_for()
    page.get_by_text("latents; choose a row to open its page").wait_for()


def place_of(page, name: str) -> list[float]:
    """Where a point stands on the screen, once the figure is drawn and lies still: a rerun draws it anew."""
    return page.wait_for_function(
        """name => {
          const plot = document.querySelector('[data-testid=stPlotlyChart] .js-plotly-plot');
          if (!plot?._fullData || !plot.querySelector('.scatterlayer .point')) return null;
          const box = plot.getBoundingClientRect();
          for (const trace of plot._fullData) {
            const k = Array.from(trace.customdata || []).indexOf(name);
            if (k < 0) continue;
            const {xaxis, yaxis} = plot._fullLayout;
            const at = [box.x + xaxis._offset + xaxis.d2p(trace.x[k]), box.y + yaxis._offset + yaxis.d2p(trace.y[k])];
            const still = `${window.lastPlace}` == `${at}`;
            window.lastPlace = at;
            return still ? at : null;
          }
        }""",
        arg=name,
        polling=100,
    ).json_value()


def test_a_click_on_a_node_or_an_edge_of_a_circuit_selects_it(page, address):
    page.goto(f"{address}/circuit?run=ioi-circuit&n=20")
    for name, shown in (("a2.h3", "L2H3"), ("a2.h3->logits", "L2H3 → logits"), ("logits", "logits")):
        at = place_of(page, name)
        page.mouse.move(*at)
        page.mouse.click(*at)
        heading(page, shown).wait_for()
    page.wait_for_url("**n=20&head=logits")
    page.go_back()
    heading(page, "L2H3 → logits").wait_for()
    page.get_by_role("link", name="Ablate L2H3").click()
    heading(page, "L2H3").wait_for()
    page.wait_for_url(f"{address}/ablation?run=ioi-heads&head=L2H3")


def test_a_token_of_the_prompts_selects_its_position(page, address):
    page.add_init_script("window.alert = () => { window.alerted = true }")
    page.goto(f"{address}/patching?run=ioi-patch&head=L1.resid_pre&pos=IO")
    heading(page, "L1.resid_pre at IO").wait_for()
    page.get_by_role("table", name="clean and corrupted prompt").get_by_text(":red[hi]").first.wait_for()
    page.get_by_role("cell", name="the", exact=True).first.click()
    heading(page, "L1.resid_pre at end").wait_for()
    cell(page, "L2.resid_pre at S2").click()
    heading(page, "L2.resid_pre at S2").wait_for()
    page.wait_for_url("**pos=S2**")
    assert page.evaluate("window.alerted") is None


def test_token_text_is_shown_and_never_run(page, address):
    page.add_init_script("window.alert = () => { window.alerted = true }")
    page.goto(f"{address}/feature?sae=demo&feature=1")
    heading(page, "demo/1").wait_for()
    strip = page.get_by_role("listitem").first
    strip.wait_for()
    for token in NASTY[:4]:
        assert token in strip.inner_text()
    assert "\\u202e" in strip.inner_text() and "\u202e" not in strip.inner_text()
    assert page.locator("img[src=x]").count() == 0 and page.evaluate("window.alerted") is None
