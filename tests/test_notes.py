"""Labels, pins and lists: kept beside the results, by several sessions at once; and what a page exports."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path

import pytest
from test_app import opened, texts, write_run
from test_app import workspace as workspace  # the fixture

from app import notes
from app.components import exports
from interp import reports
from interp.causal.effects import Effects
from interp.errors import InputError, MissingFile

HOSTILE = ["<img src=x onerror=alert(1)>", ":red[x] $y$ **z**", "![a](http://elsewhere/a.png)"]


def label_many(folder: Path, first: int) -> None:
    for number in range(first, first + 20):
        notes.label(folder, f"L0H{number}", f"label {number}")
        notes.put(folder.parent.parent, "all", notes.Entry(folder="runs", result="a", component=f"L0H{number}"))


def test_sessions_and_processes_that_write_at_once_lose_nothing(tmp_path):
    folder = write_run(tmp_path / "runs" / "a", "ablate")
    starts = multiprocessing.get_context("spawn")
    processes = [starts.Process(target=label_many, args=(folder, first)) for first in (0, 20)]
    threads = [threading.Thread(target=label_many, args=(folder, first)) for first in (40, 60)]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join()
    assert notes.notes(folder).labels == {f"L0H{number}": f"label {number}" for number in range(80)}
    assert len(notes.entries(tmp_path, "all")) == 80


def test_a_label_is_one_line_and_an_empty_one_takes_it_away(tmp_path):
    folder = write_run(tmp_path / "runs" / "a", "ablate")
    notes.label(folder, "L3H5", "  copies\nthe \u202ename\x00 ")
    notes.label(folder, "L0H1", HOSTILE[0])
    notes.pin(folder, "a3.h5", True)
    assert notes.notes(folder).labels == {"L3H5": "copies the name", "L0H1": HOSTILE[0]}
    assert notes.notes(folder).pins == ["a3.h5"]
    notes.label(folder, "L0H1", " ")
    notes.pin(folder, "a3.h5", False)
    assert notes.notes(folder) == notes.Notes(labels={"L3H5": "copies the name"})
    with pytest.raises(InputError, match="at most 200 characters; 201 given"):
        notes.label(folder, "L0H1", "x" * 201)


@pytest.mark.parametrize("content", ["{", "[]", '{"labels": {"L0H0": 1}}', '{"labels": {}, "more": 1}'])
def test_a_broken_file_is_never_overwritten(tmp_path, content):
    folder = write_run(tmp_path / "runs" / "a", "ablate")
    (folder / "notes.json").write_text(content)
    with pytest.raises(InputError):
        notes.label(folder, "L0H0", "x")
    assert (folder / "notes.json").read_text() == content


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a..b", "x" * 65])
def test_a_list_has_a_plain_name(tmp_path, name):
    with pytest.raises(InputError, match="cannot name a list"):
        notes.put(tmp_path, name, notes.Entry(folder="runs", result="a", component="L0H0"))
    assert not list(tmp_path.rglob("*.json"))


def test_links_out_of_the_workspace_are_neither_read_nor_written(tmp_path):
    workspace, outside = tmp_path / "workspace", tmp_path / "outside"
    folder = write_run(workspace / "runs" / "a", "ablate")
    outside.mkdir()
    (outside / "notes.json").write_text('{"labels": {"L0H0": "secret"}}')
    (folder / "notes.json").symlink_to(outside / "notes.json")
    (workspace / "lists").symlink_to(outside)
    for act in (lambda: notes.notes(folder), lambda: notes.label(folder, "L0H0", "x"), lambda: notes.lists(workspace),
                lambda: notes.put(workspace, "x", notes.Entry(folder="runs", result="a", component="b"))):  # fmt: skip
        with pytest.raises(MissingFile, match="leads out of the workspace"):
            act()
    assert [path.name for path in outside.iterdir()] == ["notes.json"]
    with pytest.raises(ValueError):
        notes.Entry(folder="runs", result="../../outside", component="L0H0")


def test_a_label_typed_on_a_page_is_kept_and_shown_where_the_component_is(workspace):
    at = opened("ablation", run="ioi-heads", head="L1H2")
    key = "runs/ioi-heads/L1H2"
    at.text_input(key=f"label-{key}").set_value(HOSTILE[0]).run()
    at.multiselect(key=f"lists-{key}").set_value(["name-movers"]).run()
    assert notes.notes(workspace / "runs" / "ioi-heads").labels == {"L1H2": HOSTILE[0]}
    at = opened("ablation", run="ioi-heads")
    table = at.dataframe[0].value.set_index("component")["label"]
    assert table["L1H2"] == HOSTILE[0] and set(table.drop("L1H2")) == {""}
    at = opened("ablation", run="ioi-heads", head="L1H2")
    assert at.text_input(key=f"label-{key}").value == HOSTILE[0]
    at.multiselect(key=f"lists-{key}").set_value(["../x"]).run()
    assert "This was not saved." in texts(at) and notes.lists(workspace) == ["name-movers"]
    assert notes.entries(workspace, "name-movers") == []


def test_lists_shows_labels_and_lists_with_links(workspace):
    assert "No list yet" in texts(opened("lists")) and "No label yet" in texts(opened("lists"))
    for text, component in zip(HOSTILE, ("L0H1", "L1H2", "L2H3"), strict=True):
        notes.label(workspace / "runs" / "ioi-heads", component, text)
    notes.label(workspace / "saes" / "demo", "3", "a latent")
    for folder, result, component in (("runs", "ioi-heads", "L1H2"), ("saes", "demo", "3"), ("runs", "gone", "L0H0")):
        notes.put(workspace, "mine", notes.Entry(folder=folder, result=result, component=component))
    at = opened("lists")
    links = {link.proto.label: link.proto.query_string for link in at.get("page_link")}
    assert "mine" in [button.label for button in at.button] and links["L1H2"] == "run=ioi-heads&head=L1H2"
    assert "feature=3" in links["3"] and all(text in texts(at) for text in HOSTILE)
    assert not [element for element in at.markdown if "img" in element.value]
    at = opened("lists", list="mine")
    assert "runs/gone (not in this workspace)" in texts(at)
    at.button(key="take-0").click().run()
    assert [entry.component for entry in notes.entries(workspace, "mine")] == ["3", "L0H0"]
    assert 'no list "mime" in this workspace. Nearest: mine' in texts(opened("lists", list="mime"))
    (workspace / "lists" / "mine.json").write_text("{")
    assert "This list cannot be shown." in texts(opened("lists", list="mine"))
    assert opened("lists").title[0].value == "Lists"


def test_a_page_exports_the_figure_and_the_table_of_a_notebook(workspace, monkeypatch):
    kept = []
    monkeypatch.setattr(exports, "exports", lambda *given: kept.append(given))
    opened("ablation", run="old")
    ((run, table, figure),) = kept
    effects = Effects.load(workspace / "runs" / "old")
    assert figure().to_json() == effects.figure().to_json()
    assert table.equals(effects.table())
    page = exports.as_html(figure(), run)
    start = page.index("Plotly.newPlot(")
    data = json.JSONDecoder().raw_decode(page[page.index("[", start) :])[0]
    assert data == json.loads(effects.figure().to_json())["data"]
    assert json.dumps(reports.camera("old")["modeBarButtons"]) in page[start:]
    own = page[: page.index("<script>")] + page[page.index("</script>") :]
    assert "src=" not in own and "href=" not in own


def test_nothing_is_exported_before_it_is_asked_for(workspace, monkeypatch):
    monkeypatch.setattr(exports, "as_html", lambda *_: pytest.fail("drawn without being asked"))
    at = opened("ablation", run="ioi-heads")
    buttons = [button.label for button in at.get("download_button")]
    assert buttons == ["Export CSV", "Export JSON", "Export HTML"]
