"""Features against slow loops over the dense latents, and what is read of them without torch."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

N, CONTEXT = 5, 3


@pytest.fixture(scope="module", params=["topk", "abstopk", "jumprelu"])
def dct(request, make_dictionary, tiny_store):
    """Latent 0 never fires, latent 1 copies latent 2's decoder row."""
    dct = make_dictionary(request.param, model=dict(tiny_store.model))
    with torch.no_grad():
        dct.W_enc[:, 0], dct.b_enc[0] = 0, -1e6 if request.param == "jumprelu" else 0
        dct.W_dec[1] = 3 * dct.W_dec[2]
    return dct


@pytest.fixture(scope="module")
def features(dct, tiny_store, tiny_model, tmp_path_factory):
    import sae

    out = tmp_path_factory.mktemp("features")
    return sae.features.compute(
        dct, tiny_store, n_examples=N, context_tokens=CONTEXT, batch_size=300, model=tiny_model, out=out
    )


@pytest.fixture(scope="module")
def dense(dct, tiny_store):
    """Latents at every row; 0 at BOS."""
    rows = tiny_store.content_rows
    dense = np.zeros((tiny_store.n_rows, 64), np.float32)
    dense[rows] = dct.encode(torch.from_numpy(np.asarray(tiny_store["1.resid_post"][rows]))).numpy()
    return dense


def test_the_table_equals_a_slow_loop(features, dense, dct, tiny_store, tiny_model):
    n_tokens, tokens = len(tiny_store.content_rows), tiny_store.tokens[:]
    for latent, told in enumerate(features.latents.itertuples()):
        fires = dense[:, latent] != 0
        assert told.latent == latent and told.n_fires == fires.sum() and told.dead == (fires.sum() == 0)
        assert told.density == pytest.approx(fires.sum() / n_tokens)
        assert told.max_activation == pytest.approx(np.abs(dense[:, latent]).max(), rel=1e-5)
        assert told.mean_activation == pytest.approx(dense[fires, latent].mean() if fires.any() else 0, rel=1e-4)
        encoder, decoder = dct.W_enc[:, latent], dct.W_dec[latent]
        cosine = float(encoder @ decoder / (encoder.norm() * decoder.norm()).clamp_min(1e-30))
        assert told.encoder_cosine == pytest.approx(cosine, abs=1e-5)
        strongest = np.abs(dense[:, latent]).argmax()
        assert told.top_token_text == (tiny_model.token_text([int(tokens[strongest])])[0] if fires.any() else "")
    assert features.latents["dead"].sum() >= 1


def test_top_examples_are_the_strongest_of_each_sequence(features, dense, tiny_store):
    sequences = tiny_store.sequence[:]
    for latent in range(64):
        strength = np.abs(dense[:, latent])
        best = sorted((strength[sequences == s].max() for s in np.unique(sequences[strength > 0])), reverse=True)
        shown = features.of(latent)
        np.testing.assert_allclose(shown["activation"].abs(), best[:N], rtol=1e-5)
        assert list(shown["rank"]) == list(range(min(N, len(best)))) and shown["sequence"].is_unique
        np.testing.assert_allclose(shown["activation"], dense[shown["row"], latent], rtol=1e-5)


