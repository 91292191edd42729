"""How long a reader waits, in a real browser: the first paint of a warm page, and from a click to the text that it
changes. `python -m tests.bench.clicks [WORKSPACE] [--clicks N] [--only NAME,NAME]`, on a workspace of `interp demo`, or
without one on that of `tests.bench.app`: 200 runs, 16,384 latents.

The clock runs in the page: it starts when the browser dispatches the click (`pointerup`), a MutationObserver stops it
when the expected text stands in the document (`text`), and the last change of the page that the click leads to stops it
again (`rest`), figures and tables included. The driver's own waiting is in neither. The targets are 300 ms at the
95th percentile of `text`, and 2 s of a first paint.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_app import MAIN, free_port
from test_browser import CHROMIUM, FLAGS, place_of, wait_for

QUIET = 350
"""Milliseconds without a change after which a page is taken to be at rest."""
ARM = """([selector, expected, quiet]) => {
  const main = document.querySelector('[data-testid=stMain]');
  const told = () => Array.from(document.querySelectorAll(selector), e => e.textContent).join(' | ');
  const before = told();
  window.waited = new Promise((done, failed) => {
    let start = null, text = null, rest = null, timer = null;
    const end = () => {
      seen.disconnect();
      text === null ? failed(new Error(`"${expected}" did not come: ${told()}`)) : done({text, rest});
    };
    const wait = ms => { clearTimeout(timer); timer = setTimeout(end, ms); };
    const seen = new MutationObserver(() => {
      if (start === null) return;
      rest = performance.now() - start;
      const now = told();
      if (text === null && now !== before && now.includes(expected)) text = rest;
      wait(text === null ? 15000 : quiet);
    });
    window.addEventListener('pointerup', e => { start = e.timeStamp; wait(15000); }, {capture: true, once: true});
    seen.observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
  });
}"""
Click = tuple[Callable[[], None], str]
"""What clicks, and the text that is then told."""


@dataclass(frozen=True)
class Selection:
    """A page, what is clicked there in turn, and the elements whose text tells of it."""

    name: str
    address: str
    told: str
    clicks: Callable[[Any], Iterator[Click]]
    back: bool = False
    """Whether the click leads to another page: the next one is made after Back."""


def cells(form: str = "{0}", which: int = 0) -> Callable[[Any], Iterator[Click]]:
    """The cells of a map, in an order of their own; `form` of a cell's name and its position is the text that is
    told."""

    def clicks(page: Any) -> Iterator[Click]:
        found = page.get_by_role("grid").nth(which).get_by_role("gridcell")
        found.first.wait_for()
        for k in spread(found.count()):
            name = found.nth(k).get_attribute("aria-label").partition(": ")[0]  # now: the cells may have moved on
            yield found.nth(k).click, form.format(name.split("  ")[0], *re.findall(r"at (\d+)", name)[:1])

    return clicks


def parts(selector: str, form: str) -> Callable[[Any], Iterator[Click]]:
    """Elements in turn; `form` of an element's number is the text that is told."""

    def clicks(page: Any) -> Iterator[Click]:
        found = page.locator(selector)
        for k in spread(found.count()):
            yield found.nth(k).click, form.format(k)

    return clicks


def table_rows(which: int = 0, n: int = 5, form: str = "") -> Callable[[Any], Iterator[Click]]:
    """The first rows of a table: a canvas whose rows are 35 pixels high, with its text inside for screen readers."""

    def clicks(page: Any) -> Iterator[Click]:
        table = page.get_by_test_id("stDataFrame").nth(which)
        for k in spread(n):
            table.scroll_into_view_if_needed()
            cell = table.locator(f"[data-testid=glide-cell-1-{k}]")
            cell.wait_for(state="attached")
            at = {"x": 15, "y": 35 * (k + 1) + 17}
            yield lambda at=at: table.click(position=at), form.format(cell.text_content())

    return clicks


def nodes(page: Any) -> Iterator[Click]:
    """The nodes of a graph, each told by the name of its component."""
    from interp.causal.graph import component

    names = page.evaluate("""() => document.querySelector('.js-plotly-plot')._fullData
        .flatMap(t => Array.from(t.customdata || [])).filter(name => !name.includes('->'))""")
    for k in spread(len(names)):
        name = names[k]

        def click(name: str = name) -> None:
            at = place_of(page, name)
            page.mouse.move(*at)
            page.mouse.click(*at)

        yield click, component(name)


def spread(n: int) -> Iterator[int]:
    """0 to n - 1 without end, neighbours far apart, none twice in a row."""
    step = next(step for step in range(max(2, int(0.62 * n)), 2 * n + 3) if _coprime(step, n))
    return (k * step % n for k in itertools.count(1))


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


