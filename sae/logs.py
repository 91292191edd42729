"""What a training says: train_log.csv, the progress bar on a terminal, plain lines in a log, the table at the end."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import rich.progress
from rich.console import Console
from torch import Tensor

from interp import runs
from sae.trainer import Trainer

LOG_COLUMNS = ("step", "tokens", "loss", "fvu", "aux", "l0", "dead", "lr")
_LINE_EVERY = 10.0  # seconds between the lines of a log


class Log:
    """train_log.csv: what a killed run wrote after its last checkpoint is cut off before going on."""

    def __init__(self, out: Path | None, step: int) -> None:
        self.path = out / "train_log.csv" if out else None
        self.rows: list[list[Any]] = []
        if self.path and self.path.exists() and step:
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]

    def add(self, trainer: Trainer, report: dict[str, Tensor]) -> str:
        """Keep a line; returns it in short."""
        numbers = {name: float(value) for name, value in report.items()}
        numbers |= {"step": trainer.step, "tokens": trainer.step * trainer.config.batch_size}
        numbers |= {"lr": trainer.config.rate(trainer.step - 1), "dead": int(numbers["dead"])}
        self.rows.append([f"{v:.7g}" if isinstance(v, float) else v for v in (numbers[c] for c in LOG_COLUMNS)])
        return f"loss {numbers['loss']:.4f}  FVU {numbers['fvu']:.3f}  L0 {numbers['l0']:.1f}  dead {numbers['dead']}"

    def flush(self) -> None:
        if self.path:
            runs.write_text(self.path, "\n".join(",".join(map(str, r)) for r in [LOG_COLUMNS, *self.rows]) + "\n")


class Progress:
    """A bar with loss, FVU, L0, dead latents and tokens a second; where stderr is no terminal, a line now and then."""

    def __init__(self, shown: bool, n_steps: int, done: int, batch_size: int, n_dictionaries: int) -> None:
        columns = (
            rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        console = Console(stderr=True)
        self.lines = shown and not console.is_terminal
        self.bar = rich.progress.Progress(
            *columns, console=console, disable=not shown or self.lines, transient=True
        )  # fmt: skip
        what = "training" if n_dictionaries == 1 else f"training {n_dictionaries}"
        self.task = self.bar.add_task(what, total=n_steps, completed=done, note="")
        self.first = self.step = done
        self.n_steps, self.batch_size = n_steps, batch_size
        self.started = self.last = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def note(self, text: str) -> None:
        """What the bar shows from now on: of a grid, the dictionary noted last."""
        now = time.monotonic()
        rate = (self.step + 1 - self.first) * self.batch_size / max(now - self.started, 1e-9)
        note = f"{text}  {rate:,.0f} tokens/s"
        self.bar.update(self.task, note=note)
        if self.lines and now - self.last > _LINE_EVERY:
            self.last = now
            print(f"step {self.step + 1}/{self.n_steps}  {note}", file=sys.stderr)

    def advance(self) -> None:
        self.step += 1
        self.bar.advance(self.task)


def frontier(folders: Iterable[str | Path]) -> pd.DataFrame:
    """A row a finished dictionary: name, site, architecture, d_sae, k, seed, l0, fvu, dead; by site, architecture, L0.

    L0 and FVU are of held-out rows where there are some, else of rows trained on. `interp.plots.frontier` draws it.
    """
    rows = []
    for folder in map(Path, folders):
        config = runs.read(folder)["config"]
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        seen = "held_out" if "held_out_fvu" in metrics else "train"
        row = {"name": folder.name} | {key: config[key] for key in ("site", "architecture", "d_sae", "k", "seed")}
        rows.append(row | {"l0": metrics[f"{seen}_l0"], "fvu": metrics[f"{seen}_fvu"], "dead": metrics["train_dead"]})
    return pd.DataFrame(rows).sort_values(["site", "architecture", "d_sae", "l0"], ignore_index=True)
