"""Stores: every row is the model's activation, plain h5py reads it, and nothing that was acknowledged is ever lost."""

import json
import threading
from collections import Counter

import h5py
import numpy as np
import pytest
import torch


@pytest.fixture
def small_shards(monkeypatch):
    """Twenty windows of 32 tokens a shard."""
    from interp.store import recording

    monkeypatch.setattr(recording, "SHARD_BYTES", 32 * 32 * 2 * 20)


def make(tiny_model, tiny_text, out, **settings):
    from interp import record

    settings = {"sites": "*.resid_post", "n_tokens": 3000, "context": 32, "progress": False} | settings
    return record(tiny_model, str(tiny_text), out=out, **settings)


def test_rows_are_the_activations_of_their_tokens(tiny_model, tiny_store):
    from interp.decoder.hooks import captured

    tokens = torch.from_numpy(tiny_store.tokens[:].astype(np.int64)).unflatten(0, (-1, tiny_store.context))
    with torch.no_grad(), captured(tiny_model, "*.resid_post") as cache:
        tiny_model(tokens)
    for site in tiny_store.sites:
        expected = cache[site].flatten(0, 1).to(torch.float16).float().numpy()
        np.testing.assert_allclose(tiny_store[site][:], expected, atol=2e-3, rtol=2e-3)  # batches of another size


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_kind_of_hook_point_in_one_pass_equals_plain_capture(tiny_model, tiny_text, tmp_path, dtype):
    from interp.decoder.hooks import captured

    sites = ["0.z", "1.q", "0.k", "1.v", "0.attn_out", "1.mlp_out", "0.post", "1.resid_mid", "*.pattern", "final"]
    sites = [*sites[:-1], "ln_final.hook_normalized", "hook_embed"]
    store = make(tiny_model, tiny_text, tmp_path / "s", sites=sites, n_tokens=640, dtype=dtype, logits=3)
    tokens = torch.from_numpy(store.tokens[:].astype(np.int64)).unflatten(0, (-1, 32))
    with torch.no_grad(), captured(tiny_model, sites) as cache:
        logits = tiny_model(tokens)
    target = getattr(torch, dtype)
    assert set(cache) == {*store.sites, *store.patterns} and len(store.patterns) == 2
    for name, value in cache.items():
        expected = (value if name in store.patterns else value.flatten(0, 1)).to(target).float().numpy()
        assert store[name].shape == expected.shape
        np.testing.assert_allclose(store[name][:], expected, atol=1e-5, rtol=1e-2 if dtype == "bfloat16" else 2e-3)
    best = logits.topk(3)
    np.testing.assert_allclose(store.rows("logits/values")[:], best.values.flatten(0, 1), atol=1e-4)
    assert (store.rows("logits/tokens")[:] == best.indices.flatten(0, 1).numpy()).mean() > 0.99  # ties


