"""A small mixture of experts, trained on novels for some minutes, and what each of its experts is for.

    python -P tests/bench/experts.py [--text ../shared/corpus] [--steps 2000] [--work DIR]

Trains a Mixtral of 2 layers and 8 experts, 2 of them for a token (d_model 64, 1,024 tokens of a byte-level BPE), on ten
novels. Then, on a held-out novel: which classes of token go to which expert, and what zeroing, averaging or forbidding
each expert does to the loss of each class. Prints the tables and writes the figures into the work folder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

import interp
from interp.bundled.train import BOS, HELD_OUT, read_book
from interp.data.classes import classes, text_task

LENGTH, ROWS, N_TOKENS, RATE = 128, 8, 1024, 4e-3
"""Tokens in a window, windows in a step, tokens in all, AdamW's rate at its highest."""


def tokenizer_of(books: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(books, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS)


def trained(text: Path, n_steps: int, out: Path, seed: int = 0) -> None:
    """The model into the folder `out`; AdamW, a warm-up, then a rate that falls linearly to 0."""
    torch.manual_seed(seed)
    paths = [path for path in sorted(text.glob("*.txt")) if path.name not in HELD_OUT][:10]
    books = [read_book(path) for path in paths]
    tokenizer = tokenizer_of(books)
    ids = np.concatenate([np.array([tokenizer.bos_token_id, *book], np.int32) for book in tokenizer(books).input_ids])
    end = tokenizer.bos_token_id
    config = MixtralConfig(
        vocab_size=N_TOKENS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=LENGTH,
        tie_word_embeddings=True, output_router_logits=True, router_aux_loss_coef=0.01, bos_token_id=end,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    draw = np.random.default_rng(seed)
    for step in range(n_steps):
        first = draw.integers(0, len(ids) - LENGTH, ROWS)
        rows = torch.from_numpy(np.stack([ids[at : at + LENGTH] for at in first])).long()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 100, 1, 1.2 * (1 - step / n_steps))
        loss = model(rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            print(f"step {step}, {step * LENGTH * ROWS:,} tokens: loss {loss.item():.3f}", flush=True)
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
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--n", type=int, default=64, help="held-out windows")
    parser.add_argument(
        "--work", type=Path, help="where the model and the figures go; a model there is not trained again"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = given.work or Path(tempfile.mkdtemp(prefix="experts-"))
    if not (work / "model").exists():
        trained(given.text, given.steps, work / "model")
    shown(work / "model", given.text / HELD_OUT[0], work, given.n)
    print(f"-> {work}")
