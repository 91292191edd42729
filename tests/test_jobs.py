"""Commands as jobs: they run to their end, stop, go on and are lost without the page that started them; forms let
nothing out of the workspace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from test_app import opened, texts, write_run

from app import forms, jobs
from interp import runs
from interp.errors import InputError, MissingFile, UnknownName

QUICK = {"task": "ioi", "components": "heads", "n": "4", "out": "quick"}
LONG = {"task": "ioi", "components": "neurons", "n": "100", "out": "long"}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["main.py", "--workspace", str(tmp_path)])
    yield tmp_path
    for job in jobs.listing(tmp_path):
        if job.status == "running" and job.pid:
            os.killpg(job.pid, signal.SIGKILL)


def wait(job: jobs.Job, done) -> jobs.Job:
    """The job once `done` of it is true."""
    end = time.monotonic() + 90
    while not done(job := jobs.read(job.folder)):
        assert time.monotonic() < end, (job, job.log())
        time.sleep(0.05)
    return job


def ended(job: jobs.Job) -> bool:
    return not job.active


def write_job(workspace: Path, name: str, status: str, *, form: str = "ablate", values: dict = QUICK, **more) -> Path:
    folder = workspace / "jobs" / name
    folder.mkdir(parents=True)
    content = {"form": form, "values": values, "status": status, "queued": time.time(), "started": time.time(), **more}
    (folder / "job.json").write_text(json.dumps(content))
    return folder


def test_a_job_makes_its_result_and_starts_the_next_when_it_ends(workspace):
    (workspace / "saes" / "empty").mkdir(parents=True)
    first = jobs.submit(workspace, "ablate", QUICK)
    second = jobs.submit(workspace, "sae-eval", {"name": "empty"})
    assert (first.status, second.status) == ("running", "queued")
    second = wait(second, ended)  # nobody but the first job has started it
    first = jobs.read(first.folder)
    assert (first.status, first.exit, first.results()) == ("done", 0, [workspace / "runs" / "quick"])
    run = runs.read(workspace / "runs" / "quick")
    assert run["status"] == "done"
    assert run["command"] == first.command and run["command"][0] == "interp"
    assert "effects.parquet" in first.log() and first.progress().share == 1
    assert (second.status, second.exit) == ("failed", 2)
    assert second.log().startswith("MissingFile: ") and "Traceback" not in second.log()
    with pytest.raises(InputError, match="holds a finished result"):
        jobs.submit(workspace, "ablate", QUICK)
    with pytest.raises(InputError, match="is done: there is nothing to continue"):
        jobs.again(first)


def test_a_job_that_is_said_to_run_is_held_so_nobody_reads_it_as_lost(workspace, monkeypatch):
    write, seen = jobs._write, []

    def watched(job):
        write(job)
        seen.append((job.status, jobs.read(job.folder).status))

    monkeypatch.setattr(jobs, "_write", watched)
    monkeypatch.setattr(jobs, "PYTHON", ["true"])
    jobs.submit(workspace, "ablate", QUICK)
    assert seen == [("queued", "queued"), ("running", "running")]


def test_a_job_that_is_stopped_or_killed_can_be_continued(workspace):
    result = workspace / "runs" / "long"
    job, waits = jobs.submit(workspace, "ablate", LONG), jobs.submit(workspace, "ablate", QUICK)
    jobs.cancel(waits)
    assert jobs.read(waits.folder).status == "interrupted" and jobs.read(waits.folder).started is None
    wait(job, lambda job: (result / "run.json").exists())
    jobs.cancel(job)
    job = wait(job, ended)
    assert (job.status, job.exit, runs.read(result)["status"]) == ("interrupted", 130, "interrupted")
    assert "the same command continues" in job.log()
    jobs.again(job)
    job = wait(job, lambda job: job.pid)
    os.killpg(job.pid, signal.SIGKILL)
    assert wait(job, ended).status == "lost"
    runs.write_run(result, runs.read(result) | {"status": "running"})  # as a kill leaves it
    jobs.again(job)
    job = wait(job, lambda job: job.pid)
    jobs.cancel(job, at_once=True)
    job = wait(job, ended)
    assert (job.status, job.exit, runs.read(result)["status"]) == ("interrupted", -signal.SIGTERM, "interrupted")


def test_a_job_file_may_ask_only_for_what_a_form_may(workspace):
    folder = write_job(workspace, "0001-ablate", "queued", values={"task": "/etc/passwd.jsonl", "out": "x"})
    write_job(workspace, "0002-ablate", "queued", form="sh", values={"c": "true"})
    jobs.advance(workspace)
    job = wait(jobs.read(folder), ended)
    assert job.status == "failed" and "no such file" in job.error and not job.log()
    other = wait(jobs.find(workspace, "0002-ablate"), ended)
    assert other.status == "failed" and 'no form "sh"' in other.error
    assert not (workspace / "runs").exists()


def test_a_job_whose_lock_nobody_holds_is_lost(workspace):
    folder = write_job(workspace, "0001-ablate", "running", pid=os.getpid())
    assert jobs.read(folder).status == "lost"
    held = jobs.hold(folder / "lock")
    assert jobs.read(folder).status == "running"
    held.close()


def test_a_job_that_has_ended_can_be_started_before_its_process_is_gone(workspace):
    """Whoever starts it holds the queue and waits for the lock; the process that ends waits for the queue."""
    folder = write_job(workspace, "0001-ablate", "running", values={"task": "/etc/passwd.jsonl", "out": "x"})
    script = (
        f"import pathlib; from app import jobs; folder = pathlib.Path({str(folder)!r})\n"
        "jobs.advance = lambda workspace: print(jobs.read(folder).status, jobs.held(folder / 'lock'))\n"
        "jobs.run(folder)"
    )
    with jobs.hold(folder / "lock") as lock:
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, stdin=lock, capture_output=True, text=True, cwd=Path(jobs.__file__).parent.parent
        )
    assert done.stdout == "failed False\n", done.stderr


def test_progress_is_the_last_line_of_it_in_the_log(workspace):
    folder = write_job(workspace, "0001-ablate", "running")
    assert jobs.read(folder).progress() is None
    (folder / "log.txt").write_text(
        "ablating: 10 of 3,600, 99 s left\n"
        "training: 1,139 of 2,278  steps  loss 0.3  20,189 tokens/s, 1,100 s left\nNote: 3 of them\n"
    )
    progress = jobs.read(folder).progress()
    assert (progress.title, progress.done, progress.total, progress.share) == ("training", 1139, 2278, 0.5)
    assert progress.left == pytest.approx(1100, abs=5) and "0.3" in progress.told


def test_what_is_not_a_job_is_left_out_and_links_are_not_followed(workspace, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    write_job(outside, "0001-ablate", "queued")
    (workspace / "jobs").mkdir()
    (workspace / "jobs" / "0001-ablate").symlink_to(outside / "jobs" / "0001-ablate")
    broken = write_job(workspace, "0002-ablate", "queued")
    (broken / "job.json").write_text('{"form": 1}')
    linked = write_job(workspace, "0003-ablate", "failed")
    (linked / "log.txt").symlink_to(outside / "jobs" / "0001-ablate" / "job.json")
    assert [job.id for job in jobs.listing(workspace)] == ["0003-ablate"]
    with pytest.raises(MissingFile, match="leads out of the workspace"):
        jobs.find(workspace, "0003-ablate").log()
    with pytest.raises(UnknownName, match="Nearest: 0003-ablate"):
        jobs.find(workspace, "0001-ablate")
    assert not (outside / "jobs" / "0001-ablate" / "lock").exists()


@pytest.mark.parametrize("key", forms.FORMS)
def test_the_command_understands_every_option_of_its_form(key, workspace):
    from interp.cli import app

    for path in ("saes/a", "stores/a", "runs/a"):
        (workspace / path).mkdir(parents=True)
    (workspace / "a.jsonl").write_text("{}")
    form, command = forms.form(key), typer.main.get_command(app)
    values = {name: "a" for name in (form.of or "out", *form.names)}
    for name, option in forms.fields(key).items():
        free = {int: "3", float: "0.5", bool: "true"}.get(option.type, form.first.get(name) or "1")
        files = ("prompts", "labelled", "reference", "text", "corpus", "positive", "negative")
        values.setdefault(name, "a.jsonl" if name in files else free)
    values |= {"prefixes": "0.5,1"} if "prefixes" in values else {}
    values |= {"model": ""} if key == "sae-train" else {}
    values |= {name: "" for name in ("task", "prompts") if "prompt" in values and name in values}
    values |= {"packing": "packed", "split": "train", "script": ""} if key == "record" else {}
    words = forms.command(key, values, workspace)
    for word in form.words:
        command, words = command.commands[word], words[1:]
    context = command.make_context(key, words)
    if "prompt" in values:
        assert context.params["prompt"] in (values["prompt"], (values["prompt"],), [values["prompt"]])
    assert forms.command(key, values | {"seed": "-1"}, workspace).count("--seed=-1") == 1


def test_a_text_that_a_model_reads_is_one_argument_and_never_a_flag_or_a_path(workspace):
    text = "--overwrite, /etc/passwd ... and a comma"
    words = forms.command("generate", {"prompt": text, "n": "2", "out": "a"}, workspace)
    assert words == ["generate", "--n=2", "--out=a", f"--workspace={workspace}", "--", text]
    for values, said in (
        ({"task": "ioi", "prompt": text}, "both prompt and task given"), ({}, "none of them given"),
        ({"task": "ioi", "target": " Mary"}, "a task has its own answers"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            forms.command("lens-show", values | {"out": "a"}, workspace)
    with pytest.raises(InputError, match="name one in runs/"):
        forms.command("direction-test", {"names": "", "out": "a"}, workspace)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n": "many"}, '--n "many": a whole number is wanted'),
        ({"n": "0"}, "greater than or equal to 1"),
        ({"out": "../x"}, "cannot name a result"),
        ({"out": "--overwrite"}, "cannot name a result"),
        ({"task": "../pairs.jsonl"}, "no such file"),
        ({"task": "/etc/hostname"}, "leads out of the workspace"),
        ({"task": "text:/etc/hostname"}, "leads out of the workspace"),
        ({"task": "linked.jsonl"}, "leads out of the workspace"),
        ({"reference": "text:texts"}, "leads out of the workspace"),
        ({"model": "/etc"}, "leads out of the workspace"),
        ({"components": "../../saes/x/417"}, "could lead out of the workspace"),
        ({"task": "ioi\n--x"}, "one line"),
        ({"workspace": "/"}, "is not asked"),
        ({"overwrite": "true"}, "is not asked"),
    ],
)
def test_a_form_lets_nothing_out_of_the_workspace(workspace, tmp_path_factory, values, said):
    outside = tmp_path_factory.mktemp("outside") / "pairs.jsonl"
    outside.write_text("{}")
    (workspace / "linked.jsonl").symlink_to(outside)
    (workspace / "texts").mkdir()
    (workspace / "texts" / "a.txt").symlink_to(outside)
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        forms.command("ablate", QUICK | values, workspace)


def test_a_value_is_never_a_flag_and_a_file_has_its_whole_path(workspace):
    (workspace / "pairs.jsonl").write_text("{}")
    words = forms.command("ablate", {"task": "pairs.jsonl", "metric": "--overwrite", "out": "a"}, workspace)
    assert words == ["ablate", f"--task={workspace / 'pairs.jsonl'}", "--metric=--overwrite", "--out=a",
                     f"--workspace={workspace}"]  # fmt: skip
    (workspace / "stores" / "s").mkdir(parents=True)
    grid = {"store": "s", "site": "2.resid_post", "k": "8,16", "out": "g"}
    assert [path.name for path in forms.targets("sae-train", grid, workspace)] == ["g-k8", "g-k16"]


def test_the_form_shows_the_command_and_queues_it(workspace, monkeypatch):
    monkeypatch.setattr(jobs, "advance", jobs.listing)  # nothing is started
    at = opened("jobs")
    assert "No job yet" in texts(at)
    at = opened("jobs", form="ablate")
    shown = f"--out=ablate-1 --workspace={workspace}"
    assert at.code[0].value == f"interp ablate --model=bundled --task=ioi --components=heads,mlps --method=mean " \
                               f"--n=100 {shown}"  # fmt: skip
    at.text_input(key="job-ablate-n").set_value("-1").run()
    assert "This would not run:" in [warning.value for warning in at.warning]
    assert "greater than or equal to 1" in texts(at) and not at.button
    at.text_input(key="job-ablate-n").set_value("5").run()
    at.button(key="job-start").click().run()
    job = jobs.find(workspace, "0001-ablate")
    assert (job.status, job.values["n"]) == ("queued", "5")
    assert at.query_params["job"] == "0001-ablate" and "Waits for its turn." in texts(at)
    at.button(key="cancel").click().run()
    assert jobs.read(job.folder).status == "interrupted"
    assert "What was finished is kept" in texts(at)
    at.button(key="continue").click().run()
    assert jobs.read(job.folder).status == "queued"


def test_the_page_of_a_job_says_how_it_stands(workspace):
    for number, (status, more, said) in enumerate((
        ("failed", {"exit": 1}, "It failed on the way."),
        ("failed", {"exit": -9, "error": "The command was killed: often"}, "The command was killed: often"),
        ("interrupted", {"exit": 130}, "Stopped before its end."),
        ("running", {"pid": 1}, "Its processes are gone without a word"),
    )):  # fmt: skip
        folder = write_job(workspace, f"000{number}-ablate", status, **more)
        (folder / "log.txt").write_text("<img src=x onerror=alert(1)> :red[x]")
        at = opened("jobs", job=folder.name)
        assert said in texts(at) and at.button(key="continue")
        assert at.code[0].value == "<img src=x onerror=alert(1)> :red[x]"
    run = write_run(workspace / "runs" / "quick", "ablate")
    at = opened("jobs", job="0000-ablate")
    links = {link.proto.label.replace("\\", ""): link.proto for link in at.get("page_link")}
    assert links[f"→ runs/{run.name}"].query_string == "run=quick"
    assert 'no job "0009-ablate" in this workspace' in texts(opened("jobs", job="0009-ablate"))
    for name in ("../secret", "/etc", ".."):
        assert "not the form of a name or number: job" in texts(opened("jobs", job=name))


def test_a_training_is_drawn_while_it_runs(workspace):
    (workspace / "stores" / "s").mkdir(parents=True)
    values = {"store": "s", "site": "2.resid_post", "out": "t"}
    folder = write_job(workspace, "0001-sae-train", "running", form="sae-train", values=values)
    held = jobs.hold(folder / "lock")
    out = write_run(workspace / "saes" / "t", "sae", status="running")
    (out / "train_log.csv").write_text("step,tokens,loss,fvu,aux,l0,dead,lr\n10,10240,0.6,0.6,0,16,0,0.003\n")
    at = opened("jobs", job=folder.name)
    (chart,) = at.get("plotly_chart")
    assert "dead latents" in chart.proto.spec and at.button(key="cancel")
    held.close()