def test_documents_one_a_window_are_as_each_alone(tiny_model, tmp_path):
    from interp import record
    from interp.data.documents import TextSettings
    from interp.decoder.hooks import captured

    texts = [
        "The keys are old.",
        "When Mary and John went to the shop, John gave a bag to Mary. " * 3,
        "A dog ran.",
    ] * 3
    texts = [f"{i} {text}" for i, text in enumerate(texts)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    settings = TextSettings(tmp_path / "d.jsonl", context=32, packing="document")
    store = record(tiny_model, settings, sites=["1.resid_post", "0.pattern"], out=tmp_path / "s", dtype="float32",
                   batch_size=4, progress=False)  # fmt: skip
    for number, text in enumerate(texts):
        rows = store.document(number)
        ids = tiny_model.to_tokens(text)
        assert store.tokens[rows][:5].tolist() == ids[:5] and (store.documents[rows] == number).all()
        window = store.sequence[rows] == store.sequence[int(rows[0])]
        with torch.no_grad(), captured(tiny_model, ["1.resid_post", "0.pattern"]) as cache:
            tiny_model(torch.tensor([ids[:32]]))
        found = store["1.resid_post"][rows[window]]
        np.testing.assert_allclose(found, cache["blocks.1.hook_resid_post"][0], atol=1e-4)
        pattern = store["0.pattern"][int(store.sequence[int(rows[0])])]
        n = len(ids[:32])
        np.testing.assert_allclose(pattern[:, :n, :n], cache["blocks.0.attn.hook_pattern"][0], atol=1e-5)
        assert not pattern[:, n:].any()
    with pytest.raises(Exception, match="documents go from 0 to 8"):
        store.document(9)


def test_tokens_are_the_text_in_order_with_bos_first(tiny_model, tiny_store, tiny_text):
    ids = tiny_model.to_tokens(tiny_text.read_text(), prepend_bos=False)
    windows = tiny_store.tokens[:].reshape(-1, tiny_store.context)
    assert (windows[:, 0] == tiny_model.bos).all()
    body = windows[:, 1:].reshape(-1)
    assert body.tolist() == ids[: len(body)]
    assert tiny_store.position[:40].tolist() == [*range(32), *range(8)]
    assert tiny_store.sequence[[0, 31, 32]].tolist() == [0, 0, 1]
    assert (tiny_store.position[tiny_store.at_position(5)] == 5).all()


def test_statistics_are_those_of_the_rows_without_bos(tiny_store):
    rows = tiny_store["1.resid_post"][tiny_store.content_rows].astype(np.float64)
    found = tiny_store.statistics("1.resid_post")
    assert found["n"] == len(rows)
    np.testing.assert_allclose(found["mean"], rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(found["second_moment"], (rows**2).mean(0), atol=1e-9)
    np.testing.assert_allclose(found["variance"], rows.var(0), atol=1e-9)
    norms = np.linalg.norm(rows, axis=1)
    assert found["norm_mean"] == pytest.approx(norms.mean(), rel=1e-9)
    assert found["max_abs"] == np.abs(rows).max()
    for q, value in found["norm_quantiles"].items():
        assert value == pytest.approx(np.quantile(norms, q, method="inverted_cdf"), rel=0.012)
    everything = np.linalg.norm(tiny_store["1.resid_post"][:].astype(np.float64), axis=1)
    for position in (0, 7, 31):
        expected = everything[tiny_store.position[:] == position].mean()
        assert found["position_norm"][position] == pytest.approx(expected, rel=1e-9)


def test_indexing_agrees_with_numpy(tiny_store):
    site = tiny_store["0.resid_post"]
    everything = site[:]
    idx = np.random.default_rng(0).integers(-len(site), len(site), 50)
    for rows in (3, -1, slice(5, 90, 7), slice(-3, None), idx, (slice(2, 9), slice(0, 3)), (4, 1), (idx, 0)):
        assert np.array_equal(site[rows], everything[rows])
    for verify in (False, True):
        assert np.array_equal(
            np.concatenate([b.copy() for b in site.blocks(700, verify=verify)]), site.stored(slice(None))
        )
    with pytest.raises(IndexError):
        site[np.array([len(site)])]


def test_an_epoch_has_every_row_once_in_an_order_fixed_by_seed_and_epoch(tiny_store):
    batches = list(tiny_store.shuffled_batches("1.resid_post", 25, seed=1, epoch=0))
    again = list(tiny_store.shuffled_batches("1.resid_post", 25, seed=1, epoch=0))
    later = list(tiny_store.shuffled_batches("1.resid_post", 25, seed=1, epoch=0, first=7))
    other = list(tiny_store.shuffled_batches("1.resid_post", 25, seed=1, epoch=1))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batches[7:], later, strict=True))
    assert not torch.equal(batches[0], other[0])
    rows = torch.cat(batches).numpy()
    content = tiny_store["1.resid_post"][tiny_store.content_rows]
    assert len(rows) == len(content) // 25 * 25
    assert {row.tobytes() for row in rows} <= {row.tobytes() for row in content}


def test_a_store_larger_than_the_buffer_has_every_row_once_too_from_any_batch_on(
    tiny_model, tiny_text, tmp_path, small_shards, monkeypatch
):
    from interp.store import shuffling

    for name, value in (("WHOLE", 0), ("_ROWS", 64), ("_BUFFER", 8)):
        monkeypatch.setattr(shuffling, name, value)
    store = make(tiny_model, tiny_text, tmp_path / "s", dtype="float32")
    assert len(store.shards) > 3
    batches = list(store.shuffled_batches(["0.resid_post", "1.resid_post"], 50, seed=3))
    for first in (0, 1, 30, len(batches) - 2):
        later = list(store.shuffled_batches(["0.resid_post", "1.resid_post"], 50, seed=3, first=first))
        assert len(later) == len(batches) - first
        assert all(
            torch.equal(x, y) for a, b in zip(batches[first:], later, strict=True) for x, y in zip(a, b, strict=True)
        )
    content = store["1.resid_post"][store.content_rows]
    assert len(batches) == len(content) // 50
    place = {row.tobytes(): number for number, row in zip(store.content_rows, content, strict=True)}
    seen = [row.tobytes() for batch in batches for row in batch[1].numpy()]
    assert Counter(seen) <= Counter(row.tobytes() for row in content)
    lower = store["0.resid_post"]
    assert all(
        np.array_equal(lower[place[r1.tobytes()]], r0) for r0, r1 in zip(*(t.numpy() for t in batches[9]), strict=True)
    )


