"""Parts that sum to the logits, and each part against the formula of the last layer norm written out."""

import numpy as np
import pytest
import torch

FAMILIES = ["gpt2", "llama", "mixtral", "opt", "neox"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, make_model):
    return jolted(make_model(request.param))


def jolted(model):
    """The same with weights of norms and biases that are not 1 and 0, as trained ones are."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.bridge.parameters():
            if value.ndim == 1:
                value += 0.3 * torch.randn(value.shape, generator=draw)
    return model


@pytest.fixture(scope="module")
def task():
    """Seven prompts of two lengths; two of them are read twice."""
    from interp.data.tasks import Prompt, Task

    draw = torch.Generator().manual_seed(3)

    def tokens(n):
        return torch.randint(1, 200, (n,), generator=draw).tolist()

    lengths = [9, 6, 9, 6, 9, 9, 6]
    return Task("two lengths", [
        Prompt(tokens(n), [(n - 1, tokens(1)[0])] + [(3, tokens(1)[0])] * (n == 6), wrong_token=tokens(1)[0])
        for n in lengths
    ])  # fmt: skip


def logit_difference(model, task, edits=None):
    """[prompt], each alone."""
    import interp

    found = []
    for prompt in task.prompts:
        with torch.no_grad(), interp.edited(model, edits or {}):
            logits = model(torch.tensor([prompt.clean_tokens]))[0]
        found.append(np.mean([(logits[at, a] - logits[at, prompt.wrong_token]).item() for at, a in prompt.targets]))
    return np.array(found)


def assert_sums(found, wanted):
    np.testing.assert_allclose(found.values.astype(np.float64).sum(0), wanted, atol=1e-4)  # what the issue promises
    np.testing.assert_allclose(found.total, wanted, atol=1e-5)


@pytest.mark.parametrize("by", ["component", "layer", "neuron"])
def test_the_parts_sum_to_the_logit_difference(model, task, by):
    import interp

    if by == "neuron" and model.d_mlp is None:
        with pytest.raises(interp.InputError, match="no neurons"):
            interp.attribute_logits(model, task, by=by)
        return
    found = interp.attribute_logits(model, task, by=by)
    assert_sums(found, logit_difference(model, task))
    rows = found.table()
    np.testing.assert_allclose(rows["contribution"].sum(), found.total.mean(), atol=1e-4)
    assert (rows["ci_low"] <= rows["contribution"] + 1e-9).all() and (rows["n"] == 7).all()


def test_neurons_sum_to_their_mlp_and_heads_to_their_layer(tiny_model, pairs):
    import interp

    rows = {by: interp.attribute_logits(tiny_model, pairs, by=by).table() for by in ("component", "neuron", "layer")}
    for layer in range(2):
        mlp = rows["component"].set_index("component")["contribution"]
        neurons = rows["neuron"].query(f"kind == 'neuron' and layer == {layer}")["contribution"]
        assert len(neurons) == tiny_model.d_mlp and neurons.sum() == pytest.approx(mlp[f"L{layer}.mlp"], abs=1e-5)
        whole = rows["layer"].set_index("component")["contribution"][f"L{layer}.attn"]
        heads = sum(mlp[f"L{layer}H{head}"] for head in range(4)) + mlp[f"L{layer}.b_O"]
        assert heads == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_part_is_the_formula_of_the_last_norm_with_its_scale_held(make_model, family):
    import interp

    model, ids = jolted(make_model(family)), [0, 17, 45, 120, 33]
    found = interp.attribute_logits(model, ids, answer=7, wrong=11, position=2).table().set_index("component")
    sites = ["1.z", "2.mlp_out", "2.resid_post"]
    with torch.no_grad(), interp.captured(model, sites) as cache:
        model(torch.tensor([ids]))
    z, mlp, x = (cache[name][0, 2].double() for name in cache)
    plain = model.plain.double()
    norm = plain.transformer.ln_f if family == "gpt2" else plain.model.norm
    mlp = mlp - plain.transformer.h[2].mlp.c_proj.bias if family == "gpt2" else mlp
    head = model.bridge.blocks[1].attn.W_O[3].double().T @ z[3]
    unembed = plain.lm_head.weight[7] - plain.lm_head.weight[11]
    for name, written in (("L1H3", head), ("L2.mlp", mlp)):
        if family == "gpt2":
            scale = (x.var(unbiased=False) + norm.eps).sqrt()
            value = ((written - written.mean()) / scale * norm.weight) @ unembed
        else:
            value = (written / (x.pow(2).mean() + norm.variance_epsilon).sqrt() * norm.weight) @ unembed
        assert found["contribution"][name] == pytest.approx(value.item(), abs=1e-5)
    if family == "gpt2":
        assert found["contribution"]["ln_final.b"] == pytest.approx((norm.bias @ unembed).item(), abs=1e-5)
    assert found["ci_low"].isna().all()  # one prompt has no interval


def test_of_one_answer_it_is_its_logit_and_by_default_the_top_token(tiny_model):
    import interp

    ids = [0, 17, 45]
    with torch.no_grad():
        logits = tiny_model(torch.tensor([ids]))[0, -1]
    assert interp.attribute_logits(tiny_model, ids, answer=9).total[0] == pytest.approx(logits[9].item(), abs=1e-5)
    assert interp.attribute_logits(tiny_model, ids).total[0] == pytest.approx(logits.max().item(), abs=1e-5)


def test_an_edited_run_sums_to_its_own_logits(tiny_model, pairs):
    import interp

    steer = torch.linspace(-1, 1, 32)
    edits = {"0.z": lambda z: z * 0.0, "0.resid_post": lambda x: x + steer, "1.attn_out": lambda x: x * 0.5}
    found = interp.attribute_logits(tiny_model, pairs, edits=edits)
    assert_sums(found, logit_difference(tiny_model, pairs, edits))
    rows = found.table().set_index("component")["contribution"]
    assert rows[[f"L0H{head}" for head in range(4)]].abs().max() == 0 and rows["edits"] != 0
    only = interp.attribute_logits(tiny_model, pairs, edits={"1.z": lambda z: z * 0.5}).table()
    assert only.set_index("component")["contribution"]["edits"] == pytest.approx(0, abs=1e-5)  # the heads wrote it


@pytest.mark.parametrize(
    ("site", "where"),
    [
        ("blocks.0.hook_resid_post", {}),
        ("blocks.1.hook_resid_mid", {}),
        ("blocks.1.hook_attn_out", {}),
        ("blocks.1.attn.hook_z", {}),
        ("blocks.0.hook_mlp_out", {}),
        ("blocks.1.hook_resid_mid", {"out_site": "blocks.1.hook_mlp_out", "skip": True}),
    ],
)
def test_latents_their_bias_and_error_stand_for_what_the_dictionary_reads(
    tiny_model, pairs, make_dictionary, site, where
):
    import interp

    dct = make_dictionary(site=site, **where)
    rows, plain = (
        interp.attribute_logits(tiny_model, pairs, dictionaries=given).table() for given in ({"demo": dct}, {})
    )
    np.testing.assert_allclose(rows["contribution"].sum(), plain["contribution"].sum(), atol=1e-4)
    latents = rows[rows["kind"] == "latent"]
    assert len(latents) == 64 and (latents["contribution"] != 0).any()
    kept = rows[rows["group"] != "demo"].set_index("component")["contribution"]
    same = plain.set_index("component")["contribution"][kept.index]
    np.testing.assert_allclose(kept, same, atol=1e-6)
    gone = set(plain["component"]) - set(kept.index)
    attention = {f"L1H{head}" for head in range(4)}
    below = {"embed", "pos_embed", "L0.b_O", "L0.mlp", "L0.b_out"} | {f"L0H{head}" for head in range(4)}
    wanted = {
        "blocks.0.hook_resid_post": below, "blocks.1.hook_resid_mid": below | attention | {"L1.b_O"},
        "blocks.1.hook_attn_out": attention | {"L1.b_O"}, "blocks.1.attn.hook_z": attention,
        "blocks.0.hook_mlp_out": {"L0.mlp", "L0.b_out"}, "blocks.1.hook_mlp_out": {"L1.mlp", "L1.b_out"},
    }  # fmt: skip
    assert gone == wanted[where.get("out_site", site)]


def test_one_latent_is_its_activation_times_its_row_along_the_direction(tiny_model, pairs, make_dictionary):
    import interp
    from interp.lenses.attribution import direction

    dct = make_dictionary(site="blocks.1.hook_resid_post")
    found = interp.attribute_logits(tiny_model, pairs, dictionaries={"demo": dct})
    with torch.no_grad(), interp.captured(tiny_model, "1.resid_post") as cache:
        tiny_model(pairs.tokens())
    x = cache["blocks.1.hook_resid_post"][:, 8]
    _, _, answer, wrong = pairs.reads()
    u, _ = direction(tiny_model, x, answer, wrong)
    wanted = dct.encode(x)[:, 5] * (u.float() @ dct.W_dec[5])
    at = found.table().query("component == 'demo/5'").index[0]
    np.testing.assert_allclose(found.values[at], wanted, atol=1e-5)


def test_where_a_norm_follows_attention_and_mlp_its_scale_is_held_too(tiny_dir, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

    import interp

    def made(cap):
        tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
        torch.manual_seed(0)
        config = Gemma2Config(
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, head_dim=8,
            intermediate_size=48, vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.2,
            bos_token_id=0, eos_token_id=0, pad_token_id=0, final_logit_softcapping=cap,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return interp.load_model(str(tmp_path))

    ids = [5, 17, 45, 120, 33]
    model = jolted(made(None))
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
    for by in ("component", "neuron"):
        found = interp.attribute_logits(model, ids, answer=7, wrong=11, by=by)
        assert_sums(found, [(logits[7] - logits[11]).item()])
        assert found.table()["contribution"].abs().max() > 0.05
    with pytest.raises(interp.InputError, match="caps its logits"):
        interp.attribute_logits(made(30.0), ids)


def test_what_cannot_be_is_refused_by_name(tiny_model, pairs, make_dictionary, monkeypatch):
    import interp
    from interp.decoder import parts

    def refused(message, prompt=pairs, **settings):
        with pytest.raises(interp.InputError, match=message):
            interp.attribute_logits(tiny_model, prompt, **settings)

    refused('no parts "heads"', by="heads")
    both = {"a": make_dictionary(site="blocks.0.hook_resid_post"), "b": make_dictionary(site="blocks.0.hook_mlp_out")}
    refused('"a" and "b" both explain what layer 0', dictionaries=both)
    refused("not written to the residual stream", dictionaries={"q": make_dictionary(site="blocks.0.attn.hook_q")})
    two = make_dictionary(d_in=64, site=["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
    refused("several sites", dictionaries={"two": two})
    refused("position 9 given", prompt=[1, 2, 3], position=9)
    monkeypatch.setattr(parts, "head_bias", lambda model, layer: torch.linspace(0, 1, 32))
    refused("do not add up")


def test_saved_and_loaded_it_is_the_same_and_draws(tiny_model, pairs, tmp_path):
    import interp

    found = interp.attribute_logits(tiny_model, pairs)
    found.save(tmp_path)
    again = interp.Attribution.load(tmp_path)
    assert again.table().to_dict() == found.table().to_dict() and (again.values == found.values).all()
    assert np.shape(found.figure().data[0].z) == (2, 7)  # heads, MLP and the two biases of each layer
    bars = found.by_layer().figure().data[0]
    assert list(bars.y) == ["embed", "L0.attn", "L0.mlp", "L1.attn", "L1.mlp"]  # its biases are 0
    assert len(interp.attribute_logits(tiny_model, pairs, by="neuron").figure().data[0].y) == 30
