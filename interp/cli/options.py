"""Options that several commands share; `Opening` are those of every command that loads a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from interp import runs
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.decoder.model import Model

ModelName = Annotated[str, typer.Option("--model", help='"bundled", a local directory, or a name on the hub.')]
N = Annotated[int | None, typer.Option("--n", help="Number of prompts; 200 of a built-in task if not given.")]
Workspace = Annotated[Path, typer.Option(help="The folder with runs/, stores/ and saes/.")]
Out = Annotated[str | None, typer.Option("--out", help="Name of the result; made of command and time if not given.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is finished.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="What the model computes in: float32, bfloat16, float16, float64.")]
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
Shard = Annotated[str | None, typer.Option(help="i/n: the i-th of n parts; join with interp runs merge.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it takes.")]
Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the file.")]


class Opening(BaseModel):
    """How a command's model is opened: flags of the command, keys of its file."""

    model_config = ConfigDict(extra="forbid")
    adapter: str | None = Field(None, description="A LoRA directory (peft), merged into the model.")
    quantize: str | None = Field(None, description="8bit or 4bit: the weights' numbers, by bitsandbytes.")
    device: str | None = Field(
        None, description="cpu, cuda, ..., or auto (spread over all there is); the GPU where there is one."
    )
    dtype: str = Field("float32", description="What it computes in: float32 (default), bfloat16, float16, float64.")
    max_memory: str | None = Field(None, description="Of device auto: 0=20GB,cpu=60GB; what does not fit, on disk.")
    offload: str | None = Field(None, description="Of device auto: the folder for what is on disk.")

    def load(self, name: str, **more: Any) -> Model:
        """The model; InputError where it cannot be opened so."""
        import interp

        given = {"adapter": self.adapter} | more
        return interp.load_model(
            name, device=self.device, dtype=self.dtype, quantize=self.quantize, max_memory=self._budget(),
            offload=self.offload, **given,
        )  # fmt: skip

    def kept(self) -> dict[str, Any]:
        """What run.json's config says of it: what a result hangs on, not where it was computed."""
        told = {"adapter": self.adapter, "quantize": self.quantize}
        return {"dtype": self.dtype} | {key: value for key, value in told.items() if value is not None}

    def given(self) -> dict[str, Any]:
        """The flags that were given."""
        return {key: getattr(self, key) for key in Opening.model_fields if key in self.model_fields_set}

    def check_none(self, why: str) -> None:
        """InputError for a flag that would change nothing."""
        for key in ("adapter", "quantize", "max_memory", "offload"):
            if getattr(self, key) is not None:
                raise InputError(f"--{key.replace('_', '-')} given: {why}.")

    def _budget(self) -> dict[int | str, int | str] | None:
        if self.max_memory is None:
            return None
        pairs = [part.partition("=") for part in self.max_memory.split(",")]
        if not all(equals for _, equals, _ in pairs):
            raise InputError(f'max_memory "{self.max_memory}" given: 0=20GB,cpu=60GB is right.')
        return {int(at) if at.strip().isdigit() else at.strip(): size.strip() for at, _, size in pairs}


OPENING = tuple(Opening.model_fields)
PLACES = ("device", "max_memory", "offload")
"""Where a model is computed, on which no result hangs."""


def opens(command: Callable[..., None]) -> Callable[..., None]:
    """A command written with the one parameter `opening: Opening`, its last, as one with a flag for each of them."""
    own = inspect.signature(command, eval_str=True)
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None,
            annotation=Annotated[str | None, typer.Option(f"--{name.replace('_', '-')}", help=field.description)],
        )
        for name, field in Opening.model_fields.items()
    ]  # fmt: skip
    every = [parameter for name, parameter in own.parameters.items() if name != "opening"] + shared

    @wraps(command)
    def opened(**given: Any) -> None:
        flags = {name: given.pop(name, None) for name in OPENING}
        command(**given, opening=Opening(**{name: flag for name, flag in flags.items() if flag is not None}))

    opened.__signature__ = own.replace(parameters=every)
    opened.__annotations__ = {parameter.name: parameter.annotation for parameter in every} | {"return": None}
    return opened
