"""Long work as jobs: a command of `interp` in processes of its own, which outlive the page and the server.

A job is a folder `<workspace>/jobs/ID/`: job.json (what was asked, how it stands), log.txt (what the command says) and
`lock`. `python -m app.jobs FOLDER` runs it: starts the command, waits, writes down how it ended, and starts what is
next in the queue. Both processes hold the job's `lock` as their standard input for as long as they live. So a job runs
if and only if its lock is held: no number of a process that has ended, or of a machine before it was started again,
can be taken for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app import forms
from app.files import held, hold, inside, locked
from interp import runs
from interp.errors import InputError, UnknownName, nearest

PYTHON = [sys.executable, "-P", "-m"]  # -P: nothing is imported from the folder it runs in
EVERY = "2"
"""Seconds between the lines of progress in a log."""
TAIL = 20_000
AGAIN = ("failed", "interrupted", "lost")
"""The states from which the same command continues."""
_LINE = re.compile(r"^(?P<title>[^\n:]{1,60}): (?P<done>\d+(?:,\d{3})*) of (?P<total>\d+(?:,\d{3})*)(?P<told>.*?)"
                   r"(?:, (?P<left>\d+(?:,\d{3})*) s left)?$", re.M)  # fmt: skip


class Job(BaseModel):
    """What job.json says, with what its lock says of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: Path = Field(exclude=True)
    form: str
    values: dict[str, str]
    status: Literal["queued", "running", "done", "failed", "interrupted", "lost"] = "queued"
    """`lost` is never written: a job that says it runs while nobody holds its lock. The machine stopped, or a kill."""
    queued: float
    """Seconds since 1970, as are the other times."""
    started: float | None = None
    finished: float | None = None
    host: str = Field(default_factory=socket.gethostname)
    pid: int | None = None
    """The leader of the job's process group."""
    exit: int | None = None
    """Of the command: 0 done, 2 wrong input, 1 failed, 130 interrupted; -N if signal N ended it."""
    error: str | None = None

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def workspace(self) -> Path:
        return self.folder.parent.parent

    @property
    def command(self) -> list[str]:
        """The arguments, made of the form's values; InputError where they would not do today."""
        return ["interp", *forms.command(self.form, self.values, self.workspace)]

    @property
    def active(self) -> bool:
        return self.status in ("queued", "running")

    def results(self) -> list[Path]:
        """The folders of what it makes that are there: one, or of a grid of dictionaries several."""
        made = forms.targets(self.form, self.values, self.workspace)
        return [folder for folder in made if (folder / "run.json").exists()]

    def log(self) -> str:
        """The end of what the command has said."""
        path = inside(self.folder / "log.txt", self.workspace)
        if not path.exists():
            return ""
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            return file.read().decode(errors="replace")

    def progress(self) -> Progress | None:
        """The last line of progress in the log."""
        found = list(_LINE.finditer(self.log()))
        if not found:
            return None
        line = found[-1]
        done, total = (int(line[part].replace(",", "")) for part in ("done", "total"))
        left = int(line["left"].replace(",", "")) if line["left"] else None
        age = time.time() - (self.folder / "log.txt").stat().st_mtime
        left = None if left is None else max(0.0, left - age)
        return Progress(line["title"], done, total, line["told"].strip(), left)


@dataclass(frozen=True)
class Progress:
    """How far a command says it is."""

    title: str
    done: int
    total: int
    told: str
    left: float | None
    """Seconds, by the command's own guess; None where it has none."""

    @property
    def share(self) -> float:
        return min(1.0, self.done / max(self.total, 1))


def folder_of(workspace: Path) -> Path:
    return inside(workspace / "jobs", workspace)


def read(folder: Path) -> Job:
    """A job as it stands now. InputError where job.json is not one."""
    inside(folder / "job.json", folder.parent.parent)
    job = _read(folder)
    if job.status == "running" and not held(folder / "lock"):
        job = _read(folder)  # it may have ended between the two looks
        if job.status == "running":
            return job.model_copy(update={"status": "lost"})
    return job


