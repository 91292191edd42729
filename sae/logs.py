"""What a training says: train_log.csv, the line beside the progress bar, the table at the end."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from interp import runs
from sae.trainer import Trainer

LOG_COLUMNS = ("step", "tokens", "loss", "fvu", "aux", "l0", "dead", "lr")


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
