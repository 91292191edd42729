"""Experts of a mixture, against a mixture written by hand: one token and one expert at a time, on the plain model."""

import json

import numpy as np
import pytest
import torch
from einops import einsum
from torch.testing import assert_close

N_LAYERS, N_CHOSEN = 2, 2
SILU = torch.nn.functional.silu


def config_of(family, n_tokens):
    import transformers

    ids = {"vocab_size": n_tokens, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"num_hidden_layers": N_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
             "intermediate_size": 48, "max_position_embeddings": 32, "initializer_range": 0.3}  # fmt: skip
    chosen = {"num_experts_per_tok": N_CHOSEN}
    small = chosen | {"moe_intermediate_size": 24}
    latent = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
              "n_shared_experts": 1, "first_k_dense_replace": 0, "num_key_value_heads": 4}  # fmt: skip
    own = {
        "Mixtral": chosen | {"num_local_experts": 4},
        "Qwen2Moe": small | {"num_experts": 4, "shared_expert_intermediate_size": 40},
        "Qwen3Moe": small | {"num_experts": 4, "head_dim": 8, "norm_topk_prob": True},
        "DeepseekV2": small | latent | {"n_routed_experts": 4, "first_k_dense_replace": 1},
        "DeepseekV3": small | latent | {"n_routed_experts": 8, "n_group": 2, "topk_group": 1},
        "GptOss": chosen | {"num_local_experts": 4, "head_dim": 8},
    }[family]
    return getattr(transformers, f"{family}Config")(**(sizes | ids | own))


@pytest.fixture(scope="module")
def folder_of(tiny_dir, tmp_path_factory):
    """A random model of a family as a directory."""
    made = {}

    def make(family):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config_of(family, len(tokenizer)))
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if "bias" in name:  # which are 0 in a new model
                    torch.nn.init.normal_(tensor, std=0.2)
            model.save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return make


@pytest.fixture(scope="module")
def mixtral(folder_of):
    from interp.decoder.loading import load_model

    return load_model(str(folder_of("Mixtral")), dtype="float64")


@pytest.fixture(scope="module")
def prompts():
    """Six prompts of two lengths, each with two reads."""
    from interp.data.tasks import Prompt, Task

    rows = torch.randint(1, 200, (6, 9), generator=torch.Generator().manual_seed(2)).tolist()
    rows = [row if number % 2 else row[:7] for number, row in enumerate(rows)]
    return Task("random", [Prompt(row, [(2, row[3]), (len(row) - 2, row[-1])]) for row in rows])


def chosen_by_hand(family, logits, bias, forbidden):
    """Expert -> weight, of one token."""
    k = N_CHOSEN
    if family == "DeepseekV3":  # sigmoid; the better of two groups; the bias is for the choice alone
        scores = logits.sigmoid()
        rank = (scores + bias).tolist()
        if forbidden is not None:
            rank[forbidden] = -1e9
        groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
        group = max(groups, key=lambda group: sum(sorted(rank[e] for e in group)[-2:]))
        best = sorted(group, key=lambda e: -rank[e])[:k]
        total = sum(scores[e] for e in best)
        return {e: scores[e] / total * 2.5 for e in best}
    if forbidden is not None:
        logits = logits.index_fill(0, torch.tensor(forbidden), -torch.inf)
    probs = logits.softmax(0)
    best = sorted(range(len(probs)), key=lambda e: -probs[e])[:k]
    total = 1 if family in ("Qwen2Moe", "DeepseekV2") else sum(probs[e] for e in best)
    return {e: probs[e] / total for e in best}


