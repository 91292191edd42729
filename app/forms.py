"""Commands that the app can start: what a form asks, and the list of arguments that its answers make.

The fields are the command's own options, with its own help. A value goes only where `--flag=VALUE` takes it, so that
none becomes a flag; a file is one of the workspace, or a name that comes with the package. What a job's file may ask
for is what a form may: the arguments are made, and checked, here each time.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

from app.files import inside
from interp.errors import InputError, MissingFile, UnknownName, nearest

NEVER = frozenset(
    {"config", "find", "workspace", "out", "overwrite", "shard", "dry_run", "schema", "log_to", "offload"}
)
"""Options that a form does not offer: the workspace is the app's, the name has a box of its own, nothing is replaced,
no log goes to another machine and no weights to another folder."""
FILES = frozenset(
    {"model", "task", "text", "reference", "labelled", "corpus", "positive", "negative", "prompts", "labels", "adapter"}
)
"""Options whose value may be a file or a folder of the workspace."""
TEXTS = frozenset({"prompt"})
"""Arguments that a model reads: text of any kind, which names no file."""
_LONGEST = 1000
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Form:
    """A command, and how its form begins."""

    words: tuple[str, ...]
    """What stands after `interp`."""
    function: str
    """The command's function, "module:name"."""
    folder: str
    """Where its result is: runs, stores or saes."""
    first: dict[str, str]
    """The options shown at once, with what they begin with; the others wait under "More settings"."""
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Values offered; another can be typed."""
    names: dict[str, str] = field(default_factory=dict)
    """Options whose value is a result in a folder of the workspace."""
    never: frozenset[str] = frozenset()
    """Options that this form does not offer either."""
    of: str | None = None
    """The argument that names the result worked on; None where the result is a new one, named by --out."""
    check: Callable[[dict[str, Any]], list[str] | None] | None = None
    """InputError for values, of their types, that the command would refuse. Of a grid: how the names end."""

    @property
    def key(self) -> str:
        return "-".join(self.words)

    @property
    def asks(self) -> str:
        """The first line of the command's help."""
        return (inspect.getdoc(_function(self)) or "").split("\n\n")[0].replace("\n", " ")


@dataclass(frozen=True)
class Field:
    """An option of a command."""

    name: str
    type: type
    flag: str
    off: str | None
    """Of a bool: the flag that says no, where there is one."""
    many: bool
    """May be given again; commas part the values in a form."""
    help: str
    placed: bool = False
    """An argument without a flag: it stands at the end, after `--`, where nothing is taken for a flag."""


def _ablate(flags: dict[str, Any]) -> None:
    from interp.cli.config import read_config

    read_config(None, flags)


def _patch(flags: dict[str, Any]) -> None:
    from interp.cli.config import PatchConfig, read_config

    read_config(None, {key: value for key, value in flags.items() if key != "force"}, PatchConfig)


def _find(flags: dict[str, Any]) -> None:
    from interp.cli.circuit import Find
    from interp.cli.config import read_settings

    read_settings(Find, None, flags)


def _train(flags: dict[str, Any]) -> list[str]:
    from interp.cli.train import expand, read_config

    if ("store" in flags) == ("model" in flags):
        raise InputError("say where the activations come from: a store, or a model with text.")
    return list(expand(read_config(None, flags)))


def _record(flags: dict[str, Any]) -> None:
    from interp.data.documents import TextSettings

    if not flags.get("text"):
        raise InputError('no text given: "bundled", or a file of the workspace.')
    own = {key: value for key, value in flags.items() if key in TextSettings.__dataclass_fields__}
    TextSettings(flags["text"], **own)


def _one_source(flags: dict[str, Any], *names: str) -> None:
    """InputError unless one of the options is given."""
    given = [name for name in names if flags.get(name)]
    if len(given) != 1:
        said = f"both {' and '.join(given)} given: empty one of the boxes." if given else "none of them given."
        raise InputError(f"one of {' or '.join(names)}: {said}")


