"""Generation: cached and uncached, edited and not, against a plain loop and Hugging Face's own."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

PROMPT = [0, 5, 17, 40, 9, 33]
TOKENS = torch.tensor([PROMPT, PROMPT[::-1], [0, 7, 7, 3, 1, 2]])
FAMILIES = ["gpt2", "llama", "mixtral", "opt", "neox"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, make_model):
    return make_model(request.param)


def some_edits(model):
    """A head turned off, an MLP halved, a direction added: each position by itself."""
    from interp.causal.edits import parse

    up = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return parse(model, "L1H2=0, L0.mlp*0.5, up@1.resid_post+3", directions={"up": up})


def steps(model, **settings):
    from interp.decoder.generation import Sampling, stream

    sampling = settings.pop("sampling", Sampling(8, temperature=0.9, seed=4, stop=False))
    found = list(stream(model, TOKENS, sampling, **settings))
    return {name: torch.stack([getattr(s, name) for s in found], 1) for name in vars(found[0])}


@pytest.mark.parametrize("where", ["all", "prompt", "new", (0, -2, 7)])
def test_with_and_without_the_cache_an_edited_run_is_the_same(model, where):
    edits = some_edits(model)
    cached, whole = (steps(model, edits=edits, where=where, cache=cache) for cache in (True, False))
    assert torch.equal(cached["tokens"], whole["tokens"])
    for name in ("logprob", "baseline_logprob", "kl"):
        assert_close(cached[name], whole[name], rtol=0, atol=2e-5)  # sums in another order, in float32
    assert (cached["kl"] > 1e-4).any()


def test_greedy_is_that_of_hugging_face(model):
    from interp.decoder.generation import Sampling

    ours = steps(model, sampling=Sampling(8, temperature=0, stop=False))["tokens"]
    theirs = model.plain.generate(
        TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=8, min_new_tokens=8, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(ours, theirs[:, TOKENS.shape[1] :])


def test_numbers_of_a_step_are_those_of_whole_passes(model):
    """The slow twin: the finished text once more, edited and not, with the edit at chosen positions written out."""
    from interp.decoder.hooks import edited

    edits = some_edits(model)
    found = steps(model, edits=edits, where="new")
    text = torch.cat([TOKENS, found["tokens"]], 1)

    def new_only(edit):
        return lambda value: torch.cat([value[:, : len(PROMPT)], edit(value)[:, len(PROMPT) :]], 1)

    with torch.no_grad():
        with edited(model, {site: new_only(edit) for site, edit in edits.items()}):
            own = model(text).log_softmax(-1)[:, len(PROMPT) - 1 : -1]
        base = model(text).log_softmax(-1)[:, len(PROMPT) - 1 : -1]
    at = found["tokens"][..., None]
    assert_close(found["logprob"], own.gather(-1, at)[..., 0], rtol=0, atol=2e-5)
    assert_close(found["baseline_logprob"], base.gather(-1, at)[..., 0], rtol=0, atol=2e-5)
    assert_close(found["kl"], (own.exp() * (own - base)).sum(-1), rtol=0, atol=2e-5)
    assert_close(found["kl"][:, 0], torch.zeros(3), rtol=0, atol=1e-6)  # the first token is said by the prompt


def test_frozen_patterns_are_those_of_the_run_without_edits(model):
    from interp.decoder.hooks import captured, edited
    from interp.errors import InputError

    edits = some_edits(model)
    if not any(site.endswith("pattern") for site in model.sites):
        with pytest.raises(InputError, match="cannot be held: use patterns live"):
            steps(model, edits=edits, patterns="frozen")
        return
    cached, whole = (steps(model, edits=edits, patterns="frozen", cache=cache) for cache in (True, False))
    assert torch.equal(cached["tokens"], whole["tokens"])
    assert_close(cached["logprob"], whole["logprob"], rtol=0, atol=2e-5)
    text = torch.cat([TOKENS, cached["tokens"]], 1)
    with torch.no_grad(), captured(model, "*.pattern") as kept:
        model(text)
    held = {site: lambda _, value=value: value for site, value in kept.items()}
    with torch.no_grad(), edited(model, edits | held):
        own = model(text).log_softmax(-1)[:, len(PROMPT) - 1 : -1]
    assert_close(cached["logprob"], own.gather(-1, cached["tokens"][..., None])[..., 0], rtol=0, atol=2e-5)


def test_without_edits_both_runs_are_one(tiny_model):
    found = steps(tiny_model)
    assert torch.equal(found["logprob"], found["baseline_logprob"]) and (found["kl"] == 0).all()


def test_a_text_does_not_depend_on_what_is_beside_it(tiny_model):
    import interp

    prompts = ["When Mary and John", "The keys to the cabinet are old", "When Mary and Tom"]
    settings = {"n": 2, "max_new_tokens": 6, "seed": 3, "stop": False}
    together = interp.generate(tiny_model, prompts, **settings).table()
    alone = interp.generate(tiny_model, prompts[:1], **settings).table()
    assert list(together.text[together.prompt == 0]) == list(alone.text)
    assert len(set(together.text)) == len(together) == 6
    again = interp.generate(tiny_model, prompts, **settings).table()
    assert together.equals(again)


def test_draws_follow_the_probabilities():
    from interp.decoder.generation import Sampling

    logits = torch.tensor([[0.1, 2.0, 1.0, -1.0, 2.0]])
    noise = torch.tensor(np.random.default_rng(0).gumbel(size=(40_000, 5)))
    for sampling, wanted in [
        (Sampling(), logits[0].softmax(-1)),
        (Sampling(temperature=0.5), (logits[0] / 0.5).softmax(-1)),
        (Sampling(top_k=2), torch.tensor([0, 0.5, 0, 0, 0.5])),
        (Sampling(top_k=1), torch.tensor([0, 1.0, 0, 0, 0])),
        (Sampling(top_p=0.5), torch.tensor([0, 0.5, 0, 0, 0.5])),
        (Sampling(top_p=1e-9), torch.tensor([0, 1.0, 0, 0, 0])),
        (Sampling(temperature=0), torch.tensor([0, 1.0, 0, 0, 0])),
    ]:
        found = sampling.choose(logits.expand(len(noise), -1), noise)
        share = torch.bincount(found, minlength=5) / len(noise)
        assert_close(share, wanted, rtol=0, atol=0.01)  # four standard deviations of a share of 40,000 draws


def test_an_edit_that_changes_next_to_nothing_leaves_the_text_alone(tiny_model):
    import interp
    from interp.causal.edits import parse

    made = interp.generate(
        tiny_model, ["When Mary", "The keys"], n=4, max_new_tokens=12, seed=5, edits=parse(tiny_model, "L1.mlp*0.9999")
    ).tokens()
    both = [list(made[made.run == run].token) for run in ("edited", "baseline")]
    assert both[0] == both[1] and len(both[0]) > 60 and (made.kl >= 0).all()


def test_a_text_ends_at_the_end_of_text_token(tiny_model):
    from interp.decoder.generation import Sampling, stream

    end = tiny_model.tokenizer.eos_token_id
    free = list(stream(tiny_model, TOKENS, Sampling(30, seed=1, stop=False)))
    stopped = list(stream(tiny_model, TOKENS, Sampling(30, seed=1, temperature=1.0)))
    for row in range(len(TOKENS)):
        whole = [int(s.tokens[row]) for s in free]
        cut = whole[: whole.index(end) + 1] if end in whole else whole
        mine = [int(s.tokens[row]) for s in stopped]
        assert mine[: len(cut)] == cut and set(mine[len(cut) :]) <= {-1}


def test_best_of_keeps_the_likeliest(tiny_model):
    import interp

    every = interp.generate(tiny_model, "When Mary", n=6, max_new_tokens=5, seed=2).table()
    best = interp.generate(tiny_model, "When Mary", n=2, best_of=6, max_new_tokens=5, seed=2).table()
    assert list(best.text) == list(every.sort_values("logprob", ascending=False).text[:2])


def test_an_edited_sample_and_the_baseline_of_its_number_are_of_the_same_random_numbers(tiny_model):
    import interp
    from interp.decoder.generation import Sampling, stream

    edits = some_edits_of(tiny_model)
    rows = interp.generate(tiny_model, "When Mary", n=6, max_new_tokens=5, seed=2, edits=edits).rows
    tokens = torch.tensor([tiny_model.to_tokens("When Mary")])
    for (sample, run), mine in rows.groupby(["sample", "run"]):
        draws = [np.random.default_rng([2, 0, sample])]
        steps = stream(tiny_model, tokens, Sampling(5, seed=2), edits=edits if run == "edited" else None, draws=draws)
        assert [int(step.tokens[0]) for step in steps] == list(mine.token)


def test_what_is_saved_is_what_is_loaded(tiny_model, tmp_path):
    import interp
    from interp.decoder.generation import Generation

    made = interp.generate(tiny_model, ["When Mary", "The keys"], max_new_tokens=5, edits=some_edits_of(tiny_model))
    made.save(tmp_path)
    again = Generation.load(tmp_path)
    assert again.tokens().equals(made.tokens()) and again.table().equals(made.table())
    assert made.prompts == ("When Mary", "The keys") and made.about["model"]["fingerprint"] == tiny_model.fingerprint
    assert set(made.table().run) == {"edited", "baseline"}
    assert made.figure().data and made.figure().layout.yaxis.title.text.startswith("KL(edited || baseline)")


def some_edits_of(model):
    from interp.causal.edits import parse

    return parse(model, "L0H1=0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 63}, "61 new ones fit"),
        ({"temperature": -1}, "temperature -1 given: it is 0"),
        ({"top_p": 0.0}, r"top_p 0.0 given: it is in \(0, 1\]"),
        ({"n": 3, "best_of": 2}, "n 3 of best_of 2 given"),
        ({"where": "later"}, 'where "later" given: all, prompt, new'),
        ({"where": [99]}, "positions"),
        ({"patterns": "cold"}, 'patterns "cold" given: live'),
    ],
)
def test_a_wrong_setting_is_one_line(tiny_model, settings, message):
    import interp
    from interp.errors import InputError

    with pytest.raises(InputError, match=message):
        interp.generate(tiny_model, "When Mary", **{"max_new_tokens": 4, **settings})


def test_a_model_without_keys_and_values_is_computed_whole(tmp_path):
    """A TransformerLens directory has no plain twin."""
    import json

    from safetensors.torch import save_file

    import interp

    config = {"n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "d_vocab": 20, "n_ctx": 16, "attn_only": True,
              "normalization_type": None, "act_fn": "relu", "seed": 0}  # fmt: skip
    g = torch.Generator().manual_seed(0)
    shapes = {"W_Q": (2, 8, 4), "W_K": (2, 8, 4), "W_V": (2, 8, 4), "W_O": (2, 4, 8), "b_Q": (2, 4), "b_K": (2, 4),
              "b_V": (2, 4), "b_O": (8,)}  # fmt: skip
    state = {f"blocks.{layer}.attn.{k}": torch.randn(s, generator=g) for layer in range(2) for k, s in shapes.items()}
    state |= {"embed.W_E": torch.randn(20, 8, generator=g), "pos_embed.W_pos": torch.randn(16, 8, generator=g),
              "unembed.W_U": torch.randn(8, 20, generator=g), "unembed.b_U": torch.zeros(20)}  # fmt: skip
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": "transformer_lens"}))
    model = interp.load_model(str(tmp_path))
    made = interp.generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=4, temperature=0)
    text = torch.tensor([[1, 2, 3]])
    for _ in range(4):
        with torch.no_grad():
            text = torch.cat([text, model(text)[:, -1:].argmax(-1)], 1)
    assert list(made.tokens().token) == text[0, 3:].tolist()