def by_hand(family, block, change, seen):
    """The forward of a mixture: `change` is (method, expert) or None; what each expert writes to each token into
    `seen`. The mean is given in place of the method."""

    def expert(e, x):
        if family == "GptOss":
            gate_up = x @ block.experts.gate_up_proj[e] + block.experts.gate_up_proj_bias[e]
            gate, up = gate_up[::2].clamp(max=7), gate_up[1::2].clamp(-7, 7)
            inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
            return inner @ block.experts.down_proj[e] + block.experts.down_proj_bias[e]
        gate, up = (block.experts.gate_up_proj[e] @ x).chunk(2)
        return block.experts.down_proj[e] @ (SILU(gate) * up)

    def mlp(module, x):
        return module.down_proj(SILU(module.gate_proj(x)) * module.up_proj(x))

    def forward(hidden):
        router = block.router if family == "GptOss" else block.gate
        method, target = change or (None, None)
        out = torch.zeros_like(hidden)
        for at in [(row, pos) for row in range(hidden.shape[0]) for pos in range(hidden.shape[1])]:
            x = hidden[at]
            logits = router.weight @ x + (router.bias if family == "GptOss" else 0)
            bias = getattr(router, "e_score_correction_bias", None)
            weights = chosen_by_hand(family, logits, bias, target if method == "forbid" else None)
            if method == "force" and target not in weights:
                weights[target] = weights.pop(min(weights, key=weights.get))
            for e, weight in weights.items():
                written = weight * expert(e, x)
                seen.setdefault((*at, e), written)
                if e == target and method != "forbid" and method != "force":
                    written = method if isinstance(method, torch.Tensor) else torch.zeros_like(x)
                out[at] += written
            if family == "Qwen2Moe":
                out[at] += torch.sigmoid(block.shared_expert_gate(x)) * mlp(block.shared_expert, x)
            if family.startswith("Deepseek"):
                out[at] += mlp(block.shared_experts, x)
        return (out, None) if family == "GptOss" else out

    return forward


@torch.no_grad()
def loss_by_hand(family, hf, task, layer, change):
    """Mean loss of each prompt with one mixture by hand, and what its experts wrote to each token of each prompt."""
    losses, wrote = [], {}
    block = hf.model.layers[layer].mlp
    for number, prompt in enumerate(task.prompts):
        seen = {}
        block.forward = by_hand(family, block, change, seen)
        log_probs = hf(torch.tensor([prompt.clean_tokens])).logits[0].log_softmax(-1)
        del block.forward
        losses.append(-sum(log_probs[pos, token] for pos, token in prompt.targets) / len(prompt.targets))
        wrote |= {(number, pos, e): written for (_, pos, e), written in seen.items()}
    return torch.stack(losses), wrote


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe", "DeepseekV2", "DeepseekV3", "GptOss"])
def test_ablations_of_experts_equal_a_mixture_by_hand(family, folder_of, prompts):
    from transformers import AutoModelForCausalLM

    import interp

    folder = str(folder_of(family))
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
def test_every_site_of_experts_is_causal_and_reading_it_changes_nothing(family, folder_of):
    from interp.decoder.hooks import captured, edited
    from interp.decoder.loading import load_model

    model = load_model(str(folder_of(family)))
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


def test_routing_counts_the_tokens_of_each_class(mixtral, tiny_text):
    import interp
    from interp.data.classes import classes, text_task
    from interp.decoder.hooks import captured

    task = text_task(mixtral, str(tiny_text), n=40, context=16)
    kinds = classes(mixtral, task)
    prompt, pos, _, _ = task.reads()
    with torch.no_grad(), captured(mixtral, ["*.expert_indices", "*.router_probs"]) as cache:
        mixtral(task.tokens("clean"))
    for at, step in (("token", 1), ("read", 0)):
        found = interp.routing(mixtral, task, classes=kinds, at=at)
        table = found.table()
        assert list(dict.fromkeys(table["class"])) == ["all", *kinds]
        assert np.allclose(table.groupby(["layer", "class"]).share.sum(), N_CHOSEN)
        for name, mask in kinds.items():
            chosen = cache["blocks.1.mlp.hook_expert_indices"][prompt[mask], pos[mask] + step]
            probs = cache["blocks.1.mlp.hook_router_probs"][prompt[mask], pos[mask] + step]
            row = table[(table.component == "L1E2") & (table["class"] == name)].iloc[0]
            assert row.n == mask.sum() and row.ci_low <= row.share <= row.ci_high
            assert_close(
                (row.share, row["prob"]), ((chosen == 2).any(1).double().mean().item(), probs[:, 2].mean().item())
            )
            layer = found.layers[(found.layers.layer == 1) & (found.layers["class"] == name)].iloc[0]
            assert_close(layer.entropy, -einsum(probs, probs.log(), "t e, t e -> t").mean().item())


