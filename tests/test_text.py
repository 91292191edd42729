"""Text: every token once and in its place, against slow twins; a stream goes on from any window as if undisturbed."""

import dataclasses
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = "Mary John went to the shop and gave a bag to Mary keys cabinet old small dog ran along the road\n".split(" ")


def some_texts(n, seed=0, longest=60):
    rng = random.Random(seed)
    return [f"{k} " + " ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for k in range(n)]


def write_jsonl(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text, "id": n}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture(scope="module")
def texts():
    """Twenty documents, short and of several windows, with duplicates, an empty one and one in another script."""
    texts = some_texts(20, longest=40)
    texts[7] = texts[3]
    texts[10] = ""
    texts[11] = "Мария пошла в магазин и дала сумку Ивану. OK"
    texts[19] = texts[0]
    return texts


@pytest.fixture(scope="module")
def jsonl(texts, tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "some.jsonl", texts)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two files, enough for a worker to be far ahead and still at work."""
    folder = tmp_path_factory.mktemp("large")
    for name in ("a", "b"):
        write_jsonl(folder / f"{name}.jsonl", [f"{name} {text}" for text in some_texts(600, longest=270)])
    return folder


def slow_packed(ids_of_documents, context, bos):
    """One token after the other: [(tokens, documents)] of each window."""
    start = [] if bos is None else [bos]
    flow = []
    for number, ids in enumerate(ids_of_documents):
        flow += [(token, number) for token in ((start if flow else []) + ids)]
    body = context - len(start)
    rows = []
    while len(flow) >= body:
        row, flow = flow[:body], flow[body:]
        rows.append(([*start, *(t for t, _ in row)], [*([row[0][1]] * len(start)), *(n for _, n in row)]))
    return rows


def slow_document(ids_of_documents, context, bos):
    start = [] if bos is None else [bos]
    rows = []
    for number, ids in enumerate(ids_of_documents):
        while ids:
            row = start + ids[: context - len(start)]
            ids = ids[context - len(start) :]
            rows.append((row, [number] * len(row)))
    return rows


def rows_of(batches):
    """[(tokens, documents)] without the padding."""
    return [
        (tokens[:n].tolist(), document[:n].tolist())
        for batch in batches
        for tokens, n, document in zip(batch.tokens, batch.lengths, batch.document, strict=True)
    ]


def everything(stream):
    """What a stream hands out, window by window, and its last word."""
    rows = []
    for batch in stream:
        for window, row in enumerate(rows_of([batch])):
            rows.append((row, batch.place(window)))
    return rows, stream.report


@given(
    st.lists(st.text(alphabet="ab \n.é", max_size=30), max_size=12),
    st.integers(2, 9), st.sampled_from([None, 1]), st.sampled_from(["packed", "document"]), st.integers(1, 40),
    st.booleans(), st.one_of(st.none(), st.integers(1, 60)),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_windows_are_those_of_a_slow_loop_and_go_on_from_any_of_them(
    documents, context, bos, packing, group, cut, n_tokens
):
    from interp.data import packing as code
    from interp.data.documents import Document, TextSettings
    from interp.errors import InputError

    chosen = TextSettings("x", context=context, packing=packing, n_tokens=n_tokens)
    tokenizer = code.Tokenizer(lambda pieces: [[ord(c) for c in piece] for piece in pieces], bos)
    ids = [[ord(c) for c in text] for text in documents]
    slow = (slow_packed if packing == "packed" else slow_document)(ids, context, bos)
    if n_tokens is not None:
        enough = np.cumsum([len(row) for row, _ in slow])
        slow = slow[: int(np.searchsorted(enough, n_tokens)) + 1]
    each = [Document(n, text, "", {"digest": str(n)}) for n, text in enumerate(documents)]
    with mock.patch.object(code, "GROUP_CHARS", group), mock.patch.object(code, "PIECE_CHARS", 1):
        if not slow:
            with pytest.raises(InputError, match="fewer than one window"):
                list(code.pack(code.grouped(each, cut), tokenizer, chosen, None))
            return
        found = list(code.pack(code.grouped(each, cut), tokenizer, chosen, None))
        assert rows_of(found) == slow
        places = [some.place(window) for some in found for window in range(len(some))]
        assert [place["windows"] for place in places] == list(range(1, len(slow) + 1))
        for n, place in enumerate(places[:-1], 1):
            rest = code.pack(code.grouped(each[place["document"] :], cut), tokenizer, chosen, place)
            assert rows_of(rest) == slow[n:]


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_a_stream_resumed_at_any_window_is_the_rest_of_the_undisturbed_one(tiny_model, jsonl, packing, shard):
    from interp.data.text import TextSettings, stream

    chosen = TextSettings(jsonl, context=16, packing=packing, shard=shard, held_out=0.2)
    rows, report = everything(stream(tiny_model, chosen, batch_size=5))
    assert len(rows) > 10
    for n, (_, place) in enumerate(rows, 1):
        rest = stream(tiny_model, chosen, batch_size=5, start=json.loads(json.dumps(place)))
        assert everything(rest) == (rows[n:], report)
    some = dataclasses.replace(chosen, n_tokens=100)
    first, report = everything(stream(tiny_model, some))
    assert [row for row, _ in first] == [row for row, _ in rows[: len(first)]]
    assert first[-2][1]["tokens"] < 100 <= first[-1][1]["tokens"]
    for n, (_, place) in enumerate(first, 1):
        assert everything(stream(tiny_model, some, start=place)) == (first[n:], report)


def test_a_stream_over_changed_text_does_not_go_on(tiny_model, jsonl, texts, tmp_path):
    from interp.data.text import TextSettings, stream
    from interp.errors import InputError

    place = next(iter(stream(tiny_model, TextSettings(jsonl, context=16)))).place(12)
    for changed in (["another", *texts[1:]], texts[:2]):
        other = TextSettings(write_jsonl(tmp_path / "other.jsonl", changed), context=16)
        with pytest.raises(InputError, match="are not those read before"):
            list(stream(tiny_model, other, start=place))


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_stream_and_windows_are_the_models_own_tokens_in_order(tiny_model, jsonl, texts, packing):
    from interp.data.text import TextSettings, read_text, stream, windows

    kept = [text for n, text in enumerate(texts) if text and text not in texts[:n]]
    ids = [tiny_model.to_tokens(text, prepend_bos=False) for text in kept]
    slow = (slow_packed if packing == "packed" else slow_document)(ids, 16, tiny_model.bos)
    batches = list(stream(tiny_model, TextSettings(jsonl, context=16, packing=packing), batch_size=7))
    assert rows_of(batches) == slow
    assert {len(batch) for batch in batches[:-1]} == {7} and 1 <= len(batches[-1]) <= 7
    if packing == "packed":
        assert windows(tiny_model, read_text(jsonl), context=16).tolist() == [row for row, _ in slow]
        assert windows(tiny_model, read_text(jsonl), context=16, n_tokens=33).tolist() == [row for row, _ in slow[:3]]
    else:
        for batch in batches:
            beyond = np.arange(16) >= batch.lengths[:, None]
            assert (batch.tokens[beyond] == tiny_model.bos).all() and (batch.document[beyond] == -1).all()


def test_every_drop_is_counted_under_its_first_reason(jsonl, texts):
    from interp.data.documents import Documents, TextSettings

    documents = Documents(TextSettings(jsonl, min_chars=10, max_chars=120, script="Latin"))
    kept = list(documents)
    counts = documents.report()["counts"]
    right_size = [t for t in texts if 10 <= len(t) <= 120]
    assert counts["read"] == 20 == sum(n for fate, n in counts.items() if fate != "read")
    assert counts["too_short"] == sum(len(t) < 10 for t in texts) and counts["too_long"] == sum(
        len(t) > 120 for t in texts
    )
    assert counts["duplicate"] == len(right_size) - len(set(right_size)) and counts["script"] == 1
    assert [d.text for d in kept] == [t for t in dict.fromkeys(right_size) if "Мария" not in t]
    assert [d.number for d in kept] == list(range(len(kept)))
    assert [d.report["counts"]["kept"] for d in kept] == list(range(1, len(kept) + 1))
    assert documents.report()["bytes"] == documents.bytes_total == jsonl.stat().st_size


def test_the_held_out_split_is_disjoint_complete_and_does_not_move_when_the_corpus_grows(tmp_path):
    from interp.data.documents import Documents, TextSettings

    def split(path, name):
        documents = Documents(TextSettings(path, held_out=0.1, split=name))
        return [d.text for d in documents], documents.report()["counts"]

    path = write_jsonl(tmp_path / "a.jsonl", some_texts(2000, longest=5))
    (train, train_counts), (held_out, held_counts) = split(path, "train"), split(path, "held_out")
    both, _ = split(path, "all")
    assert set(train) | set(held_out) == set(both) and len(train) + len(held_out) == len(both) == 2000
    assert 150 < len(held_out) < 250  # 200 expected, standard deviation 13
    assert train_counts["held_out"] == len(held_out) and held_counts["train"] == len(train)
    larger = write_jsonl(tmp_path / "b.jsonl", [*some_texts(500, seed=9), *some_texts(2000, longest=5)])
    assert set(held_out) <= set(split(larger, "held_out")[0])


def test_shards_are_even_and_together_the_whole(jsonl):
    from interp.data.documents import Documents, TextSettings

    whole = [(d.number, d.text) for d in Documents(TextSettings(jsonl))]
    shards = [[(d.number, d.text) for d in Documents(TextSettings(jsonl, shard=(i, 3)))] for i in range(3)]
    assert sorted(d for shard in shards for d in shard) == whole
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(number % 3 == i for i, shard in enumerate(shards) for number, _ in shard)


def test_the_digest_is_of_the_kept_text_alone(jsonl, texts, tmp_path):
    from interp.data.documents import Documents, TextSettings

    def digest(path, **chosen):
        documents = Documents(TextSettings(path, **chosen))
        list(documents)
        return documents.report()["digest"]

    again = write_jsonl(tmp_path / "other-name.jsonl", [t for n, t in enumerate(texts) if t not in texts[:n]], "body")
    assert digest(jsonl) == digest(again, field="body")
    assert digest(jsonl) != digest(jsonl, max_chars=100)


def arrow_stream(path, texts, column="text", rows=7):
    table = pa.table({"id": list(range(len(texts))), column: texts})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def as_txt(folder, texts):
    for n, text in enumerate(texts):
        (folder / f"{n:02}.txt").write_text(text)
    return folder


def as_txt_gz(folder, texts):
    for n, text in enumerate(texts):
        (folder / f"{n:02}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder / "*.gz"


def as_jsonl_gz(folder, texts):
    plain = write_jsonl(folder / "plain.jsonl", texts).read_bytes()
    (folder / "plain.jsonl").unlink()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    return folder / "a.jsonl.gz"


def as_parquet(folder, texts):
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), folder / "a.parquet", row_group_size=6)
    return folder


def as_parquet_of_categories(folder, texts):
    pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), folder / "a.parquet")
    return folder / "a.parquet"


def as_data_set(folder, texts):
    names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]  # the state says the order
    arrow_stream(folder / names[0], texts[:11])
    arrow_stream(folder / names[1], texts[11:], rows=1000)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def as_cached_data_set(folder, texts):
    arrow_stream(folder / "some-train.arrow", texts)
    (folder / "dataset_info.json").write_text("{}")
    return folder


def as_data_set_dict(folder, texts):
    for split, part in (("train", texts[:20]), ("test", texts[20:])):
        (folder / split).mkdir()
        as_data_set(folder / split, part)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return folder


def as_real_data_set(folder, texts):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    shuffled = datasets.Dataset.from_dict({"text": texts[::-1]}).select(range(len(texts) - 1, -1, -1))
    shuffled.save_to_disk(str(folder / "set"), num_shards=3)
    return folder / "set"


def as_real_data_set_dict(folder, texts):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {"train": texts[:30], "test": texts[30:]}
    datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in parts.items()}).save_to_disk(
        str(folder / "set")
    )
    return folder / "set"


@pytest.mark.parametrize(
    "write",
    [as_txt, as_txt_gz, as_jsonl_gz, as_parquet, as_parquet_of_categories, as_data_set, as_cached_data_set,
     as_data_set_dict, as_real_data_set, as_real_data_set_dict],
)  # fmt: skip
def test_every_kind_of_source_gives_the_same_documents(write, tmp_path):
    from interp.data.documents import Documents, TextSettings

    texts = some_texts(40, longest=20)
    documents = Documents(TextSettings(write(tmp_path, texts)))
    assert [d.text for d in documents] == texts
    assert [d.text for d in documents] == texts  # and again
    done = [d.report["bytes"] for d in documents]
    assert done == sorted(done) and documents.report()["bytes"] == documents.bytes_total > 0


def test_sources_are_read_in_the_order_given_and_null_is_an_empty_document(tmp_path):
    from interp.data.documents import Documents, TextSettings

    pq.write_table(pa.table({"text": ["p", None]}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_bytes("\ufeffone\r\ntwo".encode())
    (tmp_path / "c [1].txt").write_text("brackets")
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "d.txt").write_text("deep")
    sources = [tmp_path / "b.txt", tmp_path / "c [1].txt", tmp_path / "a.parquet", tmp_path / "**" / "d.txt"]
    documents = Documents(TextSettings(sources))
    assert [d.text for d in documents] == ["one\ntwo", "brackets", "p", "deep"]
    assert documents.report()["counts"]["too_short"] == 1
    assert [f["path"] for f in documents.files] == [*map(str, sources[:3]), str(tmp_path / "sub" / "deep" / "d.txt")]


def test_standard_input_is_one_document_and_stays_in_the_process(tiny_model, monkeypatch):
    from interp.data.text import TextSettings, stream

    text = "\n".join(some_texts(30))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    source = stream(tiny_model, TextSettings("-", context=16), worker=True)
    assert not source.worker
    assert rows_of(source) == slow_packed([tiny_model.to_tokens(text, prepend_bos=False)], 16, tiny_model.bos)
    assert source.report["counts"]["kept"] == 1


def test_the_bundled_text_is_read_by_name(tiny_model):
    from interp.data.text import read_text

    corpus = read_text("bundled")
    assert len(corpus.documents) == 2 == len(corpus.hashes) and corpus.files[0].endswith("peter-pan-sample.txt")


# --- tokens -----------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="abzé'12²    \n\n\t\r.,~_\u3042\u0301\u00a0\u2028\x1c<|>", max_size=80), st.booleans())
@settings(deadline=None, max_examples=150)
def test_pieces_have_the_tokens_of_the_whole(both_tokenizers, text, special):
    from interp.data import packing

    text = text.replace("<", "<|endoftext|>") if special else text
    for tokenizer in both_tokenizers:
        with mock.patch.object(packing, "PIECE_CHARS", 1):
            pieces = packing._cut(text)
        assert "".join(pieces) == text
        assert sum(tokenizer.encode(pieces), []) == tokenizer.encode([text])[0]


@pytest.fixture(scope="module")
def both_tokenizers(tiny_dir):
    from interp.data.packing import fast_tokenizer
    from interp.decoder.loading import BUNDLED

    found = [fast_tokenizer((folder / "tokenizer.json").read_text(), 0) for folder in (tiny_dir, BUNDLED)]
    assert all(tokenizer.cut for tokenizer in found)
    return found


def test_only_known_tokenizers_are_cut(tiny_dir):
    from interp.data.packing import _can_cut

    file = json.loads((tiny_dir / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": False}
    numbers = split | {"pattern": {"Regex": "\\d{1,2}"}}
    bytes_ = file["pre_tokenizer"]
    assert _can_cut(file) and _can_cut(file | {"normalizer": {"type": "NFC"}})
    assert _can_cut(file | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [numbers, bytes_]}})
    for change in (
        {"pre_tokenizer": None}, {"pre_tokenizer": bytes_ | {"add_prefix_space": True}},
        {"pre_tokenizer": bytes_ | {"use_regex": False}}, {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [numbers | {"behavior": "Removed"}, bytes_]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, bytes_]}},
        {"model": file["model"] | {"type": "Unigram"}},
        {"added_tokens": [file["added_tokens"][0] | {"content": "a b"}]},
        {"added_tokens": [file["added_tokens"][0] | {"rstrip": True}]},
        {"added_tokens": [file["added_tokens"][0] | {"content": "end"}]},
    ):  # fmt: skip
        assert not _can_cut(file | change)


def test_a_tokenizer_in_python_or_with_ways_of_its_own_is_used_itself(tiny_model, jsonl):
    from interp.data.text import TextSettings, stream

    def own(text, *, prepend_bos=True):
        return [5 + len(word) for word in text.split()]

    with mock.patch.object(tiny_model, "to_tokens", own):
        source = stream(tiny_model, TextSettings(jsonl, context=16), worker=True)
        assert not source.worker
        tokens = np.concatenate([batch.tokens.ravel() for batch in source])
    assert {*tokens} <= {tiny_model.bos, *range(6, 20)} and len({*tokens}) > 4


def test_importing_the_module_loads_no_torch():
    code = "import sys, interp.data.text; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the worker -------------------------------------------------------------------------------------------------------


def test_the_worker_hands_over_what_the_process_itself_would(tiny_model, large):
    from interp.data.text import TextSettings, stream

    for chosen in (
        TextSettings(large, context=64, n_tokens=20_000),
        TextSettings(large / "b.jsonl", context=32, packing="document", shard=(1, 6), max_chars=900),
    ):
        here, there = (stream(tiny_model, chosen, worker=worker) for worker in (False, True))
        assert there.worker and not here.worker and here.files == there.files
        for ours, theirs in zip(here, there, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours.arrays, theirs.arrays, strict=True))
            assert ours.reports == theirs.reports and here.report == there.report
            assert [a.dtype for a in theirs.arrays] == [np.int32, np.int32, np.int64, np.int64]
            assert all(array.flags.writeable for array in theirs.arrays)
        assert here.report == there.report
        middle = ours.place(0)
        assert everything(stream(tiny_model, chosen, start=middle, worker=True)) == everything(
            stream(tiny_model, chosen, start=middle, worker=False)
        )


def test_a_worker_is_started_for_four_megabytes_and_no_less(tiny_model, tmp_path):
    from interp.data.text import TextSettings, stream

    for name in ("a.txt", "b.txt"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2_500_000)
    assert stream(tiny_model, TextSettings(tmp_path, context=32)).worker
    assert not stream(tiny_model, TextSettings(tmp_path / "a.txt", context=32)).worker
    assert not stream(tiny_model, TextSettings(tmp_path, context=32, n_tokens=10_000)).worker


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends_soon(pid, seconds=100):
    deadline = time.time() + seconds
    while is_running(pid) and time.time() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


@pytest.mark.parametrize("how", ["break", "exception", "close", "with", "whole"])
def test_no_process_is_left_when_the_loop_is(tiny_model, large, how):
    from interp.data.text import TextSettings, stream

    source = stream(tiny_model, TextSettings(large / "a.jsonl", context=64, n_tokens=100_000), worker=True)
    if how == "break":
        for _ in source:
            pid = source._process.pid
            assert is_running(pid)
            break
    elif how == "exception":
        with pytest.raises(KeyError):
            for _ in source:
                pid = source._process.pid
                raise KeyError
    elif how == "close":
        batches = iter(source)
        next(batches)
        pid = source._process.pid
        source.close()
        with pytest.raises(RuntimeError, match="ended"):
            list(batches)
    elif how == "with":
        with source:
            batches = iter(source)
            next(batches)
            pid = source._process.pid
    else:
        list(source)
        pid = source._process.pid
    assert not is_running(pid)
    assert subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode == 1  # nor a zombie


CONSUMER = """
import signal, sys, time
from interp.data.text import Documents, Stream, TextSettings, fast_tokenizer
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started the tests with &
tokenizer = fast_tokenizer(open(sys.argv[1] + "/tokenizer.json").read(), 0)
source = Stream(Documents(TextSettings(sys.argv[2], context=32)), tokenizer, None, 4, worker=True)
for batch in source:
    print(source._process.pid, flush=True)
    time.sleep(1000)
"""  # unguarded, as people write scripts: multiprocessing's spawn would run it again in the child


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_a_parent_that_is_killed_or_interrupted(tiny_dir, large, number, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CONSUMER)
    command = [sys.executable, script, str(tiny_dir), str(large)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        os.killpg(parent.pid, number)  # as a terminal sends Ctrl-C: to the whole group
        parent.wait()
        assert ends_soon(pid)
        tracebacks = parent.stderr.read().count("Traceback")
    assert tracebacks == (number == signal.SIGINT)


def test_a_worker_that_is_killed_is_an_error_not_an_end(tiny_model, large):
    from interp.data.text import TextSettings, stream

    source = stream(tiny_model, TextSettings(large / "a.jsonl", context=32), batch_size=4, worker=True)
    with pytest.raises(RuntimeError, match="ended"):
        for _ in source:
            source._process.kill()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [False, True])
def test_bad_text_far_in_is_the_same_error_from_the_worker(tiny_model, large, tmp_path, worker):
    from interp.data.text import TextSettings, stream
    from interp.errors import InputError

    (tmp_path / "bad.txt").write_bytes(b"fine so far \xff and no more")
    source = stream(tiny_model, TextSettings([large / "a.jsonl", tmp_path / "bad.txt"], context=64), worker=worker)
    seen = 0
    with pytest.raises(InputError) as error:
        for batch in source:
            seen += len(batch)
    assert str(error.value) == f"{tmp_path}/bad.txt is not UTF-8 text: byte 12 is 0xff. Save it as UTF-8."
    assert seen > 100 and type(error.value) is InputError
    if worker:
        assert not is_running(source._process.pid)


def bad_files(folder):
    """Each file that is wrong, and what its message says."""
    fine = json.dumps({"text": "fine", "id": 1})
    yield "a.jsonl", f"{fine}\n\n{{no\n".encode(), "a.jsonl line 3 is not JSON (Expecting property name"
    yield "b.jsonl", b'{"body": "x", "id": 1}\n', 'b.jsonl line 1 has no field "text"; there is: body, id.'
    yield "c.jsonl", b"[1]\n", 'c.jsonl line 1 has no field "text"; there is: list.'
    yield "d.jsonl", b'{"text": 5}\n', 'd.jsonl line 1: "text" is int, not text.'
    yield "e.jsonl", b'{"text": "\xe9"}\n', "e.jsonl line 1 is not UTF-8 text: byte 10 is 0xe9"
    yield "f.jsonl", b'{"text": "x\\ud800"}\n', "f.jsonl line 1: character 1 is half of a surrogate pair"
    yield "g.jsonl", b"[" * 100_000, "g.jsonl line 1 is not JSON"
    yield "h.jsonl.gz", b"no gzip at all", "h.jsonl.gz cannot be read: Not a gzipped file"
    yield "i.txt.gz", gzip.compress(b"x" * 1000)[:-9], "i.txt.gz cannot be read: Compressed file ended"
    yield "j.txt", b"\xff\xfeu\0t\0f\0", "j.txt is not UTF-8 text: byte 0 is 0xff"
    yield "k.parquet", b"no parquet", "k.parquet cannot be read: "
    yield "l.arrow", b"no arrow stream", "l.arrow cannot be read: "
    yield "m.arrow", b"", "m.arrow cannot be read: "
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), folder / "n.parquet")
    yield "n.parquet", None, 'n.parquet has no column "text"; there is: body, n.'
    pq.write_table(pa.table({"text": [1.5]}), folder / "o.parquet")
    yield "o.parquet", None, 'o.parquet row 1: "text" is float, not text.'
    pq.write_table(pa.table({"text": ["some text " * 2000] * 100}), folder / "p.parquet", compression="none")
    yield "p.parquet", (folder / "p.parquet").read_bytes()[:-100], "p.parquet cannot be read: "
    arrow_stream(folder / "q.arrow", ["x"], column="body")
    yield "q.arrow", None, 'q.arrow has no column "text"; there is: id, body.'
    arrow_stream(folder / "r.arrow", ["some text " * 2000] * 100)
    yield "r.arrow", (folder / "r.arrow").read_bytes()[:-5000], "r.arrow cannot be read: "
    yield "s.txt", b"", "s.txt: none of 1 documents is left (1 too_short)."
    yield "t.jsonl", b"", "t.jsonl: no document in it."
    yield "u.txt", b"too little", "tokens, fewer than one window of 16."


def test_bad_files_are_named_in_one_line_with_what_is_wrong(tiny_model, tmp_path):
    from interp.data.text import TextSettings, stream
    from interp.errors import InputError

    for name, content, message in bad_files(tmp_path):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            list(stream(tiny_model, TextSettings(tmp_path / name, context=16)))
        assert message in str(error.value) and str(tmp_path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_a_data_file_without_the_field_is_refused_before_anything_is_read(tiny_model, large, tmp_path):
    from interp.data.text import TextSettings, stream
    from interp.errors import InputError

    write_jsonl(tmp_path / "b.jsonl", ["x"], field="body")
    with pytest.raises(InputError, match="there is: body, id"):
        stream(tiny_model, TextSettings([large, tmp_path / "b.jsonl"], context=16))


def test_missing_text_is_answered_with_the_nearest_there_is(tmp_path):
    from interp.data.text import read_text
    from interp.errors import InputError, MissingFile

    (tmp_path / "novel.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFile, match="Nearest: .*novel.jsonl"):
        read_text(tmp_path / "novle.jsonl")
    with pytest.raises(MissingFile, match="no text at .*empty"):
        read_text(tmp_path / "empty")
    with pytest.raises(MissingFile, match="no text at"):
        read_text(tmp_path / "*.parquet")
    (tmp_path / "empty" / "state.json").write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
    with pytest.raises(MissingFile, match="gone.arrow is missing"):
        read_text(tmp_path / "empty")
    (tmp_path / "empty" / "state.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_text(tmp_path / "empty")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"sources": []}, "no text named"), ({"sources": ["-", "-"]}, "given twice"),
        ({"context": 1}, "context 1 given"), ({"n_tokens": 0}, "n_tokens 0 given"),
        ({"packing": "loose"}, 'packing "loose"'), ({"min_chars": -1}, "min_chars -1"),
        ({"min_chars": 5, "max_chars": 4}, "max_chars 4 is below min_chars 5"), ({"held_out": 1.0}, "held_out 1.0"),
        ({"split": "test"}, 'split "test"'), ({"split": "held_out"}, "of held_out 0"), ({"shard": (2, 2)}, "shard 2/2"),
        ({"script": "latn"}, 'no script "latn". Nearest: latin'),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(wrong, message):
    from interp.data.text import TextSettings
    from interp.errors import InputError

    with pytest.raises(InputError) as error:
        TextSettings(**{"sources": "x"} | wrong)
    assert message in str(error.value)


def test_settings_survive_json():
    from interp.data.text import TextSettings

    chosen = TextSettings(["a.txt"], script="cyrillic", shard=(1, 4), held_out=0.25)
    assert TextSettings(**json.loads(json.dumps(dataclasses.asdict(chosen)))) == chosen


def test_models_that_cannot_read_it_are_named(tiny_model, jsonl):
    from interp.data.text import TextSettings, stream
    from interp.errors import InputError

    with pytest.raises(InputError, match="context 65 given: .* reads 2 to 64 tokens"):
        stream(tiny_model, TextSettings(jsonl, context=65))
    with pytest.raises(InputError, match="batch_size 0"):
        stream(tiny_model, TextSettings(jsonl, context=16), batch_size=0)
    with mock.patch.object(tiny_model, "tokenizer", None), pytest.raises(InputError, match="has no tokenizer"):
        stream(tiny_model, TextSettings(jsonl, context=16))
