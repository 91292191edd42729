"""A command's flags, held once: the fields of a pydantic form, which are the keys of its YAML file too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from interp import runs
from interp.cli import options
from interp.cli.config import read_settings
from interp.cli.keeping import settings

Form = TypeVar("Form", bound=BaseModel)


class Look(options.Opening):
    """What every command that looks at a model is told."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    model: str = Field("bundled", description='"bundled", a local directory, or a name on the hub.')
    edit: list[str] = Field([], description=options.EDIT)
    n: int | None = Field(None, description="Number of prompts; 200 of a built-in task if not given.", ge=1)
    seed: int = Field(0, description="Of the prompts drawn and of the bootstrap.", ge=0)
    out: str | None = Field(None, description="Keep it as a run of this name; else it is only printed.")
    workspace: Path = Field(runs.WORKSPACE, description="The folder with runs/, stores/ and saes/.")
    overwrite: bool = Field(False, description="Replace what is finished.")

    def asked(self) -> dict[str, Any]:
        """What run.json's config says: everything but where the result goes and what it was computed on."""
        return settings(self.model_dump(exclude=set(options.OPENING)) | {"opening": self})


def command(form: type[Form], *, argument: str = "") -> Callable[[Callable[[Form], None]], Callable[..., None]]:
    """Makes a command of a function of a form: a flag a field, with its default and its description. The command's
    argument is the field `argument`; without one it is a YAML file of the fields' names, over which the flags go."""

    def of(function: Callable[[Form], None]) -> Callable[..., None]:
        @wraps(function)
        def run(**given: Any) -> None:
            function(read_settings(form, given.pop("config", None), given))

        hints = {} if argument else {"config": options.ConfigFile}
        for name in sorted(form.model_fields, key=lambda name: name in Look.model_fields):  # its own ones first
            hints[name] = _hint(name, form.model_fields[name], name == argument)
        run.__annotations__ = hints | {"return": None}
        run.__signature__ = Signature(
            [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()]
        )
        return run

    return of


def _hint(name: str, field: FieldInfo, is_argument: bool) -> Any:
    if is_argument:
        return Annotated[
            field.annotation | None, typer.Argument(metavar=name.upper(), help=field.description, show_default=False)
        ]
    default = (
        str(field.default)
        if isinstance(field.default, (str, int, float, Path)) and field.default is not False
        else False
    )
    flag = typer.Option(f"--{name.replace('_', '-')}", help=field.description, show_default=default)
    return Annotated[field.annotation | None, flag]