def test_quantile_examples_come_from_their_fifth(features, dense):
    for latent in range(64):
        strength = np.sort(np.abs(dense[dense[:, latent] != 0, latent]))[::-1]
        shown, n = features.of(latent, "quantile"), len(strength)
        assert (shown["quantile"].diff().dropna() >= 0).all()
        for fifth, group in shown.groupby("quantile"):
            mine = [strength[i] for i in range(n) if i * 5 // n == fifth]
            assert len(group) == min(max(1, N // 5), len(mine))
            assert group["activation"].abs().between(mine[-1] * 0.99999, mine[0] * 1.00001).all()
        assert len(shown) == sum(min(1, sum(i * 5 // n == q for i in range(n))) for q in range(5))


def test_random_examples_are_firings_drawn_evenly(features, dense):
    """Over all latents, the ranks of the rows drawn are spread like those of an even draw."""
    ranks = []
    for latent in range(64):
        rows = np.flatnonzero(dense[:, latent])
        drawn = features.of(latent, "random")["row"].to_numpy()
        assert len(set(drawn)) == min(N, len(rows)) == len(drawn) and set(drawn) <= set(rows)
        if len(rows) > 50:
            ranks += (np.searchsorted(rows, drawn) / len(rows)).tolist()
    assert len(ranks) > 50 and abs(np.mean(ranks) - 0.5) < 4 * np.sqrt(1 / 12 / len(ranks))


def test_examples_show_their_context(features, dense, tiny_store, tiny_model):
    tokens, sequences = tiny_store.tokens[:], tiny_store.sequence[:]
    for latent in range(0, 64, 5):
        for kind in ("top", "random", "quantile"):
            for example in features.of(latent, kind).itertuples():
                near = [
                    row for row in range(example.row - CONTEXT, example.row + CONTEXT + 1)
                    if 0 <= row < len(tokens) and sequences[row] == example.sequence
                ]  # fmt: skip
                assert list(example.tokens) == tiny_model.token_text(tokens[near].tolist())
                np.testing.assert_allclose(example.values, dense[near, latent], rtol=1e-5, atol=1e-7)
                assert near[example.token_index] == example.row
                assert example.values[example.token_index] == pytest.approx(example.activation)
                assert example.position == tiny_store.position[:][example.row]


def test_search_finds_the_latents_whose_top_examples_are_at_a_text(features):
    table = features.search("MARY")
    expected = {}
    for latent in range(64):
        top = features.of(latent, "top")
        hits = [" mary" in row.tokens[row.token_index].lower() for row in top.itertuples()]
        if any(hits):
            expected[latent] = sum(hits) / len(hits)
    assert dict(zip(table["latent"], table["share"], strict=True)) == pytest.approx(expected) and expected
    assert table["share"].is_monotonic_decreasing and not len(features.search("no such text"))


def test_search_finds_the_latents_that_raise_a_token(features):
    from interp.errors import UnknownName

    table, expected = features.search("a", by="raised"), {}
    for latent in range(64):
        effects = features.logits(latent)
        raised = effects[effects["effect"] > 0]["text"].head(len(effects) // 2)
        if any("a" in text.lower() for text in raised):
            expected[latent] = sum("a" in text.lower() for text in raised) / (len(effects) // 2)
    assert dict(zip(table["latent"], table["share"], strict=True)) == pytest.approx(expected) and expected
    with pytest.raises(UnknownName, match="Nearest: raised"):
        features.search("a", by="raise")


def test_histogram_counts_every_firing(features, dense, dct):
    for latent in range(64):
        values = dense[dense[:, latent] != 0, latent].astype(np.float64)
        told = features.histogram(latent)
        assert told["count"].sum() == len(values)
        if len(values):
            low, high = told["low"].iloc[0], told["high"].iloc[-1]
            assert high == pytest.approx(np.abs(values).max(), rel=1e-6)
            assert low == pytest.approx(-high if dct.architecture == "abstopk" else 0)
            slow = np.histogram(np.clip(values, low, high), bins=len(told), range=(low, high))[0]
            assert np.abs(slow - told["count"]).sum() <= 2  # a value within rounding of an edge
    assert features.figure(1).data[0].y.sum() == features.histogram(1)["count"].sum()


def test_neighbours_by_firing_are_correlations(features, dense, tiny_store):
    fires = (dense[tiny_store.content_rows] != 0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        slow = np.corrcoef(fires, rowvar=False)
    for latent in range(64):
        told = features.neighbours(latent, "correlation")
        mine = np.nan_to_num(np.delete(slow[latent], latent), nan=-1)
        best = np.sort(mine[mine > 1e-12])[::-1][:10]
        np.testing.assert_allclose(told["value"][: len(best)], best, atol=1e-6)
        np.testing.assert_allclose(slow[latent, told["latent"]], told["value"], atol=1e-6)


def test_neighbours_by_cosine_are_those_of_the_decoder_rows(features, dct):
    unit = (dct.W_dec / dct.W_dec.norm(dim=1, keepdim=True)).numpy()
    for latent in (1, 7, 63):
        told = features.neighbours(latent)
        best = np.sort(np.delete(unit @ unit[latent], latent))[::-1][:10]
        np.testing.assert_allclose(told["value"], best, atol=1e-5)
    assert features.neighbours(1)["latent"][0] == 2 and features.neighbours(1)["value"][0] == pytest.approx(1)


def test_logit_effects_are_what_a_small_step_along_the_decoder_does_to_the_logits(features, dct, tiny_model):
    """Autograd through the model's last norm and unembedding, at a point whose norm is along none of the rows."""
    from sae.weights import logit_effects

    ours = logit_effects(dct, tiny_model)
    bridge, base = tiny_model.bridge, torch.randn(32)
    base = base - base.mean()
    scale = (base.square().mean() + 1e-5).sqrt()

    def logits(x):
        return bridge.unembed(bridge.ln_final(x[None, None]))[0, 0]

    for latent in (1, 5):
        row = dct.W_dec[latent].clone()
        centred = row - row.mean()
        row = row - (centred @ base) / (base @ base) * base  # what would change the norm is the scale's business
        _, slope = torch.autograd.functional.jvp(logits, base, row)
        changed = copy.deepcopy(dct)
        changed.W_dec[latent] = row
        direct = logit_effects(changed, tiny_model)[latent]
        torch.testing.assert_close(direct, (slope - slope.mean()) * scale, rtol=1e-3, atol=1e-4)
        told = features.logits(latent)
        best = ours[latent].sort(descending=True)
        np.testing.assert_allclose(told["effect"][:10], best.values[:10], rtol=1e-5)
        np.testing.assert_allclose(told["effect"][10:], best.values.flip(0)[:10], rtol=1e-5)
        assert list(told["text"][:3]) == tiny_model.token_text(told["token"][:3].tolist())


def test_small_blocks_and_batches_give_the_same_files(dct, features, tiny_store, tiny_model, tmp_path, monkeypatch):
    import h5py
    import pandas as pd

    import sae
    from sae.firings import Firings

    blocks = Firings.blocks
    monkeypatch.setattr(Firings, "blocks", lambda self: blocks(self, n_firings=500, n_counts=64 * 7))
    together = Firings.together
    monkeypatch.setattr(Firings, "together", lambda self, block: together(self, block, n_pairs=100))
    again = sae.features.compute(
        dct, tiny_store, n_examples=N, context_tokens=CONTEXT, batch_size=77, model=tiny_model, out=tmp_path
    )
    pd.testing.assert_frame_equal(again.latents, features.latents, rtol=1e-5)

    def compare(name, one):
        if isinstance(one, h5py.Dataset):
            np.testing.assert_allclose(one[()], other[name][()], rtol=1e-4, atol=1e-5, err_msg=name)

    with again._open() as file, features._open() as other:
        file.visititems(compare)


def test_text_through_the_model_gives_what_its_store_gives(dct, tiny_store, tiny_text, tiny_model, features, tmp_path):
    import sae

    dct.context = 32
    out = sae.features.compute(
        dct, text=str(tiny_text), model=tiny_model, n_rows=4000, n_examples=N, context_tokens=CONTEXT, out=tmp_path,
        batch_size=100,
    )  # fmt: skip
    there, here = features.latents, out.latents  # the store holds float16
    assert np.abs(there["n_fires"] - here["n_fires"]).sum() < 0.01 * there["n_fires"].sum()
    np.testing.assert_allclose(here["max_activation"], there["max_activation"], rtol=0.02, atol=0.02)
    assert out.of(3)["tokens"][0]


def test_features_come_back_without_torch(features):
    code = (
        "import sys; from sae.features import Features; found = Features.load(sys.argv[1]); "
        "n = int(found.latents.n_fires.argmax()); "
        "print(len(found.latents), len(found.of(n)), len(found.logits(n)), 'torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(features.folder)]
    shown = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert shown.stdout.split() == ["64", str(N), "20", "False"], shown.stderr


def test_only_what_is_shown_is_left_on_disk(features):
    assert {path.name for path in features.folder.rglob("*")} == {"features", "latents.parquet", "latents.h5"}


def test_what_cannot_be_computed_is_one_line_and_writes_nothing(dct, tiny_store, tiny_model, tiny_text, tmp_path):
    import sae
    from interp.errors import InputError, MissingFile, UnknownSite, WrongModel

    dct = copy.deepcopy(dct)

    def refused(error, match, *where, **given):
        with pytest.raises(error, match=match):
            sae.features.compute(dct, *where, **({"model": tiny_model, "out": tmp_path} | given))

    refused(InputError, "at least 1", tiny_store, n_examples=0)
    refused(InputError, "one of the two")
    refused(InputError, "one of the two", tiny_store, text=str(tiny_text))
    refused(InputError, "pass the model", text=str(tiny_text), model=None)
    refused(InputError, "say out=", tiny_store, out=None)
    dct.b_enc[:] = dct.b_enc + 1
    dct.model = dct.model | {"fingerprint": "sha256:0"}
    refused(WrongModel, "store", tiny_store)
    refused(WrongModel, "trained on", text=str(tiny_text))
    dct.model, dct.sites = {}, ("blocks.9.hook_resid_post",)
    refused(UnknownSite, "Nearest", tiny_store)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingFile):
        sae.features.Features.load(tmp_path / "nothing")


def test_nan_is_named_with_its_row(dct, tiny_store, tiny_model, tmp_path, monkeypatch):
    import sae
    from interp.errors import InputError
    from sae import rows

    source = rows.of_store(tiny_store, dct.sites, n_rows=100)

    def read(first, stop):
        activations = {site: x.clone() for site, x in source.read(first, stop).items()}
        for x in activations.values():
            if first <= 70 < stop:
                x[70 - first, 3] = float("nan")
        return activations

    broken = rows.Rows(**(vars(source) | {"read": read}))
    monkeypatch.setattr(rows, "of_store", lambda *_, **__: broken)
    with pytest.raises(InputError, match="row 70 holds NaN"):
        sae.features.compute(dct, tiny_store, model=tiny_model, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_latents_and_kinds_are_named(features):
    from interp.errors import AlreadyExists, UnknownName
    from sae.features import check_free

    with pytest.raises(UnknownName, match="numbered 0 to 63"):
        features.of(64)
    with pytest.raises(UnknownName, match="Nearest: random"):
        features.of(1, "randm")
    with pytest.raises(AlreadyExists):
        check_free(features.folder, overwrite=False)
