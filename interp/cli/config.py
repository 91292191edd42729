"""Settings of a batch from a YAML file and from flags, checked before anything is loaded. A bad key is named with its
line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.cli import options
from interp.errors import InputError, MissingFile, UnknownKey, nearest

Names = str | list[str]
Settings = TypeVar("Settings", bound=BaseModel)
Told = TypeVar("Told", bound=Callable[..., None])


def with_defaults(form: type[BaseModel]) -> Callable[[Told], Told]:
    """A command whose help says what `form` takes for a flag that neither the command line nor the file gives."""

    def told(command: Told) -> Told:
        hints = get_type_hints(command, include_extras=True)
        for name in (hints.keys() & form.model_fields.keys()) - set(options.OPENING):
            default = form.model_fields[name].default
            if default is not None and not isinstance(default, bool | list | dict):
                kind, option = get_args(hints[name])
                option = copy(option)
                option.help = f"{option.help}  [default: {default}]"
                hints[name] = Annotated[kind, option]
        signature = inspect.signature(command)
        each = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
        command.__signature__ = signature.replace(parameters=each)
        command.__annotations__ = hints
        return command

    return told


class Asked(BaseModel):
    """What every sweep says: of which prompts, by which metric."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(None, description="Ends the name of the run: OUT-NAME. Needed with several sweeps.")
    task: str = Field("ioi", description='ioi, agreement, ..., prompt pairs (.jsonl), or "text:PATH" for running text.')
    corruption: str | None = Field(None, description='Of ioi: "abc" (three other names) or "swap" (the other giver).')
    metric: Names | None = Field(None, description="logit_diff, loss, kl, prob, accuracy, prob_diff.")
    n: int | None = Field(None, description="Number of prompts; 200 of a built-in task, 64 windows of text.", ge=1)
    seed: int = Field(0, description="Of the prompts drawn, of what is random in the method, and of the bootstrap.")


class Sweep(Asked):
    """What one sweep measures. At the top of the file a key holds for every sweep that does not say otherwise."""

    components: str | list[str | list[str]] = Field(
        "heads",
        description="heads, mlps, attn, neurons, experts, resid_pre; L3H5, L3E2; together [L3H5, L4H1]; heads-L3H5.",
    )
    method: Names = Field(
        "mean",
        description="zero, mean, mean-all, resample, shuffle; each with -frozen, -frozen-ln; forbid, force.",
    )
    position: int | str | list[int | str] = Field("all", description='"all", indices, labels of the task, or "each".')
    reference: str | None = Field(None, description="Prompts of the mean: a task, a .jsonl, or text:PATH.")
    classes: Names | None = Field(None, description='"built-in", names of classes, or a key of the labels.')
    directions: dict[str, str] = Field({}, description="name: FILE.safetensors, for components name@3.resid_post.")


class PatchSweep(Asked):
    """What one sweep patches. At the top of the file a key holds for every sweep that does not say otherwise."""

    site: str = Field("resid_pre", description="resid_pre, z, q, attn_out, mlp_out, ..., 2-5.z, or a dictionary.")
    by: Names = Field("layer,position", description="layer; with head, neuron, expert or latent; with position.")
    components: Names | None = Field(None, description="Only these: L3H5, L4.heads, L3N120, demo/417.")
    method: str = Field("denoise", description="denoise, noise, or trace (noise on the subject, one state restored).")
    subject: str | None = Field(None, description="Of trace: the label that gets noise; else what is corrupted.")
    noise: float = Field(3.0, description="Of trace: standard deviations of the subject's embeddings.", gt=0)
    window: int | None = Field(None, description="Of trace: layers restored together.", ge=1)
    draws: int = Field(10, description="Of trace: draws of noise, over which values are averaged.", ge=1)


class Batch(options.Opening):
    """What a file says beside its sweeps."""

    sweep: ClassVar[type[Asked]]
    model: str = Field("bundled", description='"bundled", a local directory, or a name on the hub.')
    out: str | None = Field(None, description="Name of the run, or what the runs' names begin with.")
    workspace: str = str(options.WORKSPACE)
    overwrite: bool = False
    sweeps: list[dict[str, Any]] = Field(
        [], description="Each with keys of a sweep; those above hold where it has none."
    )

    def each(self) -> list[Asked]:
        """The sweeps of the file, one where it lists none, each with the keys above filled in."""
        shared = {key: getattr(self, key) for key in self.sweep.model_fields if key in self.model_fields_set}
        return [self.sweep(**(shared | own)) for own in self.sweeps or [{}]]


class Config(Batch, Sweep):
    """The file of `interp ablate`."""

    sweep = Sweep


