"""A stream of text goes on from any window as if undisturbed; its worker hands over the same, and leaves nothing."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
from texts import rows_of, slow_document, slow_packed, some_texts, write_jsonl


def everything(stream):
    """What a stream hands out, window by window, and its last word."""
    rows = []
    for batch in stream:
        for window, row in enumerate(rows_of([batch])):
            rows.append((row, batch.place(window)))
    return rows, stream.report


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


def test_standard_input_is_one_document_and_stays_in_the_process(tiny_model, monkeypatch):
    from interp.data.text import TextSettings, stream

    text = "\n".join(some_texts(30))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    source = stream(tiny_model, TextSettings("-", context=16), worker=True)
    assert not source.worker
    assert rows_of(source) == slow_packed([tiny_model.to_tokens(text, prepend_bos=False)], 16, tiny_model.bos)
    assert source.report["counts"]["kept"] == 1


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


def test_models_that_cannot_read_it_are_named(tiny_model, jsonl):
    from interp.data.text import TextSettings, stream
    from interp.errors import InputError

    with pytest.raises(InputError, match="context 65 given: .* reads 2 to 64 tokens"):
        stream(tiny_model, TextSettings(jsonl, context=65))
    with pytest.raises(InputError, match="batch_size 0"):
        stream(tiny_model, TextSettings(jsonl, context=16), batch_size=0)
    with mock.patch.object(tiny_model, "tokenizer", None), pytest.raises(InputError, match="has no tokenizer"):
        stream(tiny_model, TextSettings(jsonl, context=16))
