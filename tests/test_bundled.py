"""The bundled model keeps its promises, on words and templates that it was not trained on."""

import json
import random
import re

import pytest

from interp.data import words


@pytest.fixture(scope="module")
def bundled():
    from interp import load_model

    return load_model("bundled")


def test_the_tasks_words_and_templates_were_not_trained_on():
    from interp.bundled import generated
    from interp.data.builtin.copying import IOI_TEMPLATES
    from interp.data.builtin.grammar import AGREEMENT_FRAMES, AGREEMENT_PREPOSITIONS

    nouns = {noun for pair in words.NOUNS for noun in pair}
    trained = {noun for pair in generated.SINGULAR_PLURAL for noun in pair}
    assert not set(words.NAMES) & set(generated.NAMES)
    assert set(words.CAPITALS) <= set(generated.CAPITALS.items())  # these were
    assert not nouns & trained and not set(AGREEMENT_PREPOSITIONS) & set(generated.NEAR)
    rng, known = random.Random(0), generated.Vocabulary(generated.NAMES, generated.SINGULAR_PLURAL, ["so it was"])
    templates = [re.sub(r"\{\w+\}", r"\\w+", form.replace("{", " {")) for form in IOI_TEMPLATES]
    for _ in range(5000):
        sentence = generated.sentence(rng, known)
        assert not set(re.findall(r"\w+", sentence)) & set(words.NAMES)
        assert not any(re.match(form, sentence.replace("[", "").replace("]", "")) for form in templates)
    for form in generated._FRAMES:
        assert form.strip().lower() not in {frame.partition(" the{N}")[0].lower() for frame in AGREEMENT_FRAMES[1:4]}


def test_a_sentence_asks_for_what_stands_in_brackets():
    from interp.bundled import generated

    rng = random.Random(0)
    known = generated.Vocabulary(generated.NAMES, generated.SINGULAR_PLURAL, ["so it was", "a little further"])
    for _ in range(500):
        sentence = generated.indirect_object(rng, known)
        ((answer),) = re.findall(r"\[ (\w+)\]", sentence)
        before = sentence[: sentence.index("[")]
        assert before.endswith(" to") and re.search(rf"\b{answer}\b", before)
        sentence = generated.agreement(rng, known)
        number = {noun: i for pair in generated.SINGULAR_PLURAL for i, noun in enumerate(pair)}
        sentence = re.sub(r"^\w+ (the|a|that) \w+ (?=the )", "", sentence)  # "Near the bridge", before the subject
        subject = next(word for word in re.findall(r"\w+", sentence) if word in number)
        verb = re.search(r"\[ (\w+)\]", sentence)[1]
        assert verb in (("is", "was", "has", "does"), ("are", "were", "have", "do"))[number[subject]]


def test_the_names_used_are_single_tokens(bundled):
    assert all(len(bundled.to_tokens(" " + name, prepend_bos=False)) == 1 for name in words.NAMES)


@pytest.mark.parametrize(("task", "least"), [("ioi", 0.95), ("agreement", 0.90)])
def test_accuracy_on_held_out_names_and_templates(bundled, task, least):
    from interp.bundled.evaluate import task_accuracy

    assert task_accuracy(bundled, task, n=400)["accuracy"] >= least


def test_the_second_copy_of_a_random_sequence_costs_at_most_half(bundled):
    from interp.bundled.evaluate import repeated_loss

    assert repeated_loss(bundled, n=50)["ratio"] <= 0.5


def test_the_model_card_states_what_the_script_measures(bundled):
    from interp.bundled.evaluate import bits_per_byte, repeated_loss
    from interp.data.text import read_text
    from interp.decoder.sources import BUNDLED

    figures = json.loads((BUNDLED / "figures.json").read_text())
    assert repeated_loss(bundled)["second"] == pytest.approx(figures["repeated"]["second"], abs=1e-3)
    assert bits_per_byte(bundled, read_text("bundled")) == pytest.approx(figures["bits_per_byte"]["value"], abs=1e-3)
    card = (BUNDLED / "README.md").read_text()
    assert (
        f"{figures['bits_per_byte']['value']:.3f}" in card and f"{figures['indirect_object']['accuracy']:.1%}" in card
    )


def test_the_folder_is_small_and_loads_as_any_hugging_face_directory():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from interp.decoder.sources import BUNDLED

    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 12e6
    assert str(AutoModelForCausalLM.from_pretrained(BUNDLED).dtype) == "torch.float32"
    assert AutoTokenizer.from_pretrained(BUNDLED).bos_token == "<|endoftext|>"


def test_training_continues_after_a_kill_to_the_identical_weights(tmp_path, tiny_text):
    """Two steps, the process gone, two more; against four at once."""
    from safetensors.torch import load_file

    from interp.bundled import train

    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text(tiny_text.read_text())
    settings = train.Settings(
        n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=3000, n_novels=4, n_sentences=4, n_steps=4
    )

    class Killed(Exception):
        pass

    def dying(self, step, original=train.Batches.__getitem__):
        if step == 3:
            raise Killed
        return original(self, step)

    run = {"text": text, "settings": settings, "device": "cpu", "compile": False, "checkpoint_every": 2}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train.Batches, "__getitem__", dying)
        with pytest.raises(Killed):
            train.train(out=tmp_path / "a", work=tmp_path / "wa", **run)
    train.train(out=tmp_path / "a", work=tmp_path / "wa", **run)
    train.train(out=tmp_path / "b", work=tmp_path / "wb", **run)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one)
