"""Pushing along a direction and projecting it out do what their formulas say, and are measured as loops would."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

TOKENS = torch.randint(1, 200, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def make_direction():
    """A random direction of a model, as if found at 1.resid_post."""
    from interp.causal.directions import Direction

    def make(model, answers=None):
        draw = torch.Generator().manual_seed(3)
        vectors = torch.nn.functional.normalize(torch.randn(3, model.d_model, generator=draw), dim=1)
        sites = pd.DataFrame([{"site": "1.resid_post", "chosen": True, "accuracy": 0.9, "gap": 2.0}])
        examples = pd.DataFrame({"held_out": [False, True], "tokens": [[1, 2, 3], [4, 5, 6]]})
        about = {"model": model.provenance(), "answers": answers, "names": ["yes", "no"]}
        return Direction(
            vectors[0], 0.0, "blocks.1.hook_resid_post", "up", "probe", examples, sites, vectors[1:], about
        )

    return make


def test_a_push_adds_the_vector_and_projecting_leaves_nothing(tiny_model, make_direction):
    up = make_direction(tiny_model)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    ((site, push),) = up.steer(4).items()
    assert site == up.site
    assert_close(push(x), x + 4 * up.vector, atol=1e-5, rtol=0)
    ((site, out),) = up.project_out(sites="0.resid_pre").items()
    assert site == "0.resid_pre"
    assert_close(out(x) @ up.vector, torch.zeros(2, 5), atol=1e-5, rtol=0)
    across = torch.linalg.qr(torch.cat([up.vector[:, None], torch.randn(32, 3)], 1))[0][:, 1:]
    assert_close(out(x) @ across, x @ across, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "neox", "mixtral"])
def test_projected_out_of_every_write_nothing_of_it_is_in_the_stream(make_model, make_direction, family):
    from interp.causal.directions import writes
    from interp.decoder.hooks import captured, edited

    model = make_model(family)
    up = make_direction(model)
    assert len(writes(model)) == 2 * model.n_layers + 1 + (family in ("gpt2", "opt"))
    with torch.no_grad(), edited(model, up.ablate(model)), captured(model, ["*.resid_pre", "*.resid_post"]) as cache:
        model(TOKENS)
    assert len(cache) == 6
    for x in cache.values():
        assert float((x @ up.vector).abs().max()) < 1e-4 * float(x.norm(dim=-1).max())


def test_a_dose_is_the_loop_of_runs_with_and_without_the_push(tiny_model, pairs, make_direction):
    from interp.causal.steering import dose_response
    from interp.decoder.hooks import edited

    up = make_direction(tiny_model)
    found = dose_response(tiny_model, up, pairs, strengths=[-4, 0, 4], n_random=2)
    table = found.table().set_index(["measure", "kind", "strength"])
    assert len(table) == 2 * 3 * 2 and set(table.n) == {12} and set(table.n_vectors) == {1, 2}
    for strength in (-4.0, 4.0):
        before, after, moved = [], [], []
        for prompt in pairs.prompts:
            tokens, wrong = torch.tensor([prompt.clean_tokens]), prompt.wrong_token
            ((at, answer),) = prompt.targets
            with torch.no_grad():
                plain = tiny_model(tokens)[0, at]
                with edited(tiny_model, {"1.resid_post": lambda x, c=strength: x + c * up.vector}):
                    pushed = tiny_model(tokens)[0, at]
            before.append(float(plain[answer] - plain[wrong]))
            after.append(float(pushed[answer] - pushed[wrong]))
            p, q = plain.log_softmax(-1), pushed.log_softmax(-1)
            moved.append(float((p.exp() * (p - q)).sum()))
        row = table.loc["log_odds", "direction", strength]
        assert row.before == pytest.approx(np.mean(before), abs=1e-4)
        assert row.effect == pytest.approx(np.mean(after) - np.mean(before), abs=1e-4)
        assert row.positive == np.mean(np.array(after) > 0)
        assert row.ci_low < row.effect < row.ci_high and row.gaps == strength / 2
        assert table.loc["kl", "direction", strength].effect == pytest.approx(np.mean(moved), abs=1e-4)
    assert (table.xs("random", level="kind").least <= table.xs("random", level="kind").largest).all()
    again = dose_response(tiny_model, up, pairs, strengths=[-4, 0, 4], n_random=2)
    assert found.table().equals(again.table())


def test_towards_is_the_answer_of_the_positive_examples_whatever_is_right(tiny_model, pairs, make_direction):
    from interp.causal.steering import Question

    question = Question.of(tiny_model, pairs, make_direction(tiny_model, answers=[5, 6]))
    assert question.toward.unique().tolist() == [5] and question.away.unique().tolist() == [6]
    two = Question.of(tiny_model, ["Mary", "a bag"], toward=[" shop", " bag"], away=[" keys"])
    logprobs = two.logprobs(tiny_model, {})
    shop, bag, keys = (tiny_model.to_tokens(word, prepend_bos=False)[0] for word in (" shop", " bag", " keys"))
    p = logprobs.exp()
    wanted = ((p[:, shop] + p[:, bag]) / p[:, keys]).log()
    assert_close(torch.from_numpy(two.log_odds(logprobs)), wanted, atol=1e-4, rtol=0)


def test_words_are_counted_in_the_continuations_that_generate_writes(tiny_model, make_direction):
    from interp.causal.steering import Question
    from interp.decoder.generation import generate

    up = make_direction(tiny_model)
    texts = ["When Mary", "The keys to the", "John gave"]
    rows = generate(tiny_model, texts, max_new_tokens=12, seed=2, edits=up.steer(6)).rows
    edited = rows[rows["run"] == "edited"]
    toward, away = edited["token"].value_counts().index[[0, -1]]
    mine = [edited[edited["prompt"] == number]["token"] for number in range(3)]
    wanted = [int((tokens == toward).sum() - (tokens == away).sum()) for tokens in mine]
    ids = [tiny_model.to_tokens(text) for text in texts]
    question = Question(ids, torch.full((3, 1), int(toward)), torch.full((3, 1), int(away)))
    assert question.words(tiny_model, up.steer(6), 12, seed=2).tolist() == wanted != [0, 0, 0]


def test_removal_compares_the_task_with_and_without(tiny_model, pairs, make_direction):
    from interp.causal import sweeps
    from interp.causal.steering import removal

    table = removal(tiny_model, make_direction(tiny_model, answers=[5, 6]), pairs, n_random=2)
    own = sweeps.sweep(tiny_model, pairs, [], metrics=["logit_diff"]).baseline["logit_diff"]
    assert table.logit_diff[0] == pytest.approx(own.mean(), abs=1e-4)
    assert table.effect[0] == 0 and (table.effect[1:] != 0).all() and len(table) == 5
    assert table.accuracy[0] == (own > 0).mean()


def test_the_accuracy_of_random_directions_is_the_mean_of_theirs(tiny_model, pairs, make_direction):
    from dataclasses import replace

    from interp.causal.steering import Question, removal

    up, question = make_direction(tiny_model, answers=[5, 6]), Question.of(tiny_model, pairs)
    noise = torch.randn(7, 32, generator=torch.Generator().manual_seed(3))
    shares = [
        (question.log_odds(question.logprobs(tiny_model, replace(up, vector=v).ablate(tiny_model))) > 0).mean()
        for v in noise
    ]
    assert removal(tiny_model, up, pairs, n_random=7, seed=3).accuracy[3] == pytest.approx(np.mean(shares))


def test_perplexity_is_that_of_a_loop_and_paired_by_window(tiny_model, tiny_text, make_direction):
    from interp.causal.perplexity import Perplexity, perplexity
    from interp.data.text import read_text, windows
    from interp.decoder.hooks import edited
    from interp.errors import InputError

    up = make_direction(tiny_model)
    changes = {"pushed": up.steer(3), "itself": tiny_model}
    found = perplexity(tiny_model, str(tiny_text), changes, n=10, context=16)
    table = found.table().set_index("change")
    rows, losses = windows(tiny_model, read_text(str(tiny_text)), context=16)[:10], {"unchanged": [], "pushed": []}
    for row in rows:
        for name, edits in (("unchanged", {}), ("pushed", up.steer(3))):
            with torch.no_grad(), edited(tiny_model, edits):
                logprob = tiny_model(row[None])[0, :-1].log_softmax(-1)
            losses[name].append(-float(logprob[torch.arange(15), row[1:]].mean()))
    assert table.perplexity["pushed"] == pytest.approx(np.exp(np.mean(losses["pushed"])), rel=1e-4)
    assert table.ratio["pushed"] == pytest.approx(
        np.exp(np.mean(losses["pushed"]) - np.mean(losses["unchanged"])), rel=1e-4
    )
    assert table.ci_low["pushed"] <= table.ratio["pushed"] <= table.ci_high["pushed"]
    assert table.ratio["itself"] == table.ci_low["itself"] == table.ci_high["itself"] == 1
    with pytest.raises(InputError, match='called "unchanged"'):
        perplexity(tiny_model, str(tiny_text), {"unchanged": {}})
    assert isinstance(found, Perplexity)


def test_of_a_whole_text_each_token_is_scored_once_with_half_a_window_before_it(tiny_model, tmp_path):
    from interp.causal.perplexity import perplexity
    from interp.data.text import read_text, windows

    for number, text in enumerate(("Mary and John went to the shop. " * 9, "The key is in the old bag. " * 8)):
        (tmp_path / f"{number}.txt").write_text(text)
    corpus, bos = str(tmp_path / "*.txt"), tiny_model.bos
    found = perplexity(tiny_model, corpus, n=None, context=17)
    rows = windows(tiny_model, read_text(corpus), context=17)
    text, losses = rows[:, 1:].flatten().tolist(), []
    assert bos in text[1:]  # between the documents: read, and not scored
    for at, token in enumerate(text):
        if token != bos:
            begin = max(0, -(-(at - 15) // 8) * 8)  # the first of the windows 0, 8, 16, ... that holds it
            begin = min(begin, len(text) - 16)
            with torch.no_grad():
                logits = tiny_model(torch.tensor([[bos, *text[begin:at]]]))[0, -1]
            losses.append(-float(logits.log_softmax(-1)[token]))
    (row,) = found.table().itertuples()
    assert row.n_tokens == len(losses) == found.scored.sum()
    assert row.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert row.perplexity_low < row.perplexity < row.perplexity_high


def test_a_verdict_is_clear_where_the_whole_interval_is_beyond_every_control_pushed_either_way():
    from interp.causal.steering import DoseResponse

    def rows(kind, vector, strength, effects):
        return [{"measure": "log_odds", "kind": kind, "vector": vector, "strength": strength, "prompt": n,
                 "before": 1.0, "after": 1.0 + effect} for n, effect in enumerate(effects)]  # fmt: skip

    values = [
        *rows("direction", 0, 2.0, [3.0, 3.2, 3.4]), *rows("direction", 0, -2.0, [-3.0, -3.2, -3.4]),
        *rows("direction", 0, 4.0, [3.0, 3.2, 3.4]), *rows("direction", 0, -4.0, [1.0, 1.2, 1.4]),
        *(row for strength in (2.0, -2.0) for row in rows("random", 1, strength, [0.1, 0.2, 0.3])),
        *(row for strength in (4.0, -4.0) for row in rows("random", 1, strength, [0.1, 0.2, 0.3])),
        *rows("shuffled", 2, 2.0, [0.5] * 3), *rows("shuffled", 2, -2.0, [2.9] * 3),
        *rows("shuffled", 2, 4.0, [0.5] * 3), *rows("shuffled", 2, -4.0, [-3.1] * 3),
    ]  # fmt: skip
    table = DoseResponse(pd.DataFrame(values), {"gap": 2.0, "seed": 0}).verdict().set_index("strength")
    assert table.shuffled.to_dict() == pytest.approx({2: 2.9, -2: 2.9, 4: 3.1, -4: 3.1})
    assert table.clear.to_dict() == {
        2: True,
        -2: True,
        4: False,
        -4: False,
    }  # beaten by a control; pushed the wrong way


def test_saved_results_load_and_are_drawn(tiny_model, pairs, make_direction, tmp_path, tiny_text):
    from interp.causal.perplexity import Perplexity, perplexity
    from interp.causal.steering import DoseResponse, dose_response

    up = make_direction(tiny_model, answers=[5, 6])
    dose = dose_response(tiny_model, up, pairs, strengths=[-2, 4], n_random=1, new_tokens=2)
    dose.save(tmp_path)
    assert DoseResponse.load(tmp_path).table().equals(dose.table())
    assert set(dose.table().measure) == {"log_odds", "kl", "words"}
    for measure in ("log_odds", "kl", "words"):
        figure = DoseResponse.load(tmp_path).figure(measure)
        lines = {trace.name: trace for trace in figure.data if trace.showlegend is None}
        assert list(lines["the direction, 95% interval"].x) == [-2, 0, 4]
        assert "&quot;" not in figure.to_json()
    change = perplexity(tiny_model, str(tiny_text), {"pushed": up.steer(2)}, n=4, context=16)
    change.save(tmp_path)
    assert Perplexity.load(tmp_path).table().equals(change.table())


def test_prompts_the_direction_was_found_on_are_left_out(tiny_model, make_direction):
    from interp.data.tasks import Prompt, Task
    from interp.errors import InputError

    up = make_direction(tiny_model)
    task = Task("some", [Prompt(row, [(3, 5)]) for row in ([1, 2, 3, 4], [4, 5, 6, 7], [1, 2, 4, 4])])
    assert [p.clean_tokens[2] for p in up.unseen(task).prompts] == [6, 4]
    with pytest.raises(InputError, match="was found on every prompt"):
        up.unseen(Task("one", task.prompts[:1]))


def test_a_wrong_question_is_one_line(tiny_model, pairs, make_direction, make_model):
    from interp.causal.steering import dose_response
    from interp.errors import InputError, WrongModel

    up = make_direction(tiny_model)
    with pytest.raises(InputError, match="no strength but 0"):
        dose_response(tiny_model, up, pairs, strengths=[0])
    with pytest.raises(InputError, match="which tokens to go toward and away from"):
        dose_response(tiny_model, up, ["Mary"])
    with pytest.raises(WrongModel, match='"up" was found in'):
        dose_response(make_model("llama"), up, pairs)