def _read(folder: Path) -> Job:
    content = runs.read_json(folder / "job.json", "not a job")
    try:
        return Job.model_validate(content | {"folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f'{folder / "job.json"}: "{first["loc"][0]}": {first["msg"]}.') from None


def listing(workspace: Path) -> list[Job]:
    """The jobs of a workspace, newest first; what cannot be read is left out."""
    found = []
    for path in folder_of(workspace).glob("*/job.json"):
        try:
            found.append(read(path.parent))
        except InputError:
            continue
    return sorted(found, key=lambda job: job.queued, reverse=True)


def find(workspace: Path, name: str) -> Job:
    """The job of that name; UnknownName with the nearest ones."""
    named = {job.id: job for job in listing(workspace)}
    if name not in named:
        near = nearest(name, named)
        raise UnknownName(f'no job "{name}" in this workspace.' + (f" Nearest: {near}." if near else ""))
    return named[name]


def submit(workspace: Path, form: str, values: dict[str, str]) -> Job:
    """Put a command into the queue, and start it if nothing else runs. InputError before anything is written."""
    values = {name: value for name, value in values.items() if value != ""}
    for path in forms.targets(form, values, workspace):
        if forms.form(form).of is None:
            runs.check_free(path, overwrite=False)
    with _queue(workspace):
        numbers = [int(path.name.partition("-")[0]) for path in folder_of(workspace).glob("[0-9]*-*")]
        folder = folder_of(workspace) / f"{max(numbers, default=0) + 1:04d}-{form}"
        folder.mkdir()
        job = Job(folder=folder, form=form, values=values, queued=time.time())
        _write(job)
    advance(workspace)
    return read(folder)


def again(job: Job) -> None:
    """Queue the same command again: it continues what it left. InputError where it runs or is done."""
    with _queue(job.workspace):
        job = read(job.folder)
        if job.status not in AGAIN:
            raise InputError(f"{job.id} is {job.status}: there is nothing to continue.")
        fresh = {"status": "queued", "queued": time.time(), "exit": None, "error": None, "pid": None, "finished": None}
        _write(job.model_copy(update=fresh))
    advance(job.workspace)


def cancel(job: Job, *, at_once: bool = False) -> None:
    """Interrupt a job as Ctrl-C does: the command keeps what is finished. `at_once` ends it with SIGTERM, for one that
    does not answer. InputError where there is nothing to stop."""
    with _queue(job.workspace):
        job = read(job.folder)
        if job.status == "queued":
            _write(job.model_copy(update={"status": "interrupted", "finished": time.time()}))
            return
    if job.status != "running":
        raise InputError(f"{job.id} is {job.status}: there is nothing to stop.")
    if job.host != socket.gethostname():
        raise InputError(f"{job.id} runs on {job.host}: stop it from an app on that machine.")
    if job.pid is None:
        raise InputError(f"{job.id} is just starting: try again in a moment.")
    try:
        os.killpg(job.pid, signal.SIGTERM if at_once else signal.SIGINT)
    except ProcessLookupError:
        pass  # it ended meanwhile


def at_a_time(workspace: Path) -> int:
    """How many jobs of a workspace run at once: 1, or what jobs/queue.json says."""
    path = inside(folder_of(workspace) / "queue.json", workspace)
    try:
        number = json.loads(path.read_text(encoding="utf-8"))["at_a_time"]
    except (OSError, ValueError, KeyError, TypeError):
        return 1
    return number if isinstance(number, int) and 1 <= number <= 64 else 1


def set_at_a_time(workspace: Path, number: int) -> None:
    with _queue(workspace):
        runs.write_json(folder_of(workspace) / "queue.json", {"at_a_time": number})
    advance(workspace)


def advance(workspace: Path) -> list[Job]:
    """Start what waits, oldest first, while fewer run than may; the jobs, newest first. Any session calls it, and each
    job that ends."""
    if not folder_of(workspace).is_dir():
        return []
    with _queue(workspace):
        jobs = listing(workspace)
        free = at_a_time(workspace) - sum(job.status == "running" for job in jobs)
        waiting = sorted((job for job in jobs if job.status == "queued"), key=lambda job: job.queued)
        started = waiting[: max(0, free)]
        for job in started:
            _start(job)
        return [read(job.folder) if job in started else job for job in jobs]


def dry_run(command: list[str], seconds: float = 120) -> str:
    """What a command says that it would do, with --dry-run; nothing is written."""
    arguments = [*PYTHON, "interp.cli", *command, "--dry-run"]
    try:
        done = subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL, env=_environment(), cwd="/",
                              timeout=seconds)  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"No answer within {seconds:.0f} s: start it to see."
    return (done.stdout + done.stderr).decode(errors="replace").strip()


def _queue(workspace: Path) -> Any:
    return locked(folder_of(workspace) / "queue.lock")


def _write(job: Job) -> None:
    runs.write_json(job.folder / "job.json", job.model_dump())


def _start(job: Job) -> None:
    """Start the process that runs a job, in a session of its own, holding the job's lock."""
    lock, log = (inside(job.folder / name, job.workspace) for name in ("lock", "log.txt"))
    with hold(lock) as lock, open(log, "ab") as log:  # held first: what runs and is not held is lost
        _write(job.model_copy(update={"status": "running", "started": time.time(), "host": socket.gethostname()}))
        process = subprocess.Popen(
            [*PYTHON, "app.jobs", str(job.folder)], stdin=lock, stdout=log, stderr=log, cwd=job.folder,
            env=_environment(), start_new_session=True,
        )  # fmt: skip
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no entry among the processes


def _environment() -> dict[str, str]:
    """Ours, with the packages found from any folder and nothing taken from the job's own."""
    root = Path(__file__).resolve().parent.parent
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(path)]
    search = os.pathsep.join(dict.fromkeys([str(root), *given]))
    return os.environ | {"PYTHONPATH": search, "PYTHONUNBUFFERED": "1", "INTERP_PROGRESS_EVERY": EVERY}


