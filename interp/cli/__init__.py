"""The `interp` command. One short file a command: parse, call the library, print. Imports no torch until one runs."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from interp.cli import (
    ablate,
    circuit,
    compare,
    demo,
    direction,
    experts,
    features,
    generate,
    heads,
    lens,
    model,
    patch,
    record,
    runs,
    sae,
    store,
    task,
)
from interp.cli import app as app_command
from interp.errors import Failure, InputError

app = typer.Typer(
    help="What does a language model compute, and where? Start with: interp demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("record")(record.record)
app.add_typer(store.app, name="store")
app.add_typer(sae.app, name="sae")
app.command("task")(task.task)
app.command("ablate")(ablate.ablate)
app.command("patch")(patch.patch)
app.command("compare")(compare.compare)
app.command("generate")(generate.generate)
app.command("heads")(heads.heads)
app.command("experts")(experts.experts)
circuit.app.command("features")(features.features)
app.add_typer(circuit.app, name="circuit")
app.add_typer(lens.app, name="lens")
app.add_typer(direction.app, name="direction")
app.add_typer(runs.app, name="runs")
app.add_typer(model.app, name="model")
app.command("app")(app_command.app)


def _say_version(asked: bool) -> bool:
    if asked:
        from interp.runs import versions

        print(f"interp {versions()['interp']}")
        raise typer.Exit
    return asked


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_say_version, is_eager=True)
]


@app.callback()
def _top(version: Version = False) -> None:
    pass


def _say_briefly(group: typer.Typer) -> None:
    """A command's line in its group's help is the first sentence of its own, whole; else it is cut after 45 letters."""
    for command in group.registered_commands:
        text = " ".join(inspect.getdoc(command.callback).split())
        command.short_help = re.split(r"(?<=[.?])\s(?=[A-Z])", text)[0]
    for below in group.registered_groups:
        _say_briefly(below.typer_instance)


_say_briefly(app)


UsageError: type[Exception] = typer.BadParameter.__base__  # click's, or typer's own copy of it since 0.29


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 the input is wrong (nothing was written), 1 it failed on the
    way, 130 interrupted."""
    try:
        status = app(args=None if argv is None else list(argv), standalone_mode=False, prog_name="interp") or 0
        if status == 130:  # how typer tells of an interrupt since 0.29
            raise KeyboardInterrupt
        return status
    except InputError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except UsageError as error:
        error.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("Interrupted: what was finished is kept; the same command continues.", file=sys.stderr)
        return 130
    except (Failure, OSError) as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the command's last line of defence: exit 1, with what is known
        traceback.print_exc()
        print(f"Failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def script() -> None:
    sys.exit(main())
