"""What is built on hooks, on families with a twist: factors on what is written and on logits, norms without weights,
one norm for two, norms after what is written, clipped values, experts of another form."""

import families
import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

TOKENS = torch.randint(1, 120, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A tiny random model of a family, each loaded once."""
    root, made = tmp_path_factory.mktemp("twists"), {}

    def of(name, dtype="float32"):
        from interp import load_model

        folder = root / name.replace("/", "-")
        if not folder.exists():
            families.build(name, folder)
        if (name, dtype) not in made:
            made[name, dtype] = load_model(str(folder), dtype=dtype)
        return made[name, dtype]

    return of


def task():
    from interp.data.tasks import Prompt, Task

    return Task("random", [Prompt(tokens, [(8, 1 + n)], wrong_token=5 + n) for n, tokens in enumerate(TOKENS.tolist())])


@pytest.mark.parametrize("name", ["Granite", "Cohere", "Falcon (7B)", "OLMo", "OLMo 2", "GPT-J", "GLM 4"])
def test_parts_and_neurons_sum_to_the_logits_of_plain_hugging_face(model_of, name):
    from transformers import AutoModelForCausalLM

    from interp import attribute_logits

    model = model_of(name)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model.name).eval()(TOKENS).logits[:, -1]
    wanted = np.array([float(logits[n, 1 + n] - logits[n, 5 + n]) for n in range(3)])
    for by in ("component", "neuron"):
        found = attribute_logits(model, task(), by=by)
        np.testing.assert_allclose(found.values.astype(np.float64).sum(0), wanted, atol=1e-4)  # float32


def test_granites_factor_is_in_what_heads_write(model_of):
    """With a factor of 1 in the config, and none in the weights, every head would write 1 / 0.3 as much."""
    from interp import captured, head_circuits
    from interp.decoder import parts

    model = model_of("Granite")
    with torch.no_grad(), captured(model, ["1.z", "1.attn_out"]) as cache:
        model(TOKENS)
    written = parts.head_outputs(model, 1, cache["blocks.1.attn.hook_z"]).sum(2)
    assert_close(written, cache["blocks.1.hook_attn_out"], atol=1e-5, rtol=0)
    assert head_circuits(model).about["unlike"] == ""


def test_circuits_of_weights_are_refused_where_a_norm_stands_after_attention_alone(model_of):
    from interp import InputError, head_circuits

    with pytest.raises(InputError, match="a norm after attention"):
        head_circuits(model_of("OLMo 2"))


@pytest.mark.parametrize("name", ["Granite", "Granite MoE", "Cohere", "Falcon (7B)", "GPT-OSS", "Llama 4 (text)"])
def test_a_direction_is_taken_out_of_every_weight_that_writes(model_of, name, tmp_path):
    """Experts' matrices the other way round and with biases, tied embeddings, factors."""
    from interp.causal.directions import Direction
    from interp.causal.orthogonal import orthogonalise
    from interp.decoder.hooks import captured, edited

    model = model_of(name)
    vector = torch.nn.functional.normalize(
        torch.randn(model.d_model, generator=torch.Generator().manual_seed(3)), dim=0
    )
    about = {"model": model.provenance()}
    empty = pd.DataFrame()
    up = Direction(vector, 0.0, "blocks.1.hook_resid_post", "up", "pca", empty, empty, vector[None], about)
    changed = orthogonalise(model, up, tmp_path / "without")
    with torch.no_grad():
        with edited(model, up.ablate(model)):
            wanted = model(TOKENS)
        with captured(changed, "*.resid_post") as stream:
            found = changed(TOKENS)
        assert_close(found, wanted, atol=1e-4, rtol=0)
        assert max(float((x @ vector).abs().max()) for x in stream.values()) < 1e-5


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BLOOM", "OPT", "Gemma 2", "OLMo 2", "Granite", "Mixtral"])
def test_an_edit_of_resid_mid_is_one_of_the_stream(model_of, name):
    """The same as what attention writes changed by as much: the MLP reads it, and it goes on past the MLP."""
    from interp import captured, edited

    model = model_of(name)
    more = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    found = []
    for site in ("0.resid_mid", "0.attn_out"):
        with torch.no_grad(), edited(model, {site: lambda x: x + more}), captured(model, "*.resid_post") as cache:
            found.append((model(TOKENS), cache))
    (logits, stream), (wanted, other) = found
    assert_close(logits, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)
    for site in stream:
        assert_close(stream[site], other[site], atol=1e-5, rtol=1e-5)
    with torch.no_grad(), edited(model, {"0.resid_mid": lambda x: x + more}):
        _, cache = model.extend(TOKENS[:, :5])
        last, _ = model.extend(TOKENS[:, 5:], cache)
    assert_close(last, wanted[:, -1], atol=2e-5 * float(wanted.abs().max()), rtol=0)


def test_clean_put_into_resid_mid_everywhere_is_the_clean_run(model_of):
    """Nothing else reaches what stands above, so all positions together bring back the clean run."""
    from interp import captured, edited

    model, other = model_of("Llama"), (TOKENS + 1) % 120
    with torch.no_grad(), captured(model, "1.resid_mid") as clean:
        wanted = model(TOKENS)
    with torch.no_grad(), edited(model, {"1.resid_mid": lambda _: clean["blocks.1.hook_resid_mid"]}):
        assert_close(model(other), wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["Mixtral", "GPT-OSS"])
@pytest.mark.parametrize("site", ["1.router_logits", "1.expert_weights", "1.expert_out", "0.resid_mid"])
def test_slopes_at_experts_and_in_the_middle_are_finite_differences(model_of, name, site):
    from interp import captured, edited
    from interp.causal.attribution import recorded
    from interp.decoder.sites import full

    model, last = model_of(name, "float64"), "blocks.1.hook_resid_post"
    seen = recorded(model, TOKENS, [full(site)], {})
    weight = torch.randn(seen[last].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad((seen[last] * weight).sum(), seen[full(site)])
    step = 1e-5 * seen[full(site)].detach().norm() * slope / slope.norm()  # no token changes its experts for so little
    ends = []
    for sign in (1, -1):
        with torch.no_grad(), captured(model, last) as cache:
            with edited(model, {site: lambda x, sign=sign: x + sign * step}):
                model(TOKENS)
        ends.append((cache[last] * weight).sum())
    found, wanted = float((slope * step).sum()), float(ends[0] - ends[1]) / 2
    assert found == pytest.approx(wanted, rel=1e-2)  # norms and routers round to float32 in any dtype


def test_what_a_family_does_not_offer_is_refused_with_the_reason(tmp_path, model_of, capsys):
    from interp import captured, routing
    from interp.causal.conformance import check
    from interp.errors import InputError, UnknownSite

    llama4 = model_of("Llama 4 (text)")
    with pytest.raises(UnknownSite, match="1.router_logits.*they are not taken apart"):
        captured(llama4, "1.router_logits").__enter__()
    with pytest.raises(InputError, match="no experts that can be taken apart: its experts are not called with"):
        routing(llama4, task())
    from interp import load_model

    families.build("OLMo", tmp_path / "clipped", clip_qkv=0.5)
    clipped = load_model(str(tmp_path / "clipped"))
    with pytest.raises(UnknownSite, match="they are clipped to 0.5 after the hook point"):
        captured(clipped, "0.v").__enter__()
    assert check(clipped).ok


def test_factors_on_logits_are_in_the_logit_effects_of_a_dictionary(model_of, make_dictionary):
    """Against the slope of centred logits with the last norm's scale held, times that scale."""
    from interp import captured, edited
    from sae.weights import logit_effects

    for name in ("Cohere", "Granite"):
        model = model_of(name)
        dictionary = make_dictionary(d_in=model.d_model, site="blocks.1.hook_resid_post")
        scale = "ln_final.hook_scale"
        with torch.no_grad(), captured(model, ["1.resid_post", scale]) as cache:
            model(TOKENS)
        hidden, held = cache["blocks.1.hook_resid_post"][0, -1], cache[scale][0, -1]
        with torch.no_grad(), edited(model, {scale: lambda _, held=held: held}):
            moved = model.head(hidden + dictionary.W_dec[0]) - model.head(hidden)
        wanted = (moved - moved.mean()) * held
        assert_close(logit_effects(dictionary, model)[0], wanted, atol=1e-4, rtol=1e-4)