def run(folder: Path) -> None:
    """Run a job to its end. A signal to the group is for the command; this process stays to write down the end."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):  # a handler, for what is ignored would be ignored by the command too
        signal.signal(number, lambda number, _: asked.append(number))
    job = _read(folder).model_copy(update={"pid": os.getpid()})
    _write(job)
    ended: dict[str, Any] = {"status": "failed"}
    try:
        process = subprocess.Popen([*PYTHON, "interp.cli", *job.command[1:]], stdin=sys.stdin)
        if asked:  # before there was a process to get it
            process.send_signal(asked[-1])
        code = process.wait()
        stopped = asked and code not in (0, 2)  # a module that is just imported can turn the signal into its own error
        ended = {"status": "interrupted" if stopped else _state(code), "exit": code}
        if code == -signal.SIGKILL:
            ended["error"] = "The command was killed: often the machine has no memory left."
        for path in job.results():
            if code != 0 and (left := runs.read(path)).get("status") == "running":
                runs.write_run(path, left | {"status": "interrupted"})  # it had no time to say so itself
    except InputError as error:
        ended["error"] = str(error)
    _write(job.model_copy(update=ended | {"finished": time.time()}))
    fcntl.flock(sys.stdin, fcntl.LOCK_UN)  # asked for again at once, it is what starts next, by us or while we wait
    advance(job.workspace)


def _state(code: int) -> str:
    if code == 0:
        return "done"
    return "interrupted" if code in (130, -signal.SIGINT, -signal.SIGTERM) else "failed"


if __name__ == "__main__":
    run(Path(sys.argv[1]))
