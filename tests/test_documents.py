"""Documents: the same of every kind of file; what is dropped is counted, what is wrong named."""

import dataclasses
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import some_texts, write_jsonl


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


def test_the_bundled_text_is_read_by_name(tiny_model):
    from interp.data.text import read_text

    corpus = read_text("bundled")
    assert len(corpus.documents) == 2 == len(corpus.hashes) and corpus.files[0].endswith("peter-pan-sample.txt")


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