def test_a_data_loader_shares_the_batches_among_its_workers(tiny_store):
    from torch.utils.data import DataLoader

    dataset = tiny_store.dataset("1.resid_post", 100, seed=2)
    alone = list(DataLoader(dataset, batch_size=None))
    expected = list(tiny_store.shuffled_batches("1.resid_post", 100, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(alone, expected, strict=True))


def test_plain_h5py_sees_one_array(tiny_model, tiny_text, tmp_path, small_shards):
    for dtype in ("float16", "bfloat16"):
        store = make(tiny_model, tiny_text, tmp_path / dtype, dtype=dtype)
        with h5py.File(store.path / "index.h5", "r") as file:
            name = "activations/blocks.1.hook_resid_post"
            np.testing.assert_array_equal(file[name][630:650], store["1.resid_post"][630:650])
            assert file["tokens"].shape == (store.n_rows,)
        with h5py.File(store.path / store.shards[1].file, "r") as file:
            assert json.loads(bytes(file.attrs["about"]))["model"]["fingerprint"] == tiny_model.fingerprint


@pytest.mark.parametrize("compression", ["gzip", "zstd", "lz4"])
def test_a_compressed_store_holds_the_same(tiny_model, tiny_text, tmp_path, compression):
    from interp.store.verifying import verify

    if compression != "gzip":
        pytest.importorskip("hdf5plugin", reason="not installed")
    plain = make(tiny_model, tiny_text, tmp_path / "plain", dtype="bfloat16")
    packed = make(tiny_model, tiny_text, tmp_path / "packed", dtype="bfloat16", compression=compression)
    for name in ("0.resid_post", "1.resid_post"):
        assert np.array_equal(packed[name].stored(slice(None)), plain[name].stored(slice(None)))
    assert verify(packed.path) == []
    assert np.array_equal(packed["0.resid_post"][[5, 900]], plain["0.resid_post"][[5, 900]])


def test_z_keeps_its_heads(tiny_model, tiny_text, tmp_path):
    store = make(tiny_model, tiny_text, tmp_path / "s", sites="0.z", n_tokens=64, dtype="float32")
    assert store["0.z"].shape == (64, 4, 8) and store.d("0.z") == 32


def test_shards_of_one_corpus_recorded_apart_join_to_what_one_process_records(tiny_model, tmp_path):
    from interp import InputError, record
    from interp.data.documents import TextSettings
    from interp.store.joining import merge
    from interp.store.verifying import verify

    lines = [json.dumps({"text": f"{i} The keys to the cabinet are old. " * (1 + i % 5)}) for i in range(40)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))

    def part(i, n):
        settings = TextSettings(tmp_path / "d.jsonl", context=32, packing="document", shard=(i, n))
        return record(tiny_model, settings, sites="1.resid_post", out=tmp_path / f"{i}of{n}", progress=False)

    whole, parts = part(0, 1), [part(i, 3) for i in range(3)]
    with pytest.raises(InputError, match="not so: 1/3"):
        merge([parts[0].path, parts[2].path], tmp_path / "j")
    assert not (tmp_path / "j").exists()
    joined = merge([parts[2].path, parts[0].path, parts[1].path], tmp_path / "j")
    assert joined.n_rows == whole.n_rows == sum(store.n_rows for store in parts)
    for number in range(40):
        mine, theirs = joined.document(number), whole.document(number)
        np.testing.assert_array_equal(joined.tokens[mine], whole.tokens[theirs])
        np.testing.assert_allclose(joined["1.resid_post"][mine], whole["1.resid_post"][theirs], atol=2e-2, rtol=1e-2)
    assert len(np.unique(joined.sequence[:])) == joined.n_windows
    assert verify(joined.path) == []
    assert (joined.path / joined.shards[0].file).stat().st_nlink == 2
    np.testing.assert_allclose(
        joined.statistics("1.resid_post")["mean"], whole.statistics("1.resid_post")["mean"], atol=1e-3
    )


