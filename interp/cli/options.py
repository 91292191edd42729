"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import runs

ModelName = Annotated[str, typer.Option("--model", help='"bundled", a local directory, or a name on the hub.')]
N = Annotated[int | None, typer.Option("--n", help="Number of prompts; 200 of a built-in task if not given.")]
Workspace = Annotated[Path, typer.Option(help="The folder with runs/, stores/ and saes/.")]
Out = Annotated[str | None, typer.Option("--out", help="Name of the result; made of command and time if not given.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is finished.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ..., or auto (spread); the GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="What the model computes in: float32, bfloat16, float16, float64.")]
Quantize = Annotated[str | None, typer.Option(help="8bit or 4bit: the weights' numbers, by bitsandbytes.")]
Seed = Annotated[int, typer.Option(help="Of the prompts drawn and of the bootstrap.")]
Corruption = Annotated[str | None, typer.Option(help="Of ioi: abc (three other names) or swap (the other giver).")]
Keep = Annotated[str | None, typer.Option("--out", help="Keep it as a run of this name; else it is only printed.")]
EDIT = "L3H5=0, L2.mlp*0.5, demo/417=8, joy@3.resid_post+4; may be given again."
Edits = Annotated[list[str] | None, typer.Option("--edit", help=EDIT)]

WORKSPACE = runs.WORKSPACE

# Of a batch, where a flag that is not given leaves the file's key:
ConfigFile = Annotated[Path | None, typer.Argument(help="A YAML file of the flags' names.", show_default=False)]
ModelFlag = Annotated[str | None, typer.Option("--model", help='"bundled", a local directory, or a name on the hub.')]
TaskFlag = Annotated[
    str | None, typer.Option("--task", help="ioi, agreement, ..., a .jsonl of prompt pairs, or text:PATH.")
]
Metric = Annotated[
    str | None, typer.Option(help="logit_diff, loss, kl, prob, accuracy, prob_diff; several with commas.")
]
WorkspaceFlag = Annotated[str | None, typer.Option("--workspace", help="The folder with runs/, stores/ and saes/.")]
OverwriteFlag = Annotated[bool | None, typer.Option("--overwrite", help="Replace what is finished.")]
DtypeFlag = Annotated[str | None, typer.Option("--dtype", help="What the model computes in.")]
Shard = Annotated[str | None, typer.Option(help="i/n: the i-th of n parts; join with interp runs merge.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it takes.")]
Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the file.")]
