"""A small mixture of experts, trained on novels for some minutes, and what each of its experts is for.

    python -P tests/bench/experts.py [--text ../shared/corpus] [--minutes 10] [--work DIR]

Trains a Mixtral of 2 layers and 8 experts, 2 of them for a token (d_model 64, the bundled model's tokenizer), on all
novels but those held out. Then, on a held-out novel: which classes of token go to which expert, and what zeroing,
forbidding or averaging each expert does to the loss of each class. Prints the tables and writes the figures into the
work folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

import interp
from interp.bundled.train import HELD_OUT, MODEL, read_book
from interp.data.classes import classes, text_task

LENGTH, ROWS = 128, 16
"""Tokens in a window, windows in a step."""


def trained(text: Path, minutes: float, out: Path, seed: int = 0) -> None:
    """The model into the folder `out`; AdamW, a warm-up, then a rate that falls linearly with the time left."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    books = [read_book(path) for path in sorted(text.glob("*.txt")) if path.name not in HELD_OUT]
    ids = np.concatenate([np.array([tokenizer.bos_token_id, *book], np.int32) for book in tokenizer(books).input_ids])
    end = tokenizer.bos_token_id
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, output_router_logits=True, router_aux_loss_coef=0.01, bos_token_id=end,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.05)
    draw, started, step = np.random.default_rng(seed), time.monotonic(), 0
    while (spent := (time.monotonic() - started) / (60 * minutes)) < 1:
        first = draw.integers(0, len(ids) - LENGTH, ROWS)
        rows = torch.from_numpy(np.stack([ids[at : at + LENGTH] for at in first])).long()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min((step + 1) / 100, 1, 1.2 * (1 - spent))
        loss = model(rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"step {step}, {step * LENGTH * ROWS:,} tokens: loss {loss.item():.3f}", flush=True)
        step += 1
    model.config.output_router_logits = False
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def shown(folder: Path, text: Path, out: Path, n: int) -> None:
    """The tables of load and of effects, and their figures."""
    model = interp.load_model(str(folder))
    task = text_task(model, str(text), n=n, context=LENGTH)
    kinds = classes(model, task)
    load = interp.routing(model, task, classes=kinds)
    print(load.table().to_string(index=False, float_format="{:.3f}".format))
    load.figure().write_html(out / "load.html")
    found = interp.ablate(
        model, task, components="experts", method=["zero", "mean", "forbid"], metric="loss", classes=kinds
    )
    for method, rows in found.table().groupby("method", sort=False):
        wide = rows.pivot(index="component", columns="metric", values="effect")
        print(f"\n{method}: effect on the loss\n{wide.round(3).to_string()}")
    found.save(out / "effects")
    found.by_class().write_html(out / "effects.html")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/corpus"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--n", type=int, default=64, help="held-out windows")
    parser.add_argument(
        "--work", type=Path, help="where the model and the figures go; a model there is not trained again"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = given.work or Path(tempfile.mkdtemp(prefix="experts-"))
    if not (work / "model").exists():
        trained(given.text, given.minutes, work / "model")
    shown(work / "model", given.text / HELD_OUT[0], work, given.n)
    print(f"-> {work}")
