"""A table and what it is of, in two files of one name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from interp import runs
from interp.errors import MissingFile


@dataclass(frozen=True)
class Kept:
    """`rows` in FILE.parquet, `about` (model, versions, ...) in FILE.json."""

    rows: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)
    FILE: ClassVar[str]
    MADE_BY: ClassVar[str]
    """The command that makes one."""

    def save(self, path: str | Path) -> None:
        """Both files into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(path / f"{self.FILE}.parquet", index=False)
        runs.write_json(path / f"{self.FILE}.json", self.about)

    @classmethod
    def load(cls, path: str | Path) -> Kept:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        if not (path / f"{cls.FILE}.parquet").exists():
            raise MissingFile(f"no {cls.FILE}.parquet in {path}: make one with {cls.MADE_BY}.")
        rows = pd.read_parquet(path / f"{cls.FILE}.parquet")
        for column in rows:
            if len(rows) and isinstance(rows[column].iloc[0], np.ndarray):  # how parquet gives lists back
                rows[column] = [list(values) for values in rows[column]]
        return cls(rows, runs.read_json(path / f"{cls.FILE}.json"))