def test_a_slice_is_exported_to_every_format(tiny_store, tmp_path):
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    from interp import InputError
    from interp.store.exporting import export, parse_rows

    expected = tiny_store["1.resid_post"][100:200:3]
    for suffix in ("npy", "parquet", "safetensors"):
        n = export(
            tiny_store, "1.resid_post", tmp_path / f"a.{suffix}", rows=parse_rows("100:200:3", tiny_store.n_rows)
        )
        assert n == len(expected)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
    table = pq.read_table(tmp_path / "a.parquet").to_pandas()
    np.testing.assert_array_equal(np.stack(table["activation"]), expected)
    assert table["token"].tolist() == tiny_store.tokens[100:200:3].tolist() and table["row"].iloc[1] == 103
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["activations"].dtype == np.float16 and (tensors["activations"] == expected).all()
    for rows, message in (("x", "as in Python"), ("9999999:", "none of the"), ("", "as in Python")):
        with pytest.raises(InputError, match=message):
            parse_rows(rows, tiny_store.n_rows)
    with pytest.raises(InputError, match="--overwrite"):
        export(tiny_store, "1.resid_post", tmp_path / "a.npy")
    with pytest.raises(InputError, match=".npy, .parquet"):
        export(tiny_store, "1.resid_post", tmp_path / "a.csv")


def test_a_reader_beside_the_writer_never_fails_and_never_sees_a_torn_row(
    tiny_model, tiny_text, tmp_path, small_shards
):
    from interp.errors import InputError, MissingFile
    from interp.store.reading import Store

    whole = make(tiny_model, tiny_text, tmp_path / "whole")
    expected, path = whole["1.resid_post"].stored(slice(None)), tmp_path / "s"
    thread = threading.Thread(target=make, args=(tiny_model, tiny_text, path))
    thread.start()
    opened, seen = 0, set()
    while opened < 200:
        try:
            store = Store(path)
        except (MissingFile, InputError) as error:  # nothing is finished yet
            assert "no finished shard" in str(error) or "no store" in str(error)
            continue
        opened += 1
        seen.add(store.n_rows)
        assert np.array_equal(store["1.resid_post"].stored(slice(None)), expected[: store.n_rows])
    thread.join()
    assert len(seen) > 1 and Store(path).finished


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sites": "7.resid_post"}, "Nearest: "),
        ({"dtype": "int8"}, "store dtype"),
        ({"compression": "rar"}, "zstd, lz4 or gzip"),
        ({"context": 65}, "context 65"),
        ({"n_tokens": 0}, "n_tokens 0"),
        ({"logits": 10**6}, "logits 1000000"),
        ({"text": "no/such/*.txt"}, "no/such"),
    ],
)
def test_wrong_input_writes_nothing(tiny_model, tiny_text, tmp_path, given, message):
    from interp import InputError, record

    settings = {"text": str(tiny_text), "sites": "0.z", "context": 32, "out": tmp_path / "stores" / "s"}
    with pytest.raises(InputError, match=message):
        record(tiny_model, **(settings | given), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_store_is_not_overwritten_and_an_unfinished_one_of_other_settings_not_continued(
    tiny_model, tiny_text, tiny_store, tmp_path
):
    from interp import InputError, record, runs

    with pytest.raises(InputError, match="--overwrite"):
        record(tiny_model, str(tiny_text), context=32, out=tiny_store.path, progress=False)
    store = make(tiny_model, tiny_text, tmp_path / "s", sites="0.z", n_tokens=64)
    runs.write_run(store.path, runs.read(store.path) | {"status": "interrupted"})
    with pytest.raises(InputError, match="other settings"):
        make(tiny_model, tiny_text, tmp_path / "s", sites="1.z", n_tokens=64)


@pytest.mark.parametrize(("value", "dtype", "said"), [(float("nan"), "float32", "NaN"), (1e6, "float16", "infinite")])
def test_activations_that_are_not_finite_are_named_and_what_was_finished_stays(
    tiny_model, tiny_text, tmp_path, small_shards, monkeypatch, value, dtype, said
):
    from interp.errors import NotFinite
    from interp.store import recording
    from interp.store.manifest import read_manifest
    from interp.store.reading import Store

    original = recording.watch

    def broken(model, tokens, functions, **settings):
        def spoil(function):
            def spoiled(activation):
                activation = activation.clone()
                activation[tokens == 7] = value
                function(activation)

            return spoiled if calls else function

        calls.append(1) if len(finished()) >= 2 else None
        return original(model, tokens, {name: spoil(f) for name, f in functions.items()}, **settings)

    calls = []

    def finished():
        return read_manifest(tmp_path / "s").shards

    monkeypatch.setattr(recording, "watch", broken)
    text = tmp_path / "t.txt"
    ids = [i for i in range(1, 300) for _ in range(3)] * 4
    text.write_text("".join(tiny_model.token_text([i for i in ids if i < 128])) * 6)
    with pytest.raises(NotFinite, match=said):
        make(tiny_model, text, tmp_path / "s", dtype=dtype, n_tokens=None)
    assert len(Store(tmp_path / "s").shards) >= 2 and not Store(tmp_path / "s").finished
