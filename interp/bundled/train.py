"""Train the bundled model: `python -m interp.bundled.train --text DIR`.

DIR holds novels as .txt; HELD_OUT are left out. A step reads windows of novels (all tokens count), windows of repeated
sequences (the copies count) and generated sentences (`interp.bundled.generated`; the words in brackets count). Every
batch is a function of (seed, step) alone, and a checkpoint is written every few hundred steps: kill it at any moment
and the same command continues.
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
SENTENCE = 33
"""Tokens to which a generated sentence is padded, or cut."""
MODEL = Path(__file__).parent / "model"


@dataclass(frozen=True)
class Settings:
    """What was trained and how; kept in the model folder as `training.json`."""

    n_layer: int = 4
    n_head: int = 8
    n_embd: int = 256
    n_positions: int = 128
    vocab_size: int = 6144
    n_novels: int = 11
    """Windows of novels a step, n_positions tokens each."""
    n_repeated: int = 3
    """Windows of repeated sequences a step."""
    n_sentences: int = 64
    """Generated sentences a step, each alone after BOS."""
    n_steps: int = 12000
    lr: float = 0.02
    """Muon's, for the matrices inside the blocks (Jordan 2024); AdamW's for the rest is `lr_rest`."""
    lr_rest: float = 0.002
    share: float = 0.25
    """Weight of the loss of the copies, and of that of the generated sentences, beside 1 for the novels'."""
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 0
    start: str = ""
    """The model folder whose weights and tokenizer training began with; empty: random weights, a new tokenizer."""


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
    known = generated.Vocabulary(generated.NAMES, generated.SINGULAR_PLURAL, ["so it was"])
    sentences = [re.sub(r"[\[\]]", "", generated.sentence(rng, known)) for _ in range(60_000)]
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
    """`batches[step]`: for novels, repeated sequences and generated sentences, token ids [row, pos] and which of them
    count in the loss, bool [row, pos]. The same whenever it is asked for."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer, books: list[str]):
        self.settings, self.tokenizer = settings, tokenizer
        self.bos = tokenizer.token_to_id(BOS)
        encoded = tokenizer.encode_batch(books)
        self.novels = np.concatenate([np.array([self.bos, *e.ids], dtype=np.int64) for e in encoded])
        room = len(self.novels) - settings.n_positions - 1
        line_end = self.novels == tokenizer.token_to_id("Ċ")
        self.paragraphs = np.flatnonzero(line_end[: room - 1] & line_end[1:room]) + 2
        held_out = {*words.NAMES, *(noun for pair in words.NOUNS for noun in pair)}
        vocabulary = {token[1:] for token in tokenizer.get_vocab() if re.fullmatch(r"Ġ[A-Za-z][a-z]{2,}", token)}
        allowed = sorted(vocabulary - held_out)
        plurals = [(word, word + "s") for word in allowed if word + "s" in vocabulary - held_out]
        lower = [word for word in allowed if word.islower()]
        singular = [word for word in lower if not word.endswith("s")]
        rng = random.Random(0)  # words in -s without a singular of their own are plurals too
        plurals += [(rng.choice(singular), word) for word in lower if re.fullmatch(r".{3,}[^suia]s", word)]
        self.reserved = [tokenizer.token_to_id("Ġ" + name) for name in generated.NAMES[:2]]
        never = {tokenizer.token_to_id(mark + word) for word in held_out for mark in ("Ġ", "")} | {self.bos}
        self.copied = sorted(set(range(tokenizer.get_vocab_size())) - never)
        spans = [span for book in books for span in re.findall(r"\b[a-z]+(?: [a-z]+){1,5}", book)]
        phrases = [span for span in spans if not held_out & set(span.split())]
        self.vocabulary = generated.Vocabulary(allowed, plurals, phrases)

    def __getitem__(self, step: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        s = self.settings
        rng = np.random.default_rng([s.seed, step])
        kinds = {"generated": (self._generated, s.n_sentences), "repeated": (self._repeated, s.n_repeated),
                 "novels": (self._novel, s.n_novels)}  # fmt: skip
        parts = {}
        for name, (make, n) in kinds.items():
            ids, counts = zip(*(make(rng) for _ in range(n)), strict=True)
            parts[name] = (torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(counts)))
        return parts

    def _novel(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """BOS and a passage that begins with a paragraph, or, as often, anywhere."""
        n = self.settings.n_positions
        anywhere = rng.random() < 0.5 or not len(self.paragraphs)
        start = rng.integers(0, len(self.novels) - n) if anywhere else rng.choice(self.paragraphs)
        return np.concatenate([[self.bos], self.novels[start : start + n]]), np.ones(n + 1, bool)

    def _generated(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """BOS and a sentence; what stands in brackets counts."""
        chooser = random.Random(int(rng.integers(2**62)))
        text, names = generated.sentence(chooser, self.vocabulary), {}
        if chooser.random() < 0.3:  # any tokens as names, so that what copies them knows no list of names
            text = generated.indirect_object(chooser, self.vocabulary, tuple(generated.NAMES[:2]))
            names = dict(zip(self.reserved, chooser.sample(self.copied, 2), strict=True))
        ids, counts = np.full(SENTENCE, self.bos), np.zeros(SENTENCE, bool)
        at = 1
        for i, piece in enumerate(re.split(r"[\[\]]", text)):
            for token in self.tokenizer.encode(piece).ids:
                if at < SENTENCE:
                    ids[at], counts[at] = names.get(token, token), i % 2
                    at += 1
        return ids, counts

    def _repeated(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """BOS and pieces of 6 to 45 tokens, each followed at once by one or two copies: of uniformly random tokens, of
        random tokens in the novels' proportions, or a passage of a novel. The copies count, but for their first."""
        length = self.settings.n_positions + 1
        ids, counts = [np.array([self.bos])], [np.zeros(1, bool)]
        while sum(map(len, ids)) < length:
            n, copies = int(rng.integers(6, 46)), int(rng.integers(1, 3))
            kind = rng.integers(3)
            if kind == 0:
                piece = rng.integers(1, self.settings.vocab_size, n)
            elif kind == 1:
                piece = self.novels[rng.integers(0, len(self.novels), n)]
            else:
                start = rng.integers(0, len(self.novels) - n)
                piece = self.novels[start : start + n]
            ids += [piece] * (1 + copies) + [np.array([self.bos])]
            counts += [np.zeros(n, bool)] + [np.arange(n) > 0] * copies + [np.zeros(1, bool)]
        return np.concatenate(ids)[:length], np.concatenate(counts)[:length]