def _looked_at(flags: dict[str, Any]) -> None:
    _one_source(flags, "prompt", "task")
    if flags.get("task") and (answers := [name for name in ("target", "answer", "wrong") if flags.get(name)]):
        raise InputError(f"{answers[0]} is of a text: a task has its own answers. Empty one of the boxes.")


def _written(flags: dict[str, Any]) -> None:
    _one_source(flags, "prompt", "prompts")


_TASKS = ("ioi", "greater_than", "agreement")
_ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "gated", "relu", "matryoshka_batchtopk")
FORMS = {
    form.key: form
    for form in (
        Form(("record",), "interp.cli.record:record", "stores",
             {"text": "bundled", "model": "bundled", "sites": "*.resid_post", "n_tokens": ""},
             {"model": ("bundled",), "text": ("bundled",)}, check=_record),
        Form(("sae", "train"), "interp.cli.train:train", "saes",
             {"store": "", "site": "2.resid_post", "architecture": "topk", "d_sae": "1024", "k": "32", "seed": ""},
             {"architecture": _ARCHITECTURES}, {"store": "stores"}, check=_train),
        Form(("sae", "features"), "interp.cli.sae:features", "saes", {"store": ""},
             names={"name": "saes", "store": "stores"}, of="name"),
        Form(("sae", "eval"), "interp.cli.sae:evaluate", "saes", {"text": "bundled", "n_tokens": "20000"},
             {"text": ("bundled",)}, {"name": "saes"}, of="name"),
        Form(("ablate",), "interp.cli.ablate:ablate", "runs",
             {"model": "bundled", "task": "ioi", "components": "heads,mlps", "method": "mean", "metric": "", "n": "100",
              "seed": ""},
             {"model": ("bundled",), "task": _TASKS, "components": ("heads,mlps", "heads", "mlps", "neurons"),
              "method": ("mean", "zero", "resample", "shuffle", "mean-all"),
              "metric": ("logit_diff", "loss", "kl", "prob", "accuracy", "prob_diff")}, check=_ablate),
        Form(("patch",), "interp.cli.patch:patch", "runs",
             {"model": "bundled", "task": "ioi", "site": "resid_pre", "by": "layer,position", "method": "denoise",
              "n": "100", "seed": ""},
             {"model": ("bundled",), "task": _TASKS, "method": ("denoise", "noise", "trace"),
              "site": ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"),
              "by": ("layer,position", "layer,head", "layer,head,position", "layer")}, check=_patch),
        Form(("circuit", "find"), "interp.cli.circuit:find", "runs",
             {"model": "bundled", "task": "ioi", "method": "eap-ig", "n_edges": "", "n": "100", "seed": ""},
             {"model": ("bundled",), "task": _TASKS,
              "method": ("eap-ig", "eap", "eap-ig-activations", "exact", "acdc", "greedy")}, check=_find),
        Form(("heads",), "interp.cli.heads:heads", "runs",
             {"model": "bundled", "n": "50", "circuits": "true", "ablate": "true", "seed": ""},
             {"model": ("bundled",)}, never=frozenset({"text", "edit"})),
        Form(("direction", "find"), "interp.cli.direction:find", "runs",
             {"model": "bundled", "task": "simple_agreement", "answer": " are", "site": "1.resid_post",
              "method": "mean-difference", "n": "", "seed": ""},
             {"model": ("bundled",), "task": ("simple_agreement", "agreement", "gendered_pronoun"),
              "method": ("mean-difference", "pca", "probe")}, {"store": "stores"}, never=frozenset({"edit"})),
        Form(("direction", "test"), "interp.cli.pushing:test", "runs",
             {"names": "", "model": "bundled", "task": "agreement", "strengths": "", "n": "50", "new_tokens": "",
              "seed": ""},
             {"model": ("bundled",), "task": ("agreement", "simple_agreement", "gendered_pronoun")},
             {"names": "runs"}),
        Form(("lens", "show"), "interp.cli.lens:show", "runs",
             {"prompt": "When Mary and John went to the shop, John gave a bag to", "task": "", "model": "bundled",
              "target": "", "n": "", "colour": "top_prob", "tuned": ""},
             {"model": ("bundled",), "task": _TASKS, "colour": ("top_prob", "prob", "rank", "kl", "entropy")},
             check=_looked_at),
        Form(("lens", "attribute"), "interp.cli.lens:attribute", "runs",
             {"prompt": "", "task": "ioi", "model": "bundled", "by": "component", "answer": "", "wrong": "", "n": "50"},
             {"model": ("bundled",), "task": _TASKS, "by": ("component", "layer", "neuron")}, check=_looked_at),
        Form(("lens", "train"), "interp.cli.lens:train", "runs",
             {"model": "bundled", "corpus": "bundled", "steps": "250", "n_tokens": "", "seed": ""},
             {"model": ("bundled",), "corpus": ("bundled",)}, never=frozenset({"store"})),
        Form(("generate",), "interp.cli.generate:generate", "runs",
             {"prompt": "When Mary and John went to the shop", "edit": "", "model": "bundled", "where": "all",
              "n": "4", "max_new_tokens": "40", "temperature": "0.8", "seed": ""},
             {"model": ("bundled",), "where": ("all", "prompt", "new"), "patterns": ("live", "frozen")},
             check=_written),
    )
}  # fmt: skip


