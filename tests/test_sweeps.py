"""The engine against the loop that it replaces: one whole pass of one prompt at a time, with one edit."""

import numpy as np
import pytest
import torch

FAMILIES = ["gpt2", "llama", "mixtral", "opt", "neox"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, make_model):
    """A random model of each family: GPT-2, Llama with grouped keys, experts, OPT, parallel blocks."""
    return make_model(request.param)


@pytest.fixture(scope="module")
def task():
    """Seven prompt pairs of two lengths; one answer at the end."""
    from interp.data.tasks import Prompt, Task

    generator = torch.Generator().manual_seed(3)

    def tokens(n):
        return torch.randint(1, 200, (n,), generator=generator).tolist()

    lengths = [9, 6, 9, 6, 9, 9, 6]
    return Task("two lengths", [Prompt(tokens(n), [(n - 1, tokens(1)[0])], tokens(n), tokens(1)[0]) for n in lengths])


def slowly(model, task, edits, metric, which="clean"):
    """Value [row, prompt]: a whole pass of one prompt, alone, for each row. `edits(row, prompt)` is site -> edit of
    [1, pos, ...]."""
    from interp.data.metrics import METRICS
    from interp.decoder.hooks import edited

    tokens = [torch.tensor([p.clean_tokens if which == "clean" else p.corrupted_tokens]) for p in task.prompts]
    with torch.no_grad():
        clean = [model(torch.tensor([prompt.clean_tokens]))[0] for prompt in task.prompts]
    values = []
    for row in edits:
        line = []
        for number, prompt in enumerate(task.prompts):
            with torch.no_grad(), edited(model, row(number)):
                logits = model(tokens[number])[0]
            at = torch.tensor([pos for pos, _ in prompt.targets])
            answer = torch.tensor([token for _, token in prompt.targets])
            wrong = torch.full_like(answer, -1 if prompt.wrong_token is None else prompt.wrong_token)
            line.append(METRICS[metric](logits[at], answer, wrong, clean[number][at]).mean().item())
        values.append(line)
    return np.array(values)


def put(index, new, positions=slice(None)):
    """An edit that writes `new` to `positions` of [1, pos, index], for each of a list of indices."""

    def edit(value):
        value = value.clone()
        for one in index if isinstance(index, list) else [index]:
            part = value if one is None else value[:, :, one]
            part[:, positions] = new
        return value

    return edit


def assert_same(found, slow):
    np.testing.assert_allclose(found, slow, atol=1e-5, rtol=1e-5)  # float32, other orders of summation


@pytest.mark.parametrize("metric", ["logit_diff", "loss", "kl"])
def test_heads_zeroed_everywhere_equal_the_loop(model, task, metric):
    from interp import ablate

    found = ablate(model, task, components="heads", method="zero", metric=metric)
    rows = [
        lambda number, layer=layer, head=head: {f"{layer}.z": put(head, 0)} for layer in range(3) for head in range(4)
    ]
    assert found.about["slow_because"] == ""
    assert_same(found.values["zero", metric], slowly(model, task, rows, metric))


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "v"])
def test_patching_each_position_equals_the_loop(model, site):
    from interp import patch
    from interp.data.tasks import Prompt, Task
    from interp.decoder.hooks import captured
    from interp.decoder.sites import full

    generator = torch.Generator().manual_seed(4)
    pairs = [torch.randint(1, 200, (2, 7), generator=generator).tolist() for _ in range(3)]
    task = Task("pairs", [Prompt(clean, [(6, 5)], corrupted, 9) for clean, corrupted in pairs])
    found = patch(model, task, site=site, method="denoise")

    def row(layer, pos):
        def edits(number):
            with torch.no_grad(), captured(model, f"{layer}.{site}") as cache:
                model(torch.tensor([task.prompts[number].clean_tokens]))
            given = cache[full(f"{layer}.{site}")]
            return {f"{layer}.{site}": put(None, given[:, [pos]], [pos])}

        return edits

    rows = [row(layer, pos) for layer in range(3) for pos in range(7)]
    assert_same(found.values["denoise", "logit_diff"], slowly(model, task, rows, "logit_diff", which="corrupted"))


def test_several_reads_before_and_after_the_change_equal_the_loop(model, task):
    from dataclasses import replace

    from interp import ablate

    several = [replace(p, targets=[(1, 7), (3, 8), (5, 9)], wrong_token=None) for p in task.prompts]
    many = replace(task, prompts=several)
    found = ablate(model, many, components=["L0.attn", "L1.resid_pre", "L2H3"], method="zero", position=[2, 4])
    rows = [
        lambda number, site=site, index=index, pos=pos: {site: put(index, 0, [pos])}
        for pos in (2, 4)
        for site, index in (("0.attn_out", None), ("1.resid_pre", None), ("2.z", 3))
    ]
    assert_same(found.values["zero", "loss"], slowly(model, many, rows, "loss"))


def test_a_group_and_all_but_a_group_equal_the_loop(model, task):
    from interp import ablate

    found = ablate(model, task, components=[["L0H1", "L2H3"], "heads-L0H1-L2H3", "embed"], method="zero")
    kept = {(0, 1), (2, 3)}

    def some(wanted):
        def edits(number):
            heads = {layer: [head for head in range(4) if ((layer, head) in kept) == wanted] for layer in range(3)}
            return {f"{layer}.z": put(mine, 0) for layer, mine in heads.items() if mine}

        return edits

    rows = [some(True), some(False), lambda number: {"hook_embed": put(None, 0)}]
    table = found.table()
    assert (table.kind == "random").sum() == 20 and list(table.component[:2]) == ["L0H1+L2H3", "heads-L0H1-L2H3"]
    assert_same(found.values["zero", "logit_diff"][:3], slowly(model, task, rows, "logit_diff"))


