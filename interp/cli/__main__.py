"""`python -m interp.cli`, for torchrun: the `interp` command."""

from interp.cli import script

script()
