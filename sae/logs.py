"""What a training says: train_log.csv, the line beside the progress bar, the table at the end."""

from __future__ import annotations

import csv
import json
import time
import uuid
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp import runs
from interp.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from sae.trainer import Trainer

LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Where else the lines of a log can go, and the package that takes them there."""
SECONDS = 2.0
"""Between two writings of a log, at least: who watches a training sees it move, and no step waits for the disk."""
LOG_COLUMNS = ("step", "tokens", "loss", "fvu", "aux", "l0", "dead", "lr")


class Log:
    """train_log.csv: what a killed run wrote after its last checkpoint is cut off before going on."""

    def __init__(self, out: Path | None, step: int, to: str | None = None) -> None:
        self.elsewhere = _elsewhere(to, out, step) if out and to else None
        self.path = out / "train_log.csv" if out else None
        self.rows: list[list[Any]] = []
        self.flushed = time.monotonic()
        if self.path and self.path.exists() and step:
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]

    def add(self, trainer: Trainer, report: dict[str, Tensor]) -> str:
        """Keep a line, and write all when the last writing is a while ago; returns the line in short."""
        numbers = {name: float(value) for name, value in report.items()}
        numbers |= {"step": trainer.step, "tokens": trainer.step * trainer.config.batch_size}
        numbers |= {"lr": trainer.config.rate(trainer.step - 1), "dead": int(numbers["dead"])}
        self.rows.append([f"{v:.7g}" if isinstance(v, float) else v for v in (numbers[c] for c in LOG_COLUMNS)])
        if self.elsewhere:
            self.elsewhere.log({name: numbers[name] for name in LOG_COLUMNS[2:]}, trainer.step)
        if time.monotonic() - self.flushed > SECONDS:
            self.flush()
        return f"loss {numbers['loss']:.4f}  FVU {numbers['fvu']:.3f}  L0 {numbers['l0']:.1f}  dead {numbers['dead']}"

    def flush(self) -> None:
        self.flushed = time.monotonic()
        if self.path:
            runs.write_text(self.path, "\n".join(",".join(map(str, r)) for r in [LOG_COLUMNS, *self.rows]) + "\n")

    def close(self) -> None:
        self.flush()
        if self.elsewhere:
            self.elsewhere.finish()


def check_logger(to: str | None) -> None:
    """InputError for a logger that is not known, or whose package is not installed."""
    if to is None:
        return
    if to not in LOGGERS:
        raise InputError(f'no logger "{to}". Nearest: {nearest(to, LOGGERS)}; train_log.csv is always written.')
    if find_spec(LOGGERS[to]) is None:
        raise InputError(f'"{to}" is not installed: pip install {LOGGERS[to]}; train_log.csv is written without it.')


class TensorBoard:
    """Lines as scalars in `out`/tensorboard; those after `step`, which a killed run wrote, are taken back."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None, flush_secs=10)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


def _elsewhere(to: str, out: Path, step: int) -> Any:
    """What has `log(numbers, step)` and `finish()`; Weights & Biases' own run does, and leaves out steps it has."""
    if to == "tensorboard":
        return TensorBoard(out, step)
    import wandb

    kept = out / "wandb-id.txt"
    if not step or not kept.exists():
        runs.write_text(kept, uuid.uuid4().hex[:12])
    name = kept.read_text(encoding="utf-8")
    return wandb.init(project="interp", name=out.name, id=name, dir=str(out), resume="allow", reinit="create_new")


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
