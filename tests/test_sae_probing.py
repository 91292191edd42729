"""Sparse probing: a latent that is the label is found, the regression is at its minimum, pooling is a mean."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

WORDS = {"people": ["Mary", "John", "Tom", "James"], "things": ["shop", "drink", "keys", "garden"]}
PAIRS = [(f"the {word} {other}", label) for label, words in WORDS.items() for word in words for other in words]


def test_pooled_latents_are_means_over_the_words_of_each_text(make_dictionary, tiny_model):
    from interp.decoder.hooks import captured
    from sae.probing import text_means

    dct, texts = make_dictionary("jumprelu"), [text for text, _ in PAIRS] + ["a long text about Mary and John " * 4]
    latents, activations = text_means(dct, tiny_model, texts, context=12, batch_size=5)
    for text, z, x in zip(texts, latents, activations, strict=True):
        ids = tiny_model.to_tokens(text)[:12]
        with torch.no_grad(), captured(tiny_model, [dct.site]) as cache:
            tiny_model(torch.tensor([ids]))
        words = cache[dct.site][0, 1:]
        torch.testing.assert_close(x, words.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(z, dct.encode(words).mean(0), rtol=1e-4, atol=1e-5)


def test_a_latent_that_is_the_label_is_found_and_one_is_enough():
    from interp.causal.probing import split
    from sae.probing import fit_and_score

    draw = np.random.default_rng(0)
    labels = np.array(["yes", "no"] * 40)
    is_label = torch.from_numpy(labels == "yes")
    test = split(labels, 0.25, seed=0)
    assert test.sum() == 20 and (test & is_label).sum() == 10
    noise = torch.from_numpy(draw.normal(size=(80, 1)))
    assert fit_and_score(is_label[:, None].double() * 3, is_label, test) == 1.0
    assert abs(fit_and_score(noise, is_label, test) - 0.5) < 0.3
    assert fit_and_score(torch.ones(80, 1, dtype=torch.float64), is_label, test) == 0.5


def test_probing_gives_a_row_for_every_label_and_k(make_dictionary, tiny_model, tmp_path):
    import sae
    from sae.probing import summary

    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in PAIRS))
    table = sae.probe(make_dictionary("jumprelu"), tiny_model, path, ks=(1, 5))
    assert list(table.columns) == ["label", "k", "accuracy", "latents", "n_train", "n_test"]
    assert list(zip(table["label"], table["k"], strict=True)) == [
        ("people", 1), ("people", 5), ("people", 0), ("things", 1), ("things", 5), ("things", 0)
    ]  # fmt: skip
    assert [len(latents) for latents in table["latents"]] == [1, 5, 0] * 2 and table["accuracy"].between(0, 1).all()
    assert table["accuracy"][2] > 0.9  # the words themselves are in the activations
    assert table.equals(sae.probe(make_dictionary("jumprelu"), tiny_model, PAIRS, ks=(1, 5)))
    told = summary(table)
    assert told["probe_k1"] == table[table["k"] == 1]["accuracy"].mean() and "probe_activations" in told


def test_labelled_text_that_cannot_be_read_names_the_line(make_dictionary, tiny_model, tmp_path):
    import sae
    from interp.errors import InputError, MissingFile

    dct, path = make_dictionary(), tmp_path / "labelled.jsonl"
    with pytest.raises(MissingFile, match="labelled.jsonl"):
        sae.probe(dct, tiny_model, path)
    for line in ('{"text": "a"}', "{", "[1]", '"text"'):
        path.write_text(f'{{"text": "a", "label": "b"}}\n\n{line}\n')
        with pytest.raises(InputError, match="line 3"):
            sae.probe(dct, tiny_model, path)
    with pytest.raises(InputError, match="two labels or more .* found: people 16"):
        sae.probe(dct, tiny_model, PAIRS[:16])
    with pytest.raises(InputError, match="found: people 16, things 2"):
        sae.probe(dct, tiny_model, PAIRS[:18])
    with pytest.raises(InputError, match="between 1 and d_sae"):
        sae.probe(dct, tiny_model, PAIRS, ks=(0,))
    with pytest.raises(InputError, match="text 3 holds no token"):
        sae.probe(dct, tiny_model, [*PAIRS[:3], ("", "people"), *PAIRS[3:]])
