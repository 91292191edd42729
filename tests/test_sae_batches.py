"""Shuffled batches: every row once an epoch and none that is held out, the same ones wherever one enters."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

SITES = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


@pytest.fixture(scope="module")
def of_store(tiny_store):
    from sae.batches import StoreSource

    return StoreSource(tiny_store, held_out=0.1)


@pytest.fixture(scope="module")
def of_model(tiny_model, tiny_text):
    from sae.batches import ModelSource

    return ModelSource(tiny_model, str(tiny_text), context=32, held_out=0.1, windows_at_once=4, buffer=512)


@pytest.fixture(params=["store", "model"])
def source(request, of_store, of_model):
    return of_store if request.param == "store" else of_model


def take(source, n, batch_size=64, **where):
    from sae.batches import batches

    return list(itertools.islice(batches(source, SITES, batch_size, **where), n))


def rows_of(batches):
    """Each row as bytes, so that rows can be counted."""
    return Counter(row.tobytes() for batch in batches for row in torch.cat([batch[site] for site in SITES], 1).numpy())


@pytest.fixture
def of_numbers(of_model, monkeypatch):
    """A ModelSource whose activation at a row is the row's number."""
    monkeypatch.setattr(of_model, "tokens", torch.arange(of_model.tokens.numel()).view_as(of_model.tokens))
    monkeypatch.setattr(
        of_model, "_run", lambda sites, tokens, keep: dict.fromkeys(sites, tokens[keep][:, None].double())
    )
    return of_model


def test_an_epoch_of_a_store_gives_its_training_rows_once_and_the_next_another_order(of_store, tiny_store):
    per_epoch = of_store.n_rows // 64
    every = [torch.from_numpy(np.asarray(tiny_store[site][of_store.rows])) for site in SITES]
    every = rows_of([dict(zip(SITES, every, strict=True))])
    batches = take(of_store, 2 * per_epoch)
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert rows_of(epoch) <= every and rows_of(epoch).total() == per_epoch * 64
    assert any(not torch.equal(a[SITES[0]], b[SITES[0]]) for a, b in zip(batches, batches[per_epoch:], strict=False))


def test_an_epoch_of_a_model_gives_every_row_once_and_the_next_another_order(of_numbers):
    per_epoch = of_numbers.n_rows // 64
    rows = [batch[SITES[1]].flatten().tolist() for batch in take(of_numbers, 2 * per_epoch)]
    wanted = of_numbers.tokens[of_numbers.train_windows][of_numbers.is_text[of_numbers.train_windows]]
    for epoch in (rows[:per_epoch], rows[per_epoch:]):
        seen = sum(epoch, [])
        assert len(set(seen)) == len(seen) and set(seen) <= set(wanted.tolist())
    assert rows[0] != rows[per_epoch]
    assert rows[0] != sorted(rows[0]) and max(rows[0]) - min(rows[0]) > 512  # mixed over more than a window


def test_entering_at_any_step_gives_the_same_batches(source):
    per_epoch = source.n_rows // 64
    straight = take(source, per_epoch + 5, seed=3)
    for step in (1, 13, per_epoch - 1, per_epoch, per_epoch + 2):
        for one, other in zip(straight[step : step + 3], take(source, 3, seed=3, first_step=step), strict=False):
            for site in SITES:
                assert torch.equal(one[site], other[site])


def test_sites_of_a_batch_are_of_the_same_rows(of_store, tiny_store):
    both = [torch.from_numpy(tiny_store[site][:]) for site in SITES]
    batch = take(of_store, 1)[0]
    for x, y in zip(*(batch[site] for site in SITES), strict=True):
        row = int((both[0] == x).all(1).nonzero()[0])
        assert torch.equal(both[1][row], y)


def test_held_out_rows_of_a_store_are_other_sequences(of_store, tiny_store):
    trained, held_out = (set(tiny_store.sequence[:][rows]) for rows in (of_store.rows, of_store.held_out_rows))
    assert held_out and not trained & held_out
    assert len(of_store.rows) + len(of_store.held_out_rows) == len(tiny_store.content_rows)
    kept = list(of_store.held_out_batches(SITES, 64))
    rows = [torch.from_numpy(np.asarray(tiny_store[site][of_store.held_out_rows])) for site in SITES]
    assert rows_of(kept) == rows_of([dict(zip(SITES, rows, strict=True))])


def test_held_out_rows_of_a_model_are_other_windows(of_numbers):
    trained = torch.cat([batch[SITES[0]] for batch in take(of_numbers, of_numbers.n_rows // 64)]).flatten()
    held_out = torch.cat([batch[SITES[0]] for batch in of_numbers.held_out_batches(SITES, 64)]).flatten()
    windows = [set((rows // of_numbers.context).int().tolist()) for rows in (trained, held_out)]
    assert windows[1] == set(of_numbers.held_out_windows.tolist()) and not windows[0] & windows[1]


def test_held_out_sequences_are_a_share_that_no_seed_changes():
    from sae.batches import is_held_out

    chosen = is_held_out(np.arange(100_000), 0.03)
    assert 0.028 < chosen.mean() < 0.032
    assert not is_held_out(np.arange(1000), 0.0).any()
    assert np.array_equal(chosen[:1000], is_held_out(np.arange(1000), 0.03))
    assert is_held_out(np.arange(100_000), 0.06)[chosen].all()  # a larger share holds the smaller one


def test_bos_rows_are_left_out(of_model, of_store, tiny_model, tiny_store):
    assert not of_model.is_text[of_model.tokens == tiny_model.bos].any()
    assert not (tiny_store.tokens[of_store.rows] == tiny_model.bos).any()


def test_a_model_gives_the_activations_of_its_own_forward_pass(of_model, tiny_model):
    from interp.decoder.hooks import captured

    with torch.no_grad(), captured(tiny_model, SITES) as cache:
        tiny_model(of_model.tokens)
    whole = torch.cat([cache[site].flatten(0, 1) for site in SITES], 1)
    for row in torch.cat([take(of_model, 1)[0][site] for site in SITES], 1)[:5]:
        assert (whole - row).abs().amax(1).min() < 1e-4


def test_batches_mix_sequences_as_a_shuffle_should(of_store, tiny_store):
    """Variance of batch means against that of independent rows: 1 is a perfect shuffle, rows in order give more."""
    site = SITES[0]
    x = torch.from_numpy(tiny_store[site][:][of_store.rows]).double()
    means = torch.stack([batch[site].double().mean(0) for step in range(3) for batch in take(of_store, 50, seed=step)])
    expected = x.var(0).sum() / 64
    assert 0.8 < float((means - x.mean(0)).square().sum(1).mean() / expected) < 1.2


def test_activations_that_are_not_finite_are_named(of_store, tiny_store, monkeypatch):
    from interp.store.reading import Store
    from sae.batches import BadActivations

    def broken(self, sites, batch_size, **where):
        yield [torch.full((batch_size, 4), torch.nan) for _ in sites]

    monkeypatch.setattr(Store, "shuffled_batches", broken)
    monkeypatch.setattr(Store, "__getitem__", lambda self, site: np.where(np.arange(self.n_rows) == 77, np.inf, 0.0))
    with pytest.raises(BadActivations, match=r"resid_post is not finite at row 77 \(shard-00000.h5, row 77"):
        take(of_store, 1)


def test_fewer_rows_than_a_batch_is_an_input_error(source):
    from interp.errors import InputError

    with pytest.raises(InputError, match="fewer than one batch"):
        take(source, 1, 10_000_000)