TEXT, HEADING, TITLE = "[data-testid=stText]", "h3", "h1"
SELECTIONS = [
    Selection("ablation: cell of the map", "ablation", HEADING, cells()),
    Selection("patching: cell of the map", "patching", HEADING, cells()),
    Selection("patching: token of a prompt", "patching", HEADING, parts(".pp .token td.pick", "")),
    Selection("attention: thumb", "attention", TEXT, cells("{} from position")),
    Selection("attention: query token", "attention", TEXT, parts(".pv .queries .token", "from position {},")),
    Selection("prompt: token", "prompt", HEADING, parts(".ts .token", "What comes after position {}")),
    Selection("prompt: cell of the lens", "prompt", HEADING, cells("What comes after position {1}")),
    Selection("prompt: part that writes", "prompt", "a", cells("Where {} looks", which=1)),
    Selection("circuit: node", "circuit", HEADING, nodes),
    Selection("circuit: row of the edges", "circuit", HEADING, table_rows()),
    Selection("features: row", "features", TITLE, table_rows(), back=True),
    Selection("feature: row of a neighbour", "feature", TITLE, table_rows(2)),
]


def wait_for_rest(page: Any) -> None:
    page.evaluate(
        """quiet => new Promise(done => {
          let timer = null;
          const wait = () => { clearTimeout(timer); timer = setTimeout(() => { seen.disconnect(); done(); }, quiet); };
          const seen = new MutationObserver(wait);
          seen.observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
          wait();
        })""",
        QUIET,
    )


def timed(page: Any, address: str, selection: Selection, n: int) -> list[dict[str, float]]:
    """`text` and `rest` of n clicks, in milliseconds; the first two clicks of a page are left out."""
    opened(page, f"{address}/{selection.address}")
    wait_for_rest(page)
    waits: list[dict[str, float]] = []
    clicks = selection.clicks(page)
    while len(waits) < n + 2:
        click, expected = next(clicks)
        before = told(page, selection)
        if expected and expected in before:
            continue
        page.evaluate(ARM, [selection.told, expected, QUIET])
        click()
        waits.append(page.evaluate("window.waited"))
        if selection.back:
            page.go_back()
            wait_for_rest(page)
    return waits[2:]


def told(page: Any, selection: Selection) -> str:
    return " | ".join(page.locator(selection.told).all_text_contents())


def opened(page: Any, url: str) -> float:
    """Open a page; milliseconds until its source stood in the document, for that is the last thing on it."""
    page.goto(url, wait_until="commit")
    page.get_by_role("heading", name="Where this comes from").wait_for()
    return page.evaluate("performance.now()")


def first_paint(page: Any, url: str) -> dict[str, float]:
    """Milliseconds from the navigation to the title, and to the last heading, of a page that was open before."""
    page.goto(url, wait_until="commit")
    return page.evaluate("""() => new Promise(done => {
      const found = {};
      const look = () => {
        const last = Array.from(document.querySelectorAll('h1, h3'), e => e.textContent);
        if (!('title' in found) && document.querySelector('h1')) found.title = performance.now();
        if (last.includes('Where this comes from')) {
          seen.disconnect();
          requestAnimationFrame(() => setTimeout(() => done({...found, all: performance.now()})));
        }
      };
      const seen = new MutationObserver(look);
      seen.observe(document, {subtree: true, childList: true, characterData: true});
      look();
    })""")


@contextmanager
def served(workspace: Path) -> Iterator[str]:
    """The app on a workspace, started as the command starts it."""
    from interp.cli.app import command

    port = free_port()
    environment = os.environ | {"PYTHONPATH": f"{MAIN.parent.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with open(log, "wb") as output:
            server = subprocess.Popen(
                command(MAIN, workspace, "127.0.0.1", port, headless=True), stdout=output, stderr=output,
                env=environment,
            )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/_stcore/health", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


def quantiles(values: list[float]) -> tuple[float, float]:
    """The median and the 95th percentile: the smallest value that 95% do not exceed."""
    return statistics.median(values), sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def main(workspace: Path, n: int, only: list[str]) -> None:
    from playwright.sync_api import Error, sync_playwright

    wanted = [s for s in SELECTIONS if not only or any(name in s.name for name in only)]
    with served(workspace) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(30_000)
        print(f"{'selection, ms':<32} {'text':>6} {'95th':>6}   {'rest':>6} {'95th':>6}   clicks", flush=True)
        for selection in wanted:
            try:
                waits = timed(page, address, selection, n)
            except Error as error:
                print(f"{selection.name:<32} not measured: {str(error).splitlines()[0]}", flush=True)
                continue
            text, rest = (quantiles([wait[key] for wait in waits]) for key in ("text", "rest"))
            print(f"{selection.name:<32} {text[0]:6.0f} {text[1]:6.0f}   {rest[0]:6.0f} {rest[1]:6.0f}   {len(waits)}",
                  flush=True)  # fmt: skip
        print(f"\n{'first paint, ms':<32} {'title':>6} {'last heading':>14}   median of 5")
        for name in dict.fromkeys(selection.address for selection in wanted):
            found = [first_paint(page, f"{address}/{name}") for _ in range(6)][1:]
            title, all_ = (statistics.median(one[key] for one in found) for key in ("title", "all"))
            print(f"{name:<32} {title:6.0f} {all_:14.0f}", flush=True)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path, nargs="?")
    parser.add_argument("--clicks", type=int, default=25)
    parser.add_argument("--only", default="", help="parts of names of selections, with commas")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name]
    if given.workspace:
        main(given.workspace.resolve(), given.clicks, names)
    else:
        from tests.bench.app import workspace as written

        with tempfile.TemporaryDirectory() as made:
            main(written(Path(made)), given.clicks, names)