def form(key: str) -> Form:
    if key not in FORMS:
        raise UnknownName(f'no form "{key}". Nearest: {nearest(key, FORMS)}.')
    return FORMS[key]


@functools.cache
def fields(key: str) -> dict[str, Field]:
    """The options of a form's command by name, those shown at once first."""
    asked = form(key)
    found = {}
    hints = typing.get_type_hints(_function(asked), include_extras=True)
    for name in inspect.signature(_function(asked)).parameters:
        hint = hints[name]
        (option,) = hint.__metadata__
        if name in NEVER | asked.never or name == asked.of:
            continue
        kind = hint.__origin__
        if isinstance(kind, types.UnionType):
            (kind,) = (part for part in kind.__args__ if part is not types.NoneType)
        many = typing.get_origin(kind) is list
        placed = isinstance(option, ArgumentInfo)
        own = [text for text in (option.default, *(option.param_decls or ())) if str(text).startswith("-")]
        dashed = name.replace("_", "-")
        plain = f"--{dashed}/--no-{dashed}" if kind is bool else f"--{dashed}"
        flag, _, off = (own[0] if own else plain).partition("/")
        of_one = kind.__args__[0] if many else kind
        found[name] = Field(name, of_one, flag, off or None, many and not placed, option.help or "", placed)
    return {name: found[name] for name in [*asked.first, *found]}


def _function(asked: Form) -> Callable[..., Any]:
    module, _, name = asked.function.partition(":")
    return getattr(importlib.import_module(module), name)


def has_dry_run(key: str) -> bool:
    return "dry_run" in inspect.signature(_function(form(key))).parameters


def command(key: str, values: dict[str, str], workspace: Path) -> list[str]:
    """The arguments after `interp`. InputError for a value that cannot be right, or that leads out of the workspace."""
    return _made(key, values, workspace)[0]


def targets(key: str, values: dict[str, str], workspace: Path) -> list[Path]:
    """The folders that the command makes: one, or those of a grid."""
    return _made(key, values, workspace)[1]