def test_each_short_cut_taken_away_gives_the_same(model, task, monkeypatch):
    from interp import ablate
    from interp.causal import sweeps
    from interp.causal.resuming import ShortCuts

    settings = {"components": ["heads", "attn"], "method": "resample", "metric": "loss", "position": ["all", 3]}
    fast = ablate(model, task, **settings)
    for cuts in (ShortCuts(True, False, "said"), ShortCuts(False, False, "said")):
        monkeypatch.setattr(sweeps, "short_cuts", lambda model, tokens, cuts=cuts: cuts)
        slow = ablate(model, task, **settings)
        assert slow.about["slow_because"] == "said"
        assert_same(fast.values["resample", "loss"], slow.values["resample", "loss"])


def test_one_at_a_time_gives_the_same_as_stacked(model, task, monkeypatch):
    from interp import ablate
    from interp.causal import sweeps

    stacked = ablate(model, task, components="heads", method="mean")
    monkeypatch.setattr(sweeps, "tokens_at_once", lambda model, length: 1)
    assert_same(
        ablate(model, task, components="heads").values["mean", "logit_diff"], stacked.values["mean", "logit_diff"]
    )


def test_a_model_whose_blocks_do_something_else_when_called_again_takes_the_slow_way(tiny_model, monkeypatch):
    from interp.causal.resuming import short_cuts

    tokens = torch.randint(1, 200, (2, 8))
    assert short_cuts(tiny_model, tokens[:, :7]).why == ""
    counts = iter(range(1000))
    slope = torch.linspace(0, 1, tiny_model.d_model)  # a constant, or a factor, the last norm would take out again
    handle = tiny_model.plain_blocks[1].register_forward_hook(
        lambda module, args, out: (out[0] if isinstance(out, tuple) else out) + next(counts) * slope
    )
    cuts = short_cuts(tiny_model, tokens)
    handle.remove()
    assert not cuts.resumes and not cuts.skips and "whole ones" in cuts.why


def test_native_models_resume_but_compute_all_positions():
    from pathlib import Path

    from interp import load_model
    from interp.causal.resuming import short_cuts

    folder = Path(__file__).parent.parent.parent / "shared" / "models" / "induction"
    if not folder.exists():
        pytest.skip("../shared/models is not here")
    cuts = short_cuts(load_model(str(folder)), torch.randint(0, 50, (2, 8)))
    assert cuts.resumes and not cuts.skips and "keys and values" in cuts.why


def test_a_killed_sweep_goes_on_to_the_same_bits_without_repeating(tiny_model, pairs, tmp_path, monkeypatch):
    from interp import ablate
    from interp.causal import finished, sweeps

    monkeypatch.setattr(finished, "EVERY", 0.0)
    monkeypatch.setattr(sweeps, "tokens_at_once", lambda model, length: 2 * 12 * 9)
    whole = ablate(tiny_model, pairs, components="heads", method=["zero", "mean"])
    stacks = []
    run = sweeps._Batch.run

    def counted(self, stack, *args):
        if len(stacks) == 3:
            raise KeyboardInterrupt
        stacks.append(stack)
        return run(self, stack, *args)

    monkeypatch.setattr(sweeps._Batch, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        ablate(
            tiny_model, pairs, components="heads", method=["zero", "mean"], finished=finished.Finished(tmp_path / "u")
        )
    stacks = [None] * 4  # never 3 again
    again = ablate(
        tiny_model, pairs, components="heads", method=["zero", "mean"], finished=finished.Finished(tmp_path / "u")
    )
    assert len(stacks) - 4 == 2 * 4 - 3  # 2 methods x 8 heads in stacks of 2, three of them done before
    for key in whole.values:
        assert np.array_equal(whole.values[key], again.values[key])


def test_free_memory_sets_the_stack_within_bounds(tiny_model, monkeypatch):
    import os

    from interp.causal import sweeps

    assert 8 <= sweeps.tokens_at_once(tiny_model, 8) <= sweeps.TOKENS_CPU
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # 10,000 bytes
    assert sweeps.tokens_at_once(tiny_model, 8) == 8


@pytest.mark.parametrize("logits", [True, False])
def test_what_is_watched_on_the_plain_model_is_what_hooks_capture(model, logits):
    from interp.decoder.hooks import captured, watch

    sites = [f"blocks.{layer}.hook_resid_{side}" for layer in range(model.n_layers) for side in ("pre", "post")]
    tokens, seen = torch.randint(1, 200, (3, 9), generator=torch.Generator().manual_seed(0)), {}
    with torch.no_grad(), captured(model, sites) as cache:
        expected = model(tokens)
    with torch.no_grad():
        found = watch(
            model, tokens, {site: lambda x, s=site: seen.update({s: x.clone()}) for site in sites}, logits=logits
        )
    assert set(seen) == set(sites)
    for site in sites:
        torch.testing.assert_close(seen[site], cache[site], rtol=1e-5, atol=1e-5)
    if logits:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        assert found is None
    assert model.plain.config._attn_implementation == "eager"
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.plain_blocks)
