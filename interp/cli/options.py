"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import runs

ModelName = Annotated[str, typer.Option("--model", help='"bundled", a local directory, or a name on the hub.')]
TaskName = Annotated[str, typer.Option("--task", help="ioi, induction, agreement, or a .jsonl of prompt pairs.")]
N = Annotated[int | None, typer.Option("--n", help="Number of prompts; 200 of a built-in task if not given.")]
Workspace = Annotated[Path, typer.Option(help="The folder with runs/, stores/ and saes/.")]
Out = Annotated[str | None, typer.Option("--out", help="Name of the result; made of command and time if not given.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is finished.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="What the model computes in: float32, bfloat16, float16, float64.")]
Seed = Annotated[int, typer.Option(help="Of the prompts drawn and of the bootstrap.")]

WORKSPACE = runs.WORKSPACE