def _made(key: str, values: dict[str, str], workspace: Path) -> tuple[list[str], list[Path]]:
    asked, known = form(key), fields(key)
    unknown = set(values) - set(known) - {"out", asked.of}
    if unknown:
        raise InputError(f'"{min(unknown)}" is not asked by {" ".join(asked.words)}.')
    flags: dict[str, Any] = {}
    arguments, placed = list(asked.words), []
    for name, option in known.items():
        if values.get(name, "") != "":
            pieces = [piece.strip() for piece in values[name].split(",")] if option.many else [values[name]]
            pieces = [_value(option, piece, workspace) for piece in pieces]  # " are" is not "are"
            flags[name] = [_typed(option, piece) for piece in pieces] if option.many else _typed(option, pieces[0])
            if option.placed:
                placed += pieces
            elif option.type is not bool:
                arguments += [f"{option.flag}={piece}" for piece in pieces]
            elif flags[name] or option.off:
                arguments.append(option.flag if flags[name] else option.off)
    for name, folder in asked.names.items():
        if name in flags or (name in known and known[name].placed):
            _there(values.get(name, ""), workspace / folder, workspace)
    ends = asked.check(flags) if asked.check else None
    name = values.get(asked.of or "out", "")
    if asked.of:
        paths = [_there(name, workspace / asked.folder, workspace)]
        arguments.append(name)
    else:
        paths = [_named(f"{name}-{end}" if end else name, workspace / asked.folder, workspace) for end in ends or [""]]
        arguments.append(f"--out={name}")
    return [*arguments, f"--workspace={workspace}", *(["--", *placed] if placed else [])], paths


def _named(name: str, folder: Path, workspace: Path) -> Path:
    """The place of a result. InputError for what cannot be a name."""
    if not _NAME.fullmatch(name):
        raise InputError(f'"{name}" cannot name a result: letters, digits, ".", "_" and "-", e.g. ioi-heads.')
    return inside(folder / name, workspace)


def _there(name: str, folder: Path, workspace: Path) -> Path:
    """A result that is there. MissingFile with the nearest names."""
    if not name:
        raise InputError(f"name one in {folder.name}/.")
    path = _named(name, folder, workspace)
    if not path.is_dir():
        there = [other.name for other in folder.glob("*")]
        raise MissingFile(f'no "{name}" in {folder}.' + (f" Nearest: {nearest(name, there)}." if there else ""))
    return path


def free_name(key: str, workspace: Path) -> str:
    """A name that no result of the form's folder has."""
    there = {path.name for path in (workspace / form(key).folder).glob("*")}
    return next(name for n in range(1, len(there) + 2) if (name := f"{key}-{n}") not in there)


def _typed(option: Field, value: str) -> Any:
    if option.type is bool:
        if value not in ("true", "false"):
            raise InputError(f'{option.flag} "{value}": true or false.')
        return value == "true"
    try:
        return option.type(value)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}[option.type]
        raise InputError(f'{option.flag} "{value}": {kind} is wanted.') from None


def _value(option: Field, value: str, workspace: Path) -> str:
    """A value as the command gets it: a file of the workspace with its whole path. InputError for what leads out."""
    if len(value) > _LONGEST or not value.isprintable():
        raise InputError(f"{option.flag}: one line of at most {_LONGEST} characters.")
    if option.name in TEXTS:
        return value
    if option.name in FILES:
        kind, colon, rest = value.partition(":")
        if option.name in ("task", "reference") and kind == "text" and colon:
            return f"text:{rest}" if rest == "bundled" else f"text:{_file(option, rest, workspace)}"
        always = ("text", "labelled", "corpus", "positive", "negative", "prompts")
        wanted = option.name in always and value != "bundled" or value.endswith((".json", ".jsonl"))
        if wanted or (workspace / value).exists():
            return _file(option, value, workspace)
    if re.search(r"(^|[,:+@=\s])[/~]|\.\.", value):
        raise InputError(f'{option.flag} "{value}" could lead out of the workspace: name a file in {workspace}.')
    return value


def _file(option: Field, value: str, workspace: Path) -> str:
    """The whole path of a file, a folder or a pattern of the workspace."""
    path = workspace / value
    try:
        found = [path] if path.exists() else sorted(workspace.glob(value))
    except (ValueError, NotImplementedError):  # what glob says of "**x" and of a path from the root
        found = []
    if not found:
        raise MissingFile(f'{option.flag} "{value}": no such file in {workspace}. Copy it there first.')
    for each in found:
        for file in (each, *each.rglob("*")):
            inside(file, workspace)
    return str(path)