def test_routing_is_of_the_edited_run_and_is_kept(mixtral, tiny_text, tmp_path):
    import interp
    from interp.causal.edits import parse
    from interp.lenses.routing import Routing

    def forbid(logits):
        return logits.index_fill(2, torch.tensor(3), -torch.inf)

    found = interp.routing(mixtral, str(tiny_text), n=8, context=16, edits={"0.router_logits": forbid})
    table = found.table()
    assert (table[table.component == "L0E3"].share == 0).all() and (table[table.component == "L1E3"].share > 0).all()
    without = interp.routing(mixtral, str(tiny_text), n=8, context=16, edits=parse(mixtral, "L0E3=0")).table()
    clean = interp.routing(mixtral, str(tiny_text), n=8, context=16).table()
    others = (clean.layer == 0) & (clean.component != "L0E3")
    assert (without[without.component == "L0E3"].share == 0).all()  # and nobody has got its tokens
    assert without[others].share.equals(clean[others].share)
    found.save(tmp_path)
    again = Routing.load(tmp_path)
    assert again.rows.equals(found.rows) and again.layers.equals(found.layers) and again.about == found.about
    assert len(found.figure().data) == 2  # a panel, and the line of experts all alike


def test_routing_asks_for_a_mixture_and_for_tokens_that_are_there(mixtral, tiny_model, tiny_text, pairs):
    import interp
    from interp.errors import InputError

    with pytest.raises(InputError, match="has no experts that can be taken apart"):
        interp.routing(tiny_model, str(tiny_text))
    with pytest.raises(InputError, match="do not stand in its prompts: use at read"):
        interp.routing(mixtral, pairs)
    assert (interp.routing(mixtral, pairs, at="read").rows.n == len(pairs)).all()


def test_effects_by_class_are_a_panel_a_class(mixtral, tiny_text):
    import interp
    from interp.data.classes import classes, text_task
    from interp.errors import InputError
    from interp.plots import component_grid, effects, one_view

    task = text_task(mixtral, str(tiny_text), n=4, context=16)
    kinds = classes(mixtral, task, ["punctuation", "word_start"])
    found = interp.ablate(mixtral, task, components="experts", method="zero", classes=kinds)
    figure = found.by_class()
    assert [list(trace.y) for trace in figure.data] == [[f"L{layer}E{e}" for layer in (0, 1) for e in range(4)]] * 3
    assert [note.text.split("<br>")[0] for note in figure.layout.annotations[:3]] == [
        "all",
        "punctuation",
        "word_start",
    ]
    grid = component_grid(one_view(found.table()))
    assert grid.columns == ["E0", "E1", "E2", "E3"] and grid.rows == ["L0", "L1"]
    assert effects(found.table()).layout.xaxis.title.text == "expert"
    with pytest.raises(InputError, match="not broken down by class"):
        interp.ablate(mixtral, task, components="L0E0", method="zero").by_class()


def test_commands_speak_of_experts(folder_of, tiny_text, tmp_path, capsys, monkeypatch):
    from interp.cli import main

    monkeypatch.chdir(tmp_path)
    folder = str(folder_of("Mixtral"))
    assert main(["model", "info", folder]) == 0
    told = capsys.readouterr().out
    assert "4 experts, 2 for a token, in layers 0, 1" in told and "blocks.1.mlp.hook_expert_indices" in told
    assert main(["experts", "--model", folder, "--text", str(tiny_text), "--n", "6", "--out", "load"]) == 0
    told = capsys.readouterr().out
    assert "experts all alike: 0.500" in told and "L1E3" in told and "layer 1: entropy" in told
    run = json.loads((tmp_path / "workspace/runs/load/run.json").read_text())
    assert run["kind"] == "experts" and run["status"] == "done"
    assert "<h2>Entropy of the routers</h2>" in (tmp_path / "workspace/runs/load/report.html").read_text()
    (tmp_path / "a.yaml").write_text(
        f"model: {folder}\ntask: text:{tiny_text}\nn: 4\ncomponents: experts\nmethod: [zero, forbid]\n"
        "classes: digit,word_start\n"
    )
    assert main(["ablate", "a.yaml", "--out", "effects"]) == 0
    import interp

    rows = interp.Effects.load(tmp_path / "workspace/runs/effects").table()
    assert set(rows.method) == {"zero", "forbid"} and set(rows.component) == {
        f"L{m}E{e}" for m in (0, 1) for e in range(4)
    }
    assert (
        main(["ablate", "--model", folder, "--task", f"text:{tiny_text}", "--components", "heads", "--method", "force"])
        == 2
    )
    assert 'method force given for "L0H0"' in capsys.readouterr().err
    assert main(["experts", "--model", "bundled", "--text", str(tiny_text), "--out", "no"]) == 2
    assert "has no experts" in capsys.readouterr().err and not (tmp_path / "workspace/runs/no").exists()
