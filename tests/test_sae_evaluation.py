"""Metrics against slow definitions on the Hugging Face model, for each kind of dictionary; wrong models refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="module")
def dct(make_dictionary, tiny_store):
    """One that is better than nothing: latents are the principal axes, both ways, of which 8 may fire."""
    x = torch.from_numpy(tiny_store["1.resid_post"][tiny_store.content_rows])
    dct = make_dictionary(k=8, model=dict(tiny_store.model), context=32)
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh
    both = torch.cat([axes, -axes])
    dct.W_enc.copy_(both.T), dct.W_dec.copy_(both), dct.b_dec.copy_(x.mean(0)), dct.b_enc.zero_()
    return dct


@pytest.fixture(scope="module")
def report(dct, tiny_model, tiny_text):
    import sae

    return sae.evaluate(dct, tiny_model, str(tiny_text), context=32, n_tokens=1000, batch_size=5)


def windows_of(model, text, n_tokens):
    from interp.data.text import read_text, windows

    return windows(model, read_text(str(text)), context=32, n_tokens=n_tokens)


@pytest.fixture(scope="module")
def tokens(tiny_model, tiny_text):
    return windows_of(tiny_model, tiny_text, 1000)


def slow_logits(model, tokens, change):
    """By a plain PyTorch hook on the last block of the Hugging Face model; `change` never reaches BOS."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(model.name, attn_implementation="eager").eval()
    kept = {}

    def hook(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        kept["x"] = x
        y = torch.where((tokens == model.bos).unsqueeze(-1), x, change(x))
        return (y, *output[1:]) if isinstance(output, tuple) else y

    hf.transformer.h[1].register_forward_hook(hook)
    with torch.no_grad():
        return hf(tokens).logits.double(), kept["x"]


def test_losses_and_kl_equal_a_slow_loop_on_the_hugging_face_model(report, dct, tiny_model, tokens):
    clean, x = slow_logits(tiny_model, tokens, lambda x: x)
    words = x[tokens != tiny_model.bos]
    changes = {
        "clean": lambda x: x, "sae": dct, "zero": torch.zeros_like, "mean": lambda x: words.mean(0).expand_as(x)
    }  # fmt: skip
    ce, kl = {}, {}
    for name, change in changes.items():
        logits, _ = slow_logits(tiny_model, tokens, change)
        losses, divergences = [], []
        for window in range(len(tokens)):
            for pos in range(tokens.shape[1] - 1):
                if tiny_model.bos in tokens[window, pos : pos + 2]:
                    continue
                losses.append(F.cross_entropy(logits[window, pos], tokens[window, pos + 1]))
                p, q = clean[window, pos].log_softmax(-1), logits[window, pos].log_softmax(-1)
                divergences.append((p.exp() * (p - q)).sum())
        ce[name], kl[name] = float(torch.stack(losses).mean()), float(torch.stack(divergences).mean())
        assert getattr(report, f"ce_{name}") == pytest.approx(ce[name], abs=1e-5)  # float32 forward passes
    assert report.kl == pytest.approx(kl["sae"], abs=1e-5)
    for to in ("zero", "mean"):
        recovered = (ce[to] - ce["sae"]) / (ce[to] - ce["clean"])
        assert getattr(report, f"ce_recovered_{to}") == pytest.approx(recovered, abs=1e-3)
        assert getattr(report, f"kl_recovered_{to}") == pytest.approx(1 - kl["sae"] / kl[to], abs=1e-3)


def test_fit_numbers_equal_their_definitions_over_all_tokens(report, dct, tiny_model, tokens):
    x = slow_logits(tiny_model, tokens, lambda x: x)[1][tokens != tiny_model.bos]
    latents, x_hat = dct.encode(x), dct(x).double()
    x = x.double()
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert report.fvu == pytest.approx(float(fvu), rel=1e-4)
    assert report.mse == pytest.approx(float((x - x_hat).square().sum(1).mean()), rel=1e-4)
    assert report.cosine == pytest.approx(float(F.cosine_similarity(x, x_hat).mean()), rel=1e-4)
    assert report.l2_ratio == pytest.approx(float((x_hat.norm(dim=1) / x.norm(dim=1)).mean()), rel=1e-4)
    bias = x_hat.square().sum() / (x * x_hat).sum()
    assert report.relative_bias == pytest.approx(float(bias), rel=1e-4)
    density = (latents > 0).double().mean(0)
    assert report.l0 == pytest.approx(float((latents > 0).sum(1).double().mean()), abs=0.01)
    assert report.dead == int((density == 0).sum()) and report.n_tokens == len(x)
    assert report.density == pytest.approx(float(density.sort().values[(len(density) - 1) // 2]), abs=1e-3)
    cosine = F.cosine_similarity(dct.W_enc.T, dct.W_dec, dim=1).mean()
    assert report.encoder_cosine == pytest.approx(float(cosine), abs=1e-5)
    assert report.dense_10pct == pytest.approx(float((density > 0.1).double().mean()), abs=0.02)


def test_fvu_of_the_mean_is_one_and_of_a_perfect_dictionary_zero():
    from sae.dictionary import Dictionary
    from sae.evaluation import Fit

    x = torch.randn(1000, 3) + 100
    eye = torch.eye(3)
    both = torch.cat([eye, -eye])
    perfect = Dictionary(both.T.contiguous(), torch.zeros(6), both, torch.zeros(3), k=3, site="s")
    useless = Dictionary(both.T.contiguous(), torch.full((6,), -1e6), both, x.mean(0), k=3, site="s")
    for dct, wanted in ((perfect, 0.0), (useless, 1.0)):
        fit = Fit(dct)
        for batch in x.split(7):
            fit.add(batch)
        assert fit.fvu == pytest.approx(wanted, abs=1e-5)


def test_a_dictionary_on_heads_is_evaluated_over_heads_side_by_side(make_dictionary, tiny_model, tiny_text):
    """The site's activations, by hand, are its heads one after the other."""
    import sae
    from interp.decoder.hooks import captured

    dct = make_dictionary(site="blocks.0.attn.hook_z")
    report = sae.evaluate(dct, tiny_model, str(tiny_text), context=32, n_tokens=500)
    ids = windows_of(tiny_model, tiny_text, 500)
    with torch.no_grad(), captured(tiny_model, ["0.z"]) as cache:
        tiny_model(ids)
    x = torch.cat([cache["blocks.0.attn.hook_z"][:, :, head] for head in range(4)], -1)[ids != tiny_model.bos]
    error = (x - dct(x)).double().square().sum()
    assert report.fvu == pytest.approx(float(error / (x - x.mean(0)).double().square().sum()), rel=1e-4)
    assert math.isfinite(report.ce_recovered_mean)


def test_report_comes_back_and_keeps_what_training_wrote(report, tmp_path):
    import dataclasses
    import json

    from interp.errors import MissingFile
    from sae.evaluation import Report

    path = tmp_path / "metrics.json"
    path.write_text('{"train_fvu": 0.5}')
    with pytest.raises(MissingFile, match="no evaluation"):
        Report.load(path)
    dataclasses.replace(report, ce_recovered_zero=math.nan).save(path)
    again = Report.load(path)
    assert math.isnan(again.ce_recovered_zero) and dataclasses.replace(again, ce_recovered_zero=0.0) == (
        dataclasses.replace(report, ce_recovered_zero=0.0)
    )
    assert json.loads(path.read_text())["train_fvu"] == 0.5
    assert list(report.table().columns) == ["metric", "value"]


def test_another_models_dictionary_is_refused(dct, tiny_model, tiny_text):
    import copy

    import sae
    from interp.errors import InputError, UnknownSite, WrongModel

    other = copy.deepcopy(dct)
    other.model = dct.model | {"name": "other", "fingerprint": "sha256:0"}
    with pytest.raises(WrongModel, match='trained on "other"'):
        sae.evaluate(other, tiny_model, str(tiny_text), context=32)
    with pytest.raises(WrongModel), sae.spliced(tiny_model, other):
        pass
    other.model, other.sites = {}, ("blocks.7.hook_resid_post",)
    with pytest.raises(UnknownSite, match="Nearest"):
        sae.evaluate(other, tiny_model, str(tiny_text), context=32)
    other.sites = other.out_sites = ("blocks.1.mlp.hook_post",)
    with pytest.raises(WrongModel, match="width 128"):
        sae.evaluate(other, tiny_model, str(tiny_text), context=32)
    with pytest.raises(InputError, match="no two tokens"):
        sae.evaluate(dct, tiny_model, str(tiny_text), context=2)


def hf_losses(model, tokens, hooks):
    """Mean next-token loss and logits of the plain Hugging Face model with `hooks` (module -> forward hook)."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(model.name, attn_implementation="eager").eval()
    for name, hook in hooks.items():
        hf.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        logits = hf(tokens).logits.double()
    scored = (tokens[:, :-1] != model.bos) & (tokens[:, 1:] != model.bos)
    return float(F.cross_entropy(logits[:, :-1][scored], tokens[:, 1:][scored]))


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_replaces_what_it_predicts(skip, make_dictionary, tiny_model, tiny_text, tokens):
    """From the residual stream before the last block's MLP to the MLP's output."""
    import sae

    reads, writes = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"
    dct = make_dictionary(site=reads, out_site=writes, skip=skip)
    report = sae.evaluate(dct, tiny_model, str(tiny_text), context=32, n_tokens=1000)
    words = (tokens != tiny_model.bos).unsqueeze(-1)
    kept = {}

    def read(module, args, output):
        kept["x"] = args[0]

    def write(change):
        def hook(module, args, output):
            kept["y"] = output
            return torch.where(words, change(output), output)

        return hook

    def loss(change):
        return hf_losses(tiny_model, tokens, {"transformer.h.1.ln_2": read, "transformer.h.1.mlp": write(change)})

    assert report.ce_clean == pytest.approx(loss(lambda y: y), abs=1e-5)
    x, y = (kept[name][words.squeeze(-1)] for name in "xy")
    assert report.ce_sae == pytest.approx(loss(lambda y: dct(kept["x"])), abs=1e-5)
    assert report.ce_zero == pytest.approx(loss(torch.zeros_like), abs=1e-5)
    assert report.ce_mean == pytest.approx(loss(lambda z: y.mean(0).expand_as(z)), abs=1e-5)
    error = (y - dct(x)).double()
    assert report.mse == pytest.approx(float(error.square().sum(1).mean()), rel=1e-4)
    fvu = error.square().sum() / (y - y.mean(0)).double().square().sum()
    assert report.fvu == pytest.approx(float(fvu), rel=1e-4) and math.isnan(report.encoder_cosine)


def test_a_crosscoder_replaces_all_its_sites_by_what_it_makes_of_a_clean_pass(
    make_dictionary, tiny_model, tiny_text, tokens
):
    import sae

    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    dct = make_dictionary(d_in=64, site=sites)
    report = sae.evaluate(dct, tiny_model, str(tiny_text), context=32, n_tokens=1000)
    words, kept = (tokens != tiny_model.bos).unsqueeze(-1), {}

    def hook(layer, change):
        def replace(module, args, output):
            x = output[0] if isinstance(output, tuple) else output
            kept[layer] = x if change is None else kept[layer]
            new = x if change is None else torch.where(words, change(layer).expand_as(x), x)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return replace

    def loss(change):
        return hf_losses(tiny_model, tokens, {f"transformer.h.{i}": hook(i, change) for i in (0, 1)})

    assert report.ce_clean == pytest.approx(loss(None), abs=1e-5)
    clean = torch.cat([kept[0], kept[1]], dim=-1)
    words_only = clean[words.squeeze(-1)]
    for name, values in (("sae", dct(clean)), ("zero", clean * 0), ("mean", words_only.mean(0).expand_as(clean))):
        changed = loss(lambda layer, v=values: v[..., 32 * layer : 32 * layer + 32])
        assert getattr(report, f"ce_{name}") == pytest.approx(changed, abs=1e-5), name
    error = (words_only - dct(words_only)).double()
    fvu = error.square().sum() / (words_only - words_only.mean(0)).double().square().sum()
    assert report.fvu == pytest.approx(float(fvu), rel=1e-4)


def test_every_special_token_is_masked(tiny_model):
    from sae.rows import text_mask

    ids = torch.tensor([[tiny_model.bos, 5, 6, tiny_model.bos]])
    assert text_mask(tiny_model, ids).tolist() == [[False, True, True, False]]
