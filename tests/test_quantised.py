"""8 and 4 bits: a quantised model is the one of its dequantised weights, whatever asks. Runs where bitsandbytes is."""

from __future__ import annotations

import json

import pytest
import torch
from families import build

QUANTISED = ("8bit", "4bit")
TOKENS = torch.randint(1, 119, (3, 9), generator=torch.Generator().manual_seed(0))


def of_the_codes(path, kind):
    """The model with the weights that bitsandbytes says its codes stand for, by transformers alone."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from interp.decoder.quantised import SETTINGS

    settings = {"quantization_config": BitsAndBytesConfig(**SETTINGS[kind]), "device_map": {"": "cpu"}}
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **settings).dequantize().eval()


@pytest.fixture(scope="module", params=QUANTISED)
def both(request, tmp_path_factory):
    """A model of codes, and a directory with their numbers, loaded."""
    pytest.importorskip("bitsandbytes", reason="8 and 4 bits take bitsandbytes")
    from interp.decoder.loading import load_model

    folder = build("Llama", tmp_path_factory.mktemp("quantised") / "model")
    numbers = of_the_codes(folder, request.param)
    numbers.config.quantization_config = None
    del numbers.config.quantization_config
    numbers.save_pretrained(folder.with_name("numbers"))
    return load_model(str(folder.with_name("numbers"))), load_model(str(folder), quantize=request.param)


def test_every_site_and_the_plain_twin_are_those_of_the_numbers(both):
    from interp.decoder.hooks import captured

    found = []
    for model in both:
        with torch.no_grad(), captured(model, model.sites) as cache:
            found.append((model(TOKENS), model.plain_pass(TOKENS), dict(cache)))
    (a, plain_a, seen_a), (b, plain_b, seen_b) = found
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(plain_a, plain_b)
    for name in seen_a:
        torch.testing.assert_close(seen_a[name], seen_b[name])


def test_a_prompt_does_not_hang_on_those_beside_it_nor_a_position_on_later_ones(both):
    coded = both[1]
    with torch.no_grad():
        together = coded(TOKENS)
        torch.testing.assert_close(coded(TOKENS[:1]), together[:1])
        torch.testing.assert_close(coded(TOKENS[:, :4]), together[:, :4])


def test_sweeps_edges_and_generation_are_those_of_the_numbers(both):
    import interp
    from interp.causal.attribution import edge_scores
    from interp.data.tasks import Prompt, Task

    rows = TOKENS.tolist()
    task = Task("pairs", [Prompt(row, [(8, 3)], row[:3] + [7] + row[4:], 5, {"end": 8}) for row in rows])
    for ask in (
        lambda model: interp.ablate(model, task, components="heads,mlps", method="mean").table().effect.to_numpy(),
        lambda model: interp.attribute(model, task).table().effect.to_numpy(),
        lambda model: edge_scores(model, task, method="eap-ig"),
        lambda model: interp.attribute_logits(model, rows[0], answer=3, wrong=5).rows.contribution.to_numpy(),
    ):
        numbers, codes = map(ask, both)
        assert abs(numbers).max() > 0.01 and numbers == pytest.approx(codes, abs=1e-5)
    texts = [interp.generate(model, TOKENS[:1], max_new_tokens=5, temperature=0.0).tokens() for model in both]
    assert texts[0].token.tolist() == texts[1].token.tolist()


def test_the_check_has_no_wrong_line_and_what_reads_all_weights_is_refused(both):
    import interp
    from interp.errors import InputError
    from interp.lenses.weights import read

    assert not [line for line in interp.check(both[1]).lines if line.verdict == "WRONG"]
    with pytest.raises(InputError, match="a circuit of weights reads the weights of .* which are quantised"):
        next(read(both[1]))


def test_in_half_precision_the_numbers_are_rounded_to_it(both):
    import interp

    lines = interp.check(interp.load_model(both[1].name, quantize=both[1].quantisation[:4], dtype="bfloat16")).lines
    assert not [line for line in lines if line.verdict == "WRONG"]


def test_matrices_that_hooks_would_take_apart_are_refused_by_name(tmp_path):
    pytest.importorskip("bitsandbytes", reason="8 and 4 bits take bitsandbytes")
    from interp.decoder.loading import load_model
    from interp.errors import InputError

    folder = build("GPT-2", tmp_path / "model")
    with pytest.raises(InputError, match="queries, keys and values in one matrix .transformer.h.0.attn.c_attn."):
        load_model(str(folder), quantize="4bit")


def test_a_run_says_what_is_quantised(tiny_dir, tmp_path):
    pytest.importorskip("bitsandbytes", reason="8 and 4 bits take bitsandbytes")
    from interp.cli import main

    folder = build("Llama", tmp_path / "model")
    command = ["record", "--model", str(folder), "--text", "bundled", "--n-tokens", "64", "--context", "16"]
    assert main([*command, "--quantize", "4bit", "--out", "q", "--workspace", str(tmp_path)]) == 0
    run = json.loads((tmp_path / "stores" / "q" / "run.json").read_text())
    assert run["model"]["quantisation"] == "4bit nf4" and run["status"] == "done"
