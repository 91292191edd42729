"""How long `sae.features` takes and what memory it needs: python -P tests/bench/features.py [rows] [latents].

A random TopK dictionary (d_in 256, k 32) on random activations, so that the pass and the collecting are timed apart.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from sae import examples, features
from sae.dictionary import Dictionary
from sae.rows import Rows


def main(n_rows: int = 1_000_000, d_sae: int = 16_384, d_in: int = 256, k: int = 32) -> None:
    draw = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=draw), dim=1)
    bias = torch.linspace(-1.5, 0.5, d_sae)[torch.randperm(d_sae, generator=draw)]  # densities differ
    dct = Dictionary(W_dec.T.contiguous(), bias, W_dec, torch.zeros(d_in), k=k, site="s").requires_grad_(False)

    def read(first: int, stop: int) -> dict[str, torch.Tensor]:
        return {"s": torch.randn(stop - first, d_in, generator=torch.Generator().manual_seed(first))}

    place, row = np.arange(n_rows, dtype=np.int32) % 128, np.arange(n_rows)
    source = Rows("random", place, row // 128, place, place > 0, 1, read)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        firings = features._record(dct, source, Path(folder), 4096, False)
        encoded = time.perf_counter()
        with h5py.File(Path(folder) / "latents.h5", "w", libver="latest") as file:
            table = examples.write(file, firings, source, n_examples=20, context_tokens=16, seed=0)
        done = time.perf_counter()
        size = (Path(folder) / "latents.h5").stat().st_size / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{n_rows} rows, {d_sae} latents, {int(table['n_fires'].sum())} firings, {torch.get_num_threads()} threads: "
          f"encoding {encoded - started:.1f} s, collecting {done - encoded:.1f} s, "
          f"latents.h5 {size:.0f} MB, peak memory {peak:.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
