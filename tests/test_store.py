"""Stores: every row is the model's activation, a kill loses nothing, plain h5py reads it."""

import json

import h5py
import numpy as np
import pytest
import torch


def test_rows_are_the_activations_of_their_tokens(tiny_model, tiny_store):
    from interp.decoder.hooks import captured

    tokens = torch.from_numpy(tiny_store.tokens[:].astype(np.int64)).unflatten(0, (-1, tiny_store.context))
    with torch.no_grad(), captured(tiny_model, "*.resid_post") as cache:
        tiny_model(tokens)
    for site in tiny_store.sites:
        expected = cache[site].flatten(0, 1).to(torch.float16).float().numpy()
        np.testing.assert_allclose(tiny_store[site][:], expected, atol=2e-3, rtol=2e-3)  # batches of another size


def test_tokens_are_the_text_in_order_with_bos_first(tiny_model, tiny_store, tiny_text):
    ids = tiny_model.to_tokens(tiny_text.read_text(), prepend_bos=False)
    windows = tiny_store.tokens[:].reshape(-1, tiny_store.context)
    assert (windows[:, 0] == tiny_model.bos).all()
    body = windows[:, 1:].reshape(-1)
    assert body.tolist() == ids[: len(body)]
    assert tiny_store.position[:40].tolist() == [*range(32), *range(8)]
    assert tiny_store.sequence[[0, 31, 32]].tolist() == [0, 0, 1]


def test_statistics_are_those_of_the_rows_without_bos(tiny_store):
    rows = tiny_store["1.resid_post"][tiny_store.content_rows].astype(np.float64)
    found = tiny_store.statistics("1.resid_post")
    assert found["n"] == len(rows)
    np.testing.assert_allclose(found["mean"], rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(found["variance"], rows.var(0), atol=1e-9)
    assert found["norm_mean"] == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-9)
    assert found["max_abs"] == np.abs(rows).max()


def test_indexing_agrees_with_numpy(tiny_store):
    site = tiny_store["0.resid_post"]
    everything = site[:]
    idx = np.random.default_rng(0).integers(-len(site), len(site), 50)
    for rows in (3, -1, slice(5, 90, 7), slice(-3, None), idx):
        assert np.array_equal(site[rows], everything[rows])
    with pytest.raises(IndexError):
        site[np.array([len(site)])]


def test_an_epoch_has_every_row_once_in_an_order_fixed_by_seed_and_epoch(tiny_store):
    batches = list(tiny_store.batches("1.resid_post", 25, seed=1, epoch=0))
    again = list(tiny_store.batches("1.resid_post", 25, seed=1, epoch=0))
    other = list(tiny_store.batches("1.resid_post", 25, seed=1, epoch=1))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not np.array_equal(batches[0], other[0])
    rows = np.concatenate(batches)
    content = tiny_store["1.resid_post"][tiny_store.content_rows]
    assert len(rows) == len(content) // 25 * 25
    both = np.sort(rows.sum(1)), np.sort(content.sum(1))
    assert len(content) % 25 or np.allclose(*both)


def test_plain_h5py_sees_one_array(tiny_store):
    with h5py.File(tiny_store.path / "index.h5", "r") as file:
        np.testing.assert_array_equal(
            file["activations/blocks.1.hook_resid_post"][10:20], tiny_store["1.resid_post"][10:20]
        )
        assert file["tokens"].shape == (tiny_store.n_rows,)


def test_killed_after_any_shard_the_same_call_ends_with_the_same_bytes(tiny_model, tiny_text, tmp_path, monkeypatch):
    from interp.store import recording

    monkeypatch.setattr(recording, "SHARD_BYTES", 32 * 32 * 4 * 2 * 20)  # 20 windows a shard
    settings = {"sites": "*.resid_post", "n_tokens": 3000, "context": 32, "progress": False}
    whole = recording.record(tiny_model, str(tiny_text), out=tmp_path / "whole", **settings)
    assert len(whole.shards) > 3
    write, count = recording.format.write_shard, 0

    def dying(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return write(*args, **kwargs)

    monkeypatch.setattr(recording.format, "write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        recording.record(tiny_model, str(tiny_text), out=tmp_path / "cut", **settings)
    assert json.loads((tmp_path / "cut/run.json").read_text())["status"] == "interrupted"
    with open(tmp_path / "cut/manifest.jsonl", "a") as file:
        file.write('{"file": "torn')
    monkeypatch.setattr(recording.format, "write_shard", write)
    cut = recording.record(tiny_model, str(tiny_text), out=tmp_path / "cut", **settings)
    assert cut.shards == whole.shards
    for shard in whole.shards:
        assert datasets(cut.path / shard.file) == datasets(whole.path / shard.file)


def datasets(path):
    """Every dataset's bytes (the file itself also holds the time of its making)."""
    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()].tobytes()}) if hasattr(item, "shape") else None)
    return found


def test_z_keeps_its_heads(tiny_model, tiny_text, tmp_path):
    from interp import record

    store = record(
        tiny_model,
        str(tiny_text),
        sites="0.z",
        n_tokens=64,
        context=32,
        dtype="float32",
        out=tmp_path / "s",
        progress=False,
    )
    assert store["0.z"].shape == (64, 4, 8) and store.d("0.z") == 32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sites": "7.resid_post"}, "Nearest: "),
        ({"sites": "0.pattern"}, "no row a token"),
        ({"dtype": "int8"}, "store dtype"),
        ({"context": 65}, "context 65"),
        ({"n_tokens": 0}, "n_tokens 0"),
        ({"text": "no/such/*.txt"}, "no text at"),
    ],
)
def test_wrong_input_writes_nothing(tiny_model, tiny_text, tmp_path, given, message):
    from interp import InputError, record

    settings = {
        "text": str(tiny_text),
        "sites": "0.z",
        "context": 32,
        "out": tmp_path / "stores" / "s",
        "progress": False,
    }
    with pytest.raises(InputError, match=message):
        record(tiny_model, **(settings | given))
    assert list(tmp_path.iterdir()) == []


def test_a_finished_store_is_not_overwritten_and_an_unfinished_one_of_other_settings_not_continued(
    tiny_model, tiny_text, tiny_store, tmp_path
):
    from interp import InputError, record, runs

    with pytest.raises(InputError, match="--overwrite"):
        record(tiny_model, str(tiny_text), context=32, out=tiny_store.path, progress=False)
    store = record(tiny_model, str(tiny_text), sites="0.z", n_tokens=64, context=32, out=tmp_path / "s", progress=False)
    runs.write_json(store.path / "run.json", runs.read(store.path) | {"status": "interrupted"})
    with pytest.raises(InputError, match="other settings"):
        record(tiny_model, str(tiny_text), sites="1.z", n_tokens=64, context=32, out=tmp_path / "s", progress=False)