def optimizers(model: GPT2LMHeadModel, s: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, biases and norms."""
    matrices = [p for name, p in model.named_parameters() if ".h." in name and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if not (".h." in name and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=s.lr, momentum=0.95, weight_decay=s.weight_decay, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=s.lr_rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate(step: int, s: Settings) -> float:
    """Share of the peak: linear up over `warmup` steps, flat, then linear to zero over the last 60%."""
    return min((step + 1) / s.warmup, 1.0, (s.n_steps - step) / (0.6 * s.n_steps))


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
    if settings.start:
        tokenizer = Tokenizer.from_file(str(Path(settings.start) / "tokenizer.json"))
    elif (work / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(books, settings.vocab_size)
        tokenizer.save(str(work / "tokenizer.json"))
    batches = Batches(settings, tokenizer, books)
    print(
        f"{len(books)} books, {len(batches.novels):,} tokens, {len(batches.paragraphs):,} paragraphs, "
        f"{len(batches.vocabulary.words)} words, {len(batches.vocabulary.plurals)} plurals, "
        f"{len(batches.vocabulary.phrases):,} phrases",
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
    if settings.start:
        state = load_file(Path(settings.start) / "model.safetensors")
        model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    opts = optimizers(model, settings)
    checkpoint = work / "checkpoint.safetensors"
    first = _resume(checkpoint, model, opts) if checkpoint.exists() else 0
    started, losses = time.time(), []

    body = torch.compile(model.transformer, dynamic=False) if compile else model.transformer

    def part_loss(tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Mean loss over what counts; logits are made nowhere else."""
        with torch.autocast(device, dtype=torch.bfloat16):
            asked = counts[:, 1:]
            logits = model.lm_head(body(tokens[:, :-1], use_cache=False).last_hidden_state[asked])
        return torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][asked])

    for step in range(first, settings.n_steps):
        for opt, lr in zip(opts, (settings.lr, settings.lr_rest), strict=True):
            for group in opt.param_groups:
                group["lr"] = lr * learning_rate(step, settings)
        parts, each = batches[step], []
        for name, (tokens, counts) in parts.items():
            loss = part_loss(tokens.to(device), counts.to(device))
            (loss if name == "novels" else settings.share * loss).backward()
            each.append(loss.item())
            if name == "generated":  # no token is taught to be copied: what copies must do it with any
                model.transformer.wte.weight.grad = None
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        losses.append(each)
        if (step + 1) % 50 == 0:
            told = "  ".join(f"{name} {x:.3f}" for name, x in zip(parts, np.mean(losses[-50:], axis=0), strict=True))
            rate = (step + 1 - first) / (time.time() - started)
            print(f"step {step + 1}/{settings.n_steps}  {told}  {rate:.2f} steps/s", flush=True)
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
    vocab_size: int = Settings.vocab_size,
    lr: float = Settings.lr,
    lr_rest: float = Settings.lr_rest,
    seed: int = 0,
    start: Annotated[str, typer.Option(help="A model folder to begin with, in place of random weights.")] = "",
    compile: Annotated[bool, typer.Option(help="torch.compile: 1.5 times as fast; needs a C++ compiler.")] = True,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the bundled model. Example: python -m interp.bundled.train --text novels/"""
    settings = Settings(
        n_steps=n_steps, n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=vocab_size,
        lr=lr, lr_rest=lr_rest, seed=seed, start=start,
    )  # fmt: skip
    train(text, out, work, settings, device, compile)


if __name__ == "__main__":
    typer.run(main)
