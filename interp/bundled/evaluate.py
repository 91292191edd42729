"""The model card's figures, measured again: `python -m interp.bundled.evaluate [--text DIR]`.

Without --text, bits per byte are those of the bundled sample of the held-out novels; with it, of the whole held-out
novels in DIR. Names, nouns and templates of the tasks were not trained on (tests/test_bundled.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from interp.bundled.train import HELD_OUT
from interp.causal.statistics import bootstrap
from interp.data.metrics import METRICS
from interp.data.tasks import load_task
from interp.data.text import Corpus, read_text
from interp.decoder.loading import load_model
from interp.decoder.model import Model

PROMPTS = ("Once upon a time there was", "The old man looked at", '"I am very glad to see you," said')


def task_accuracy(model: Model, name: str, n: int = 1000, seed: int = 1) -> dict[str, float]:
    """Accuracy and loss of a built-in task, with the accuracy's 95% bootstrap interval."""
    task = load_task(name, model, n=n, seed=seed)
    prompt, pos, answer, wrong = task.reads()
    with torch.no_grad():
        logits = torch.cat([model(tokens)[i, at].cpu() for tokens, i, at in _batches(task.tokens(), prompt, pos)])
    accuracy = METRICS["accuracy"](logits, answer, wrong, None).double().numpy()
    (low,), (high,) = bootstrap(accuracy[None])
    return {"accuracy": float(accuracy.mean()), "low": float(low), "high": float(high),
            "loss": float(METRICS["loss"](logits, answer, wrong, None).mean()), "n": n}  # fmt: skip


def _batches(tokens: Tensor, prompt: Tensor, pos: Tensor, size: int = 64) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Prompts, and the row and position of their reads."""
    for start in range(0, len(tokens), size):
        mine = (prompt >= start) & (prompt < start + size)
        yield tokens[start : start + size], prompt[mine] - start, pos[mine]


def repeated_loss(model: Model, n: int = 200, length: int = 50, seed: int = 1) -> dict[str, float]:
    """Loss, nats a token, on the first and second copy of `length` random tokens (the first token of each left out)."""
    generator = torch.Generator().manual_seed(seed)
    piece = torch.randint(1, model.d_vocab, (n, length), generator=generator)
    tokens = torch.cat([torch.full((n, 1), model.bos), piece, piece], 1)
    losses = _losses(model, tokens)
    first, second = losses[:, 1:length].mean().item(), losses[:, length + 1 :].mean().item()
    return {"first": first, "second": second, "ratio": second / first, "n": n, "length": length}


def bits_per_byte(model: Model, corpus: Corpus) -> float:
    """Cross-entropy of the text in bits over its bytes in UTF-8. Each window is BOS and n_ctx - 1 tokens, half of them
    its predecessor's: those are context only, so that every token but the first few has n_ctx / 2 or more before it."""
    nats, n_bytes = 0.0, 0
    body = model.n_ctx - 1
    stride = body // 2
    for document in corpus.documents:
        ids = torch.tensor(model.to_tokens(document, prepend_bos=False))
        n_bytes += len(document.encode())
        starts = list(range(0, max(len(ids) - (body - stride), 1), stride))
        for group in [starts[i : i + 32] for i in range(0, len(starts), 32)]:
            rows = [torch.cat([torch.tensor([model.bos]), ids[s : s + body]]) for s in group]
            lengths = torch.tensor([len(row) - 1 for row in rows])[:, None]
            losses = _losses(model, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
            pos = torch.arange(losses.shape[1])
            new = torch.tensor([0 if s == 0 else body - stride for s in group])[:, None]
            nats += losses[(pos >= new) & (pos < lengths)].double().sum().item()
    return nats / math.log(2) / n_bytes


def _losses(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """Loss of every token but the first, nats [row, pos - 1]."""
    out = []
    with torch.no_grad():
        for batch in tokens.split(32):
            logits = model(batch)[:, :-1].flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten().to(logits.device), reduction="none")
            out.append(loss.unflatten(0, (len(batch), -1)).cpu())
    return torch.cat(out)


def continuation(model: Model, prompt: str, n: int = 40) -> str:
    """Greedy continuation, one whole forward pass a token."""
    ids = model.to_tokens(prompt)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return "".join(model.token_text(ids[1:]))


def evaluate(model: Model, text: Path | None = None) -> dict:
    corpus = read_text("bundled") if text is None else read_text([text / name for name in HELD_OUT])
    return {
        "indirect_object": task_accuracy(model, "ioi"),
        "agreement": task_accuracy(model, "agreement"),
        "repeated": repeated_loss(model),
        "bits_per_byte": {"text": "bundled sample" if text is None else "whole held-out novels",
                          "value": bits_per_byte(model, corpus)},
        "continuations": [continuation(model, prompt) for prompt in PROMPTS],
    }  # fmt: skip


def main(
    model: Annotated[str, typer.Option(help="A model folder, to judge one that is being trained.")] = "bundled",
    text: Annotated[Path | None, typer.Option(help="Folder with the held-out novels.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON too.")] = None,
) -> None:
    """Measure the bundled model. Example: python -m interp.bundled.evaluate"""
    figures = evaluate(load_model(model), text)
    for name, one in list(figures.items())[:4]:
        print(name, "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in one.items()))
    for line in figures["continuations"]:
        print(repr(line))
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
