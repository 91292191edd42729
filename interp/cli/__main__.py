"""`python -m interp.cli`, for torchrun and the app's jobs: the `interp` command."""

import sys

from interp.cli import script

sys.argv[0] = "interp"  # what run.json says was called
script()
