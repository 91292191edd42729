"""Windows of tokens: each token once and in its place, against slow twins."""

import json
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import rows_of, slow_document, slow_packed


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
    from interp.decoder.sources import BUNDLED

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
