"""What works on which family: runs `interp.check` on a tiny random model of each and writes the README's table.

    python tests/bench/conformance.py            # prints the table, and seconds for each family
    python tests/bench/conformance.py --write    # also puts it into README.md, between its markers

`tests/test_families.py` holds the README against the check.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
START, END = "<!-- what works on which model: python tests/bench/conformance.py --write -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="Put the table into README.md.")
    write = parser.parse_args().write
    import families
    import torch

    from interp import InputError, check, load_model

    torch.set_num_threads(1)
    rows = families.header()
    with tempfile.TemporaryDirectory() as root:
        for number, name in enumerate(families.FAMILIES):
            folder = families.build(name, Path(root) / f"family{number}")
            started = time.process_time()
            try:
                report = check(load_model(str(folder)))
                rows.append(families.row(name, report))
            except InputError as error:
                reason = str(error).partition(") ")[2].rstrip(".")
                rows.append(f"| {name} | {'no | ' * len(families.COLUMNS)}refused as it is loaded: {reason} |")
            print(f"{name}: {time.process_time() - started:.1f} s", file=sys.stderr, flush=True)
    print("\n".join(rows))
    if write:
        path = ROOT / "README.md"
        before, rest = path.read_text(encoding="utf-8").split(START)
        path.write_text(before + "\n".join([START, "", *rows, "", END]) + rest.split(END, 1)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