class PatchConfig(Batch, PatchSweep):
    """The file of `interp patch`."""

    sweep = PatchSweep


def file_schema(form: type[Batch]) -> dict[str, Any]:
    """The JSON schema of the file; a sweep's keys are the file's own."""
    schema = form.model_json_schema()
    schema["properties"]["sweeps"]["items"] = form.sweep.model_json_schema()
    return schema


def read_config(path: Path | None, flags: dict[str, Any], form: type[Batch] = Config) -> tuple[Batch, list[Asked]]:
    """The file's keys with the flags given over them, in every sweep. One line naming file, line and key that is
    wrong."""
    node, content = (None, {}) if path is None else _read(path)
    given = {key: value for key, value in flags.items() if value is not None}
    loc: tuple[Any, ...] = ()
    try:
        for number, own in enumerate(content.get("sweeps") or []) if isinstance(content.get("sweeps"), list) else ():
            loc = ("sweeps", number)
            form.sweep.model_validate(own)
        loc = ()
        config = form.model_validate(content | given)
    except ValidationError as error:
        raise _named(error, loc, path, node, form.sweep if loc else form) from None
    over = {key: value for key, value in given.items() if key in form.sweep.model_fields}
    sweeps = [form.sweep(**(sweep.model_dump(exclude_unset=True) | over)) for sweep in config.each()]
    if len(sweeps) > 1:
        names = [sweep.name for sweep in sweeps]
        if None in names or len(set(names)) < len(names):
            raise InputError(f'{path}: with several sweeps each has a "name" of its own; given: {names}.')
    return config, sweeps


def read_settings(form: type[Settings], path: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings of a command that does one thing: the file's keys with the flags given over them. One line naming
    file, line and key that is wrong."""
    node, content = (None, {}) if path is None else _read(path)
    try:
        return form.model_validate(content | {key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        raise _named(error, (), path, node, form) from None


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    import yaml

    if not path.exists():
        beside = [str(p) for p in path.parent.glob("*.y*ml")]
        raise MissingFile(f'no file "{path}".' + (f" Nearest: {nearest(str(path), beside)}." if beside else ""))
    text = path.read_text(encoding="utf-8")
    try:
        node, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if content is not None and not isinstance(content, dict):
        raise InputError(f'{path} holds no keys: write "task: ioi", a key a line.')
    _no_key_twice(path, node)
    return node, content or {}


def _no_key_twice(path: Path, node: Any) -> None:
    """InputError for a key given twice, of which YAML would silently take the last."""
    for child in getattr(node, "value", None) or [] if not isinstance(getattr(node, "value", None), str) else []:
        if isinstance(child, tuple):
            keys = [key.value for key, _ in node.value]
            if keys.count(child[0].value) > 1:
                line = max(key.start_mark.line for key, _ in node.value if key.value == child[0].value) + 1
                raise InputError(f'{path} line {line}: key "{child[0].value}" is given twice.')
        _no_key_twice(path, child[1] if isinstance(child, tuple) else child)


def _line(node: Any, loc: tuple[Any, ...]) -> int | None:
    """The line of the file on which the key at `loc` stands; the nearest above it that there is."""
    line = None
    for step in loc:
        value = getattr(node, "value", None)
        if (
            isinstance(step, int)
            and isinstance(value, list)
            and step < len(value)
            and not isinstance(value[step], tuple)
        ):
            node = value[step]
            line = node.start_mark.line + 1
        elif isinstance(value, list):
            pair = next((pair for pair in value if isinstance(pair, tuple) and pair[0].value == step), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
    return line


def _named(error: ValidationError, loc: tuple, path: Path | None, node: Any, form: type[BaseModel]) -> InputError:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "sweeps"
    line = _line(node, (*loc, *first["loc"]))
    where = "" if line is None else f"{path} line {line}: "
    if first["type"] == "extra_forbidden":
        return UnknownKey(f'{where}unknown key "{key}". Nearest: {nearest(key, form.model_fields)}.')
    return InputError(f'{where}key "{key}": {first["msg"]}, {first["input"]!r} given.')


def read_shard(text: str | None, environment: dict[str, str]) -> tuple[int, int] | None:
    """`"2/8"` as (2, 8); without it, the rank that torchrun gives this process. InputError for another form."""
    if text is None:
        world = int(environment.get("WORLD_SIZE", "1"))
        return (int(environment["RANK"]) + 1, world) if world > 1 and "RANK" in environment else None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f'shard "{text}" given: write i/n with i from 1 to n, e.g. --shard 2/8.')
    return int(match[1]), int(match[2])
