"""What goes wrong, by whose mistake.

    Exception
    ├── InputError            the caller's: one line, exit status 2, nothing written
    │   ├── MissingFile       a file or folder that is not there
    │   ├── AlreadyExists     a finished result that would be overwritten
    │   ├── WrongModel        a store or dictionary made with another model
    │   ├── DamagedStore      a store whose bytes are not as they were written
    │   └── UnknownName       a name, with the nearest right ones
    │       ├── UnknownModel
    │       ├── UnknownSite
    │       ├── UnknownComponent
    │       ├── UnknownTask
    │       └── UnknownKey
    └── Failure               the run cannot go on: one line, exit status 1, what was finished is kept
        └── NotFinite         an activation that is NaN, infinite, or beyond what the file can hold

A broken promise of ours is an `assert`, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """The input is wrong: the message says what was given and what would be right."""


class MissingFile(InputError):
    pass


class AlreadyExists(InputError):
    pass


class WrongModel(InputError):
    pass


class DamagedStore(InputError):
    pass


class UnknownName(InputError):
    pass


class UnknownModel(UnknownName):
    pass


class UnknownSite(UnknownName):
    pass


class UnknownComponent(UnknownName):
    pass


class UnknownTask(UnknownName):
    pass


class UnknownKey(UnknownName):
    pass


class Failure(Exception):
    """The run cannot go on, by nobody's mistake in the input."""


class NotFinite(Failure):
    pass


def nearest(name: str, options: Iterable[str], n: int = 3) -> str:
    """The `n` options most like `name`, as text for a message: "3.resid_post, 3.resid_pre"."""
    options = list(dict.fromkeys(options))
    close = difflib.get_close_matches(name, options, n=n, cutoff=0.4)
    return ", ".join(close or options[:n])
