"""Train the bundled model: `python -m interp.bundled.train --text DIR`.

DIR holds novels as .txt; HELD_OUT are left out. A quarter of the windows are generated sentences
(`interp.bundled.generated`), an eighth repeated sequences, the rest novels. Every batch is a function of (seed, step)
alone (the early steps have more of both), and a checkpoint is written every few hundred steps: kill it at
any moment and the same command continues.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.bundled import generated
from interp.data import words

HELD_OUT = ("peter-pan.txt", "the-jungle-book.txt")
BOS = "<|endoftext|>"
MODEL = Path(__file__).parent / "model"


@dataclass(frozen=True)
class Settings:
    """What was trained and how; kept in the model folder as `training.json`."""

    n_layer: int = 4
    n_head: int = 8
    n_embd: int = 256
    n_positions: int = 128
    vocab_size: int = 6144
    n_windows: int = 16
    """Windows of n_positions tokens a step."""
    n_steps: int = 6000
    lr: float = 0.04
    """Muon's, for the matrices inside the blocks (Jordan 2024); AdamW's for the rest is `lr_rest`."""
    lr_rest: float = 0.003
    warmup: int = 100
    weight_decay: float = 0.1
    broad_from: int = 4000
    """From this step on the generated sentences are of many more templates (`generated.BROAD`): names are copied after
    few templates first, and after any then."""
    seed: int = 0


def read_book(path: Path) -> str:
    """A novel with transcriber's remarks and pictures' captions left out."""
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    return "\n\n".join(p for p in paragraphs if "[Illustration" not in p and "Gutenberg" not in p)


def train_tokenizer(books: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE in which numbers split into pairs of digits and every word of the tasks is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    known = generated.Vocabulary(generated.NAMES, generated.SINGULAR_PLURAL)
    sentences = [generated.sentence(rng, known, generated.NARROW) for _ in range(60_000)]
    nouns = [noun for pair in words.NOUNS + generated.SINGULAR_PLURAL for noun in pair]
    whole = words.NAMES + generated.NAMES + words.PLACES + words.OBJECTS + nouns + list(generated.CAPITALS.values())
    numbers = [f"{n:02d}" for n in range(100)]
    forced = [" " + word for word in whole] * 3000 + numbers * 3000
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(books + sentences + forced, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


class Batches:
    """Windows of token ids: `batches[step]` is int64 [n_windows, n_positions], the same whenever it is asked for."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer, books: list[str]):
        self.settings, self.tokenizer = settings, tokenizer
        self.bos = tokenizer.token_to_id(BOS)
        encoded = tokenizer.encode_batch(books)
        self.novels = np.concatenate([np.array([self.bos, *e.ids], dtype=np.int64) for e in encoded])
        held_out = {*words.NAMES, *(noun for pair in words.NOUNS for noun in pair)}
        vocabulary = {token[1:] for token in tokenizer.get_vocab() if re.fullmatch(r"Ġ[A-Za-z][a-z]{2,}", token)}
        allowed = sorted(vocabulary - held_out)
        plurals = [(word, word + "s") for word in allowed if word + "s" in vocabulary - held_out]
        self.vocabulary = generated.Vocabulary(allowed, plurals)

    def __getitem__(self, step: int) -> torch.Tensor:
        s = self.settings
        rng = np.random.default_rng([s.seed, step])
        n_generated, n_repeated = self.mixture(step)
        kinds = generated.BROAD if step >= s.broad_from else generated.NARROW
        rows = [self._generated(rng, kinds) for _ in range(n_generated)] + [
            self._repeated(rng) for _ in range(n_repeated)
        ]
        rows += [self._novel(rng, s.n_positions - 1) for _ in range(s.n_windows - len(rows))]
        return torch.from_numpy(np.stack([np.concatenate([[self.bos], row]) for row in rows]))

    def mixture(self, step: int) -> tuple[int, int]:
        """Windows of generated sentences and of repeated sequences in the batch of `step`."""
        n = self.settings.n_windows
        early, late = step < self.settings.broad_from / 2, step >= self.settings.broad_from
        return (3 * n // 8, n // 4) if early else (3 * n // 8, n // 8) if late else (n // 4, n // 8)

    def _novel(self, rng: np.random.Generator, n: int) -> np.ndarray:
        start = rng.integers(0, len(self.novels) - n)
        return self.novels[start : start + n]

    def _generated(self, rng: np.random.Generator, kinds: generated.Kinds) -> np.ndarray:
        python_rng = random.Random(int(rng.integers(2**62)))
        ids: list[int] = []
        while len(ids) < self.settings.n_positions:
            batch = [generated.sentence(python_rng, self.vocabulary, kinds) for _ in range(12)]
            for encoding in self.tokenizer.encode_batch(batch):
                ids += [*encoding.ids, self.bos]
        return np.array(ids[: self.settings.n_positions - 1])

    def _repeated(self, rng: np.random.Generator) -> np.ndarray:
        """Pieces of 6 to 45 tokens, each followed at once by one or two copies: of uniformly random tokens, of random
        tokens in the novels' proportions, or a passage of a novel."""
        pieces, total = [], 0
        while total < self.settings.n_positions:
            n, copies = int(rng.integers(6, 46)), int(rng.integers(2, 4))
            kind = rng.integers(3)
            if kind == 0:
                piece = rng.integers(1, self.settings.vocab_size, n)
            elif kind == 1:
                piece = self.novels[rng.integers(0, len(self.novels), n)]
            else:
                piece = self._novel(rng, n)
            pieces += [piece] * copies + [[self.bos]]
            total += copies * n + 1
        return np.concatenate(pieces)[: self.settings.n_positions - 1]


def optimizers(model: GPT2LMHeadModel, s: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, biases and norms."""
    matrices = [p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if not (".h." in name and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=s.lr, momentum=0.95, weight_decay=s.weight_decay, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=s.lr_rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate(step: int, s: Settings) -> float:
    """Share of the peak: linear up over `warmup` steps, flat to half of `broad_from`, linear to a third there,
    linear to zero at the end."""
    half = s.broad_from / 2
    if step < s.broad_from:
        return min((step + 1) / s.warmup, 1.0, 1 - (step - half) / half * 2 / 3)
    return (s.n_steps - step) / (s.n_steps - s.broad_from) / 3


def _checkpoint(path: Path, model: GPT2LMHeadModel, opts: list[torch.optim.Optimizer], step: int) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, opt in enumerate(opts):
        for p, state in opt.state_dict()["state"].items():
            tensors |= {f"opt.{i}.{p}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path.with_suffix(".tmp"), {"step": str(step)})
    os.replace(path.with_suffix(".tmp"), path)


def _resume(path: Path, model: GPT2LMHeadModel, opts: list[torch.optim.Optimizer]) -> int:
    from safetensors import safe_open

    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    for i, opt in enumerate(opts):
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"opt.{i}."):
                _, _, p, name = key.split(".", 3)
                state.setdefault(int(p), {})[name] = value
        opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    with safe_open(path, "pt") as f:
        return int(f.metadata()["step"])


def save_model(model: GPT2LMHeadModel, tokenizer: Tokenizer, settings: Settings, out: Path) -> None:
    """Config, tokenizer and weights as a Hugging Face directory; weights rounded to float16 on disk, which halves the
    folder; config.json says float32, which is what they are loaded as."""
    out.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS, model_max_length=settings.n_positions
    ).save_pretrained(out)
    model.config.save_pretrained(out)
    state = {k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, out / "model.safetensors", {"format": "pt"})
    (out / "training.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")


def train(
    text: Path, out: Path, work: Path, settings: Settings, device: str, compile: bool, checkpoint_every: int = 250
) -> None:
    books = [read_book(p) for p in sorted(text.glob("*.txt")) if p.name not in HELD_OUT and p.name != "README.md"]
    work.mkdir(parents=True, exist_ok=True)
    if (work / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(books, settings.vocab_size)
        tokenizer.save(str(work / "tokenizer.json"))
    batches = Batches(settings, tokenizer, books)
    print(
        f"{len(books)} books, {len(batches.novels):,} tokens, {len(batches.vocabulary.words)} words, "
        f"{len(batches.vocabulary.plurals)} plurals",
        flush=True,
    )
    torch.manual_seed(settings.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            **{k: getattr(settings, k) for k in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")},
            bos_token_id=batches.bos, eos_token_id=batches.bos,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, dtype="float32",
        )
    ).to(device)  # fmt: skip
    opts = optimizers(model, settings)
    checkpoint = work / "checkpoint.safetensors"
    first = _resume(checkpoint, model, opts) if checkpoint.exists() else 0
    started, losses = time.time(), []

    def each_loss(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(tokens[:, :-1], use_cache=False).logits
        flat = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
        )
        return flat.unflatten(0, (len(tokens), -1))

    each_loss = torch.compile(each_loss) if compile else each_loss
    for step in range(first, settings.n_steps):
        for opt, lr in zip(opts, (settings.lr, settings.lr_rest), strict=True):
            for group in opt.param_groups:
                group["lr"] = lr * learning_rate(step, settings)
        tokens = batches[step].to(device)
        each = each_loss(tokens)
        each.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        n_generated, n_repeated = batches.mixture(step)
        parts = each.split([n_generated, n_repeated, len(each) - n_generated - n_repeated])
        losses.append([part.mean().item() for part in parts])
        if (step + 1) % 50 == 0:
            made, copies, novel = np.mean(losses[-50:], axis=0)
            rate = (step + 1 - first) * tokens.numel() / (time.time() - started)
            print(
                f"step {step + 1}/{settings.n_steps}  novels {novel:.3f}  generated {made:.3f}  "
                f"repeated {copies:.3f}  {rate:,.0f} tokens/s",
                flush=True,
            )
        if (step + 1) % checkpoint_every == 0:
            _checkpoint(checkpoint, model, opts, step + 1)
            save_model(model, tokenizer, settings, work / "model")
    save_model(model, tokenizer, settings, work / "model")
    shutil.copytree(work / "model", out, dirs_exist_ok=True)


def main(
    text: Annotated[Path, typer.Option(help="Folder of novels as .txt.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where the finished model goes.")] = MODEL,
    work: Annotated[Path, typer.Option(help="Checkpoints; the same command continues from here.")] = Path(
        "bundled-training"
    ),
    n_steps: int = Settings.n_steps,
    n_layer: int = Settings.n_layer,
    n_head: int = Settings.n_head,
    n_embd: int = Settings.n_embd,
    n_windows: int = Settings.n_windows,
    vocab_size: int = Settings.vocab_size,
    lr: float = Settings.lr,
    lr_rest: float = Settings.lr_rest,
    seed: int = 0,
    compile: Annotated[bool, typer.Option(help="torch.compile: 1.5 times as fast; needs a C++ compiler.")] = True,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the bundled model. Example: python -m interp.bundled.train --text novels/"""
    settings = Settings(
        n_steps=n_steps, n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_windows=n_windows,
        vocab_size=vocab_size, lr=lr, lr_rest=lr_rest, seed=seed,
    )  # fmt: skip
    train(text, out, work, settings, device, compile)


if __name__ == "__main__":
    typer.run(main)
