"""Experts of a mixture, against a mixture written by hand."""

import pytest
import torch
from mixtures import N_CHOSEN, N_LAYERS, loss_by_hand
from torch.testing import assert_close


@pytest.fixture(scope="module")
def prompts():
    """Six prompts of two lengths, each with two reads."""
    from interp.data.tasks import Prompt, Task

    rows = torch.randint(1, 200, (6, 9), generator=torch.Generator().manual_seed(2)).tolist()
    rows = [row if number % 2 else row[:7] for number, row in enumerate(rows)]
    return Task("random", [Prompt(row, [(2, row[3]), (len(row) - 2, row[-1])]) for row in rows])


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe", "DeepseekV2", "DeepseekV3", "GptOss"])
def test_ablations_of_experts_equal_a_mixture_by_hand(family, mixture_dir, prompts):
    from transformers import AutoModelForCausalLM

    import interp

    folder = str(mixture_dir(family))
    model = interp.load_model(folder, dtype="float64")
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    hf.config._experts_implementation = "eager"
    layer, n = N_LAYERS - 1, model.mixtures[N_LAYERS - 1].n
    names = [f"L{layer}E{e}" for e in range(min(n, 4))]
    clean, wrote = loss_by_hand(family, hf, prompts, layer, None)
    used = {e for _, _, e in wrote}
    means = {e: torch.stack([w for (_, _, of), w in wrote.items() if of == e]).mean(0) for e in used}
    found = interp.ablate(model, prompts, components=names, method=["zero", "mean", "forbid", "force"], metric="loss")
    slow = family in ("GptOss", "DeepseekV2", "DeepseekV3")  # hooks that round to float32; latent keys and values
    assert bool(found.about["slow_because"]) == slow
    assert_close(found.baseline["loss"], clean.float().numpy(), atol=1e-5, rtol=0)  # losses are float32
    for method in ("zero", "mean", "forbid", "force"):
        for row, name in enumerate(names):
            e = int(name[-1])
            change = (means.get(e, method), e) if method == "mean" else (method, e)
            wanted, _ = loss_by_hand(family, hf, prompts, layer, change)
            assert_close(found.values[method, "loss"][row], wanted.float().numpy(), atol=1e-5, rtol=0)
    moved = found.table().groupby("method").effect.apply(lambda effect: effect.abs().max())
    assert (moved > 1e-3).all()


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "DeepseekV3", "GptOss"])
def test_every_site_of_experts_is_causal_and_reading_it_changes_nothing(family, mixture_dir):
    from interp.decoder.hooks import captured, edited
    from interp.decoder.loading import load_model

    model = load_model(str(mixture_dir(family)))
    tokens = torch.randint(1, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    mixture, sites = model.mixtures[1], [f"1.{site}" for site in ("router_logits", "expert_weights", "expert_out")]
    n = mixture.n
    with torch.no_grad():
        clean = model(tokens)
        with captured(model, [*sites, "1.router_probs", "1.expert_indices"]) as cache:
            assert_close(model(tokens), clean, atol=1e-5, rtol=0)  # each expert's output alone, then their sum
        names = ("router_logits", "router_probs", "expert_weights", "expert_indices", "expert_out")
        logits, probs, weights, indices, out = (cache[f"blocks.1.mlp.hook_{name}"] for name in names)
        assert logits.shape == weights.shape == probs.shape == (2, 7, n) and out.shape == (2, 7, n, 32)
        assert indices.shape == (2, 7, N_CHOSEN) == (2, 7, mixture.n_chosen)
        assert_close(probs, logits.softmax(-1))
        sent = torch.zeros(2, 7, n, dtype=torch.bool).scatter(2, indices.long(), True)
        assert torch.equal(sent, weights != 0) and torch.equal(sent, (out != 0).any(-1))
        for site in sites:
            with edited(model, {site: lambda value: value.clone()}):
                assert_close(model(tokens), clean, atol=1e-5, rtol=0)
            with edited(model, {site: lambda value: value + torch.randn_like(value)}):
                assert (model(tokens) - clean).abs().max() > 1e-3
        with edited(model, {"1.router_logits": lambda value: value.index_fill(2, torch.tensor(1), -torch.inf)}):
            with captured(model, "1.expert_indices") as cache:
                model(tokens)
        assert not (cache["blocks.1.mlp.hook_expert_indices"] == 1).any() and (indices == 1).any()
        assert torch.equal(model(tokens), clean)


def test_what_cannot_be_edited_is_refused_by_name(mixtral):
    from interp.decoder.hooks import edited
    from interp.errors import InputError

    for site, other in [("1.router_probs", "1.router_logits"), ("1.expert_indices", "1.expert_weights")]:
        with pytest.raises(InputError, match=f'"{site}" can be read and not edited: edit {other}'):
            edited(mixtral, {site: torch.zeros_like}).__enter__()
    assert not {"1.router_probs", "1.expert_indices"} & {site.replace("blocks.", "") for site in mixtral.sites}


def test_an_edit_by_name_does_what_the_ablation_does(mixtral, prompts):
    from interp import ablate
    from interp.causal.edits import parse
    from interp.decoder.hooks import captured, edited

    zeroed = ablate(mixtral, prompts, components="L0E1", method="zero", metric="loss").values["zero", "loss"][0]
    for number, prompt in enumerate(prompts.prompts):
        with torch.no_grad(), edited(mixtral, parse(mixtral, "L0E1=0")):
            log_probs = mixtral(torch.tensor([prompt.clean_tokens]))[0].log_softmax(-1)
        loss = -sum(log_probs[pos, token] for pos, token in prompt.targets) / len(prompt.targets)
        assert abs(loss.item() - zeroed[number]) < 1e-5
    tokens = torch.tensor([prompts.prompts[1].clean_tokens])
    with torch.no_grad(), captured(mixtral, ["0.expert_out", "0.mlp_out"]) as before:
        mixtral(tokens)
    with torch.no_grad(), captured(mixtral, "0.mlp_out") as after, edited(mixtral, parse(mixtral, "L0E1*0.5")):
        mixtral(tokens)
    half = before["blocks.0.hook_mlp_out"] - before["blocks.0.mlp.hook_expert_out"][:, :, 1] / 2
    assert_close(after["blocks.0.hook_mlp_out"], half)
    with torch.no_grad(), captured(mixtral, "0.expert_out") as cache, edited(mixtral, parse(mixtral, "L0E1=0.3")):
        mixtral(tokens)  # of more experts than the router chooses
    assert (cache["blocks.0.mlp.hook_expert_out"] != 0).any(-1)[0].sum(-1).max() == N_CHOSEN + 1


def test_the_short_way_gives_what_whole_passes_give(mixtral, prompts, monkeypatch):
    from interp import ablate
    from interp.causal import sweeps
    from interp.causal.resuming import ShortCuts

    given = {"components": "experts,L0E1+L1E2", "method": ["zero", "mean", "shuffle", "forbid", "force"]}
    given |= {"metric": "loss", "position": ["all", 3]}
    quick = ablate(mixtral, prompts, **given)
    monkeypatch.setattr(sweeps, "short_cuts", lambda model, tokens: ShortCuts(False, False, "on purpose"))
    slow = ablate(mixtral, prompts, **given)
    assert slow.about["slow_because"] == "on purpose" and not quick.about["slow_because"]
    for key, values in quick.values.items():
        assert_close(values, slow.values[key], atol=1e-5, rtol=0)  # kept in float32
    rows = quick.rows[(quick.rows.method == "zero") & (quick.rows.position == "all")]
    assert rows.kind.value_counts().to_dict() == {"expert": 8, "group": 1, "random": 10}


def test_an_expert_at_a_position_is_ablated_there_alone(mixtral, prompts):
    from interp import ablate

    found = ablate(mixtral, prompts, components="L1.experts", method=["zero", "force"], metric="loss", position=[0, 2])
    first, read = found.rows.position.astype(str) == "0", found.rows.position.astype(str) == "2"
    assert (found.rows[first].effect.abs() < 1e-6).all()  # of the last layer, whose position 0 is not read
    assert (found.rows[read].effect.abs() > 1e-4).any()


def test_patching_every_expert_gives_back_what_the_mixture_wrote(mixtral):
    from interp import patch
    from interp.data.tasks import Prompt, Task

    rows = torch.randint(1, 200, (4, 2, 7), generator=torch.Generator().manual_seed(3)).tolist()
    task = Task("pairs", [Prompt(clean, [(6, 5)], corrupted, 6) for clean, corrupted in rows])
    by_expert = patch(mixtral, task, site="expert_out", by=("layer", "expert"))
    assert list(by_expert.rows.component) == [f"L{layer}E{e}" for layer in (0, 1) for e in range(4)]
    whole = patch(mixtral, task, site="expert_out", by=("layer",))
    mixture = patch(mixtral, task, site="mlp_out", by=("layer",))
    for key, values in whole.values.items():
        assert_close(values, mixture.values[key], atol=1e-5, rtol=0)  # Mixtral has no shared expert


def test_a_mean_of_no_token_is_refused_where_it_is_asked_for(mixtral, prompts):
    from interp import ablate
    from interp.causal.interventions import Routed
    from interp.errors import InputError

    out = torch.ones(1, 2, 4, 8)
    with pytest.raises(InputError, match="no reference token is sent to expert 1 of 0.expert_out"):
        Routed("blocks.0.mlp.hook_expert_out", 1).write(out, torch.full((1, 2, 8), torch.nan))
    out[:, :, 1] = 0  # nothing is sent there: nothing is put there
    Routed("blocks.0.mlp.hook_expert_out", 1).write(out, torch.full((1, 2, 8), torch.nan))
    assert not out.isnan().any()
    own = ablate(mixtral, prompts, components="L0.experts", method="mean", metric="loss", reference=prompts)
    assert (own.rows.effect.abs() > 0).any()


def test_a_wrong_ablation_of_experts_is_one_line(mixtral, prompts, tiny_model, pairs):
    from interp import ablate
    from interp.errors import InputError, UnknownComponent

    with pytest.raises(InputError, match='method forbid given for "L0H0": it is of experts'):
        ablate(mixtral, prompts, components="L0H0", method="forbid", metric="loss")
    with pytest.raises(InputError, match="forbids every expert of layer 1: leave one"):
        ablate(mixtral, prompts, components="experts-L0E0", method="forbid", metric="loss")
    with pytest.raises(InputError, match="every expert of layer 0 is forbidden to a token"):
        mixtral.mixtures[0].rule(torch.full((1, 4), -torch.inf))
    with pytest.raises(UnknownComponent, match='no component "L0E7"'):
        ablate(mixtral, prompts, components="L0E7", metric="loss")
    with pytest.raises(UnknownComponent, match='no component "experts"'):
        ablate(tiny_model, pairs, components="experts")
