"""Patterns and scores of heads: hand-made heads score 1, patterns are Hugging Face's own, edits are seen."""

import numpy as np
import pytest
import torch

FAMILIES = ["gpt2", "llama", "opt", "neox", "mixtral"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, make_model):
    return make_model(request.param)


def tokens_of(model, n=3, length=11, seed=0):
    return torch.randint(1, model.d_vocab, (n, length), generator=torch.Generator().manual_seed(seed))


def test_patterns_are_those_of_eager_attention_in_hugging_face(model):
    from transformers import AutoModelForCausalLM

    import interp

    tokens = tokens_of(model)[:1]
    plain = AutoModelForCausalLM.from_pretrained(model.name, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = torch.cat(plain(tokens, output_attentions=True).attentions).numpy()
    found = interp.patterns(model, tokens[0].tolist())
    np.testing.assert_allclose(found.pattern, wanted, atol=2e-6)  # float32, sums in another order
    one = interp.patterns(model, tokens[0].tolist(), layers=[1])
    np.testing.assert_array_equal(one.of("L1H3"), found.of("L1H3"))


def test_weighted_patterns_sum_to_what_a_head_writes(model):
    """Where a query has one key, attention x |v W_O| is the length of what the head writes."""
    import interp
    from interp.decoder import parts
    from interp.decoder.hooks import captured

    tokens = tokens_of(model)[:1]
    found = interp.patterns(model, tokens[0].tolist())
    with torch.no_grad(), captured(model, "*.z") as cache:
        model(tokens)
        written = [parts.head_outputs(model, at, z)[0, 0].norm(dim=-1) for at, z in enumerate(cache.values())]
    np.testing.assert_allclose(found.weighted[:, :, 0, 0], torch.stack(written).numpy(), rtol=1e-5)


def test_patterns_of_an_edited_run_and_no_hook_left_behind(tiny_model):
    import interp

    text = "The keys to the cabinet are old"
    clean = interp.patterns(tiny_model, text)
    edited = interp.patterns(tiny_model, text, edits={"0.attn_out": torch.zeros_like})
    np.testing.assert_array_equal(edited.pattern[0], clean.pattern[0])  # nothing before it has changed
    assert np.abs(edited.pattern[1] - clean.pattern[1]).max() > 1e-3
    held = interp.patterns(tiny_model, text, edits={"1.pattern": lambda p: torch.eye(p.shape[-1]).expand_as(p)})
    assert (held.entropy[1] == 0).all()
    np.testing.assert_array_equal(interp.patterns(tiny_model, text).pattern, clean.pattern)


def test_patterns_saved_and_loaded_are_the_same_to_the_bit(tiny_model, tmp_path):
    import interp
    from interp.lenses.heads import Patterns

    found = interp.patterns(tiny_model, "A small dog ran along the road")
    found.save(tmp_path)
    again = Patterns.load(tmp_path)
    assert (again.layers, again.tokens, again.text, again.about) == (
        found.layers,
        found.tokens,
        found.text,
        found.about,
    )
    np.testing.assert_array_equal(again.pattern, found.pattern)
    pd_table = again.table()
    assert (again.weighted == found.weighted).all() and len(pd_table) == 8
    assert np.allclose(pd_table.first_token, found.pattern[..., 1:, 0].mean(-1).ravel())


def test_hand_made_heads_score_one(tiny_model):
    """Patterns are put into the model: a previous-token, current-token, first-token, duplicate-token and induction head
    and one that looks at all alike."""
    import interp
    from interp.lenses.heads import SCORES, repeats

    task = repeats(tiny_model, n=4, length=6, seed=1)
    size = task.length
    query, key = torch.arange(size)[:, None], torch.arange(size)[None, :]

    def at(offset):
        """Each query looks `offset` tokens back, and at the first token where there is none."""
        return (key == torch.where(query >= offset, query - offset, 0)).float()

    alike = torch.ones(size, size).tril()
    made = [torch.stack([at(1), at(0), at(size), at(6)]), torch.stack([at(5), alike / alike.sum(-1, keepdim=True)] * 2)]
    edits = {f"{layer}.pattern": (lambda p, made=made: made.expand_as(p)) for layer, made in enumerate(made)}
    scores = interp.head_scores(tiny_model, task, edits=edits)
    table = scores.table().set_index("component")
    heads = dict(zip(SCORES[:5], ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"], strict=True))
    for score, head in heads.items():
        assert table.loc[head, score] == 1, score
        others = table.loc[[other for other in heads.values() if other != head], score]
        assert (others < 1 if score == "first_token" else others == 0).all()  # where nothing else is, they look there
        assert table.loc["L1H1", score] == pytest.approx(scores.chance[score], rel=1e-5)
    assert (table.loc[list(heads.values()), "entropy"] == 0).all()
    assert table.loc["L1H1", "entropy"] == pytest.approx(np.log(np.arange(2, size + 1)).mean(), rel=1e-5)


def test_scores_are_those_of_a_slow_loop_also_where_tokens_come_again_by_chance(tiny_model):
    import interp

    tokens = torch.randint(1, 5, (3, 12), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = tokens[1, 6] = tiny_model.bos
    table = interp.head_scores(tiny_model, tokens).table()
    kept = {"induction": [], "duplicate_token": []}
    for sequence in tokens:
        ids, pattern = sequence.tolist(), interp.patterns(tiny_model, sequence.tolist()).of("L1H2")
        found = {"induction": [], "duplicate_token": []}
        for q in range(12):
            before = [k for k in range(q) if ids[k] == ids[q] and ids[q] != tiny_model.bos]
            if before:
                found["duplicate_token"].append(sum(pattern[q, k] for k in before))
                found["induction"].append(sum(pattern[q, k + 1] for k in before))
        for score, values in found.items():
            kept[score].append(np.mean(values))
    row = table.set_index("component").loc["L1H2"]
    for score, values in kept.items():
        assert row[score] == pytest.approx(np.mean(values), rel=1e-5)
        assert row[f"{score}_low"] <= row[score] <= row[f"{score}_high"]


def test_a_head_that_looks_at_a_distance_is_told_from_induction_by_its_control(tiny_model):
    """A head that always looks 5 tokens back scores 1 on copies of 6 tokens, and 1 where nothing is repeated."""
    import interp

    def five_back(pattern):
        at = torch.arange(pattern.shape[-1])
        return (at[None, :] == (at[:, None] - 5).clamp(min=0)).float().expand_as(pattern)

    row = interp.head_scores(tiny_model, n=3, length=6, edits={"0.pattern": five_back}).table().iloc[0]
    assert row.induction == row.induction_control == 1


def test_scores_of_prompts_of_unlike_lengths_are_those_of_each_alone(tiny_model):
    import interp
    from interp.data.prompts import Prompt, Task

    ids = [tokens_of(tiny_model, 1, length)[0].tolist() for length in (7, 11)]
    together = interp.head_scores(tiny_model, Task("two", [Prompt(one, [(3, 1)]) for one in ids]))
    for at, one in enumerate(ids):
        alone = interp.head_scores(tiny_model, torch.tensor([one]))
        for score, values in alone.values.items():
            np.testing.assert_allclose(together.values[score][:, at], values[:, 0], atol=1e-6)


def test_scores_saved_and_loaded_are_the_same_and_of_a_seed(tiny_model, tmp_path):
    import interp
    from interp.lenses.heads import HeadScores

    first = interp.head_scores(tiny_model, n=4, length=5, seed=3)
    first.save(tmp_path)
    for other in (HeadScores.load(tmp_path), interp.head_scores(tiny_model, n=4, length=5, seed=3)):
        assert other.table().equals(first.table()) and other.chance == first.chance
        assert all(
            (other.values[score] == values).all() or np.isnan(values).any() for score, values in first.values.items()
        )
    assert not interp.head_scores(tiny_model, n=4, length=5, seed=4).table().equals(first.table())


def test_what_cannot_be_scored_is_refused(tiny_model, tmp_path):
    import interp
    from interp.lenses.heads import HeadScores, Patterns

    with pytest.raises(interp.InputError, match="room for 2 to 31"):
        interp.head_scores(tiny_model, length=40)
    with pytest.raises(interp.InputError, match="2 tokens given: 3|sequences of 2 to 2"):
        interp.head_scores(tiny_model, torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(interp.InputError, match=r"layers \[5\]"):
        interp.patterns(tiny_model, "The keys", layers=[5])
    with pytest.raises(interp.InputError, match="two or more"):
        interp.patterns(tiny_model, [3])
    with pytest.raises(interp.InputError, match="Nearest: induction"):
        interp.head_scores(tiny_model, n=2, length=4).top("inducton")
    with pytest.raises(interp.InputError, match="L1H0"):
        interp.patterns(tiny_model, "The keys", layers=[1]).of("L0H1")
    for kind in (Patterns, HeadScores):
        with pytest.raises(interp.InputError, match="interp heads"):
            kind.load(tmp_path)


def test_figures_escape_tokens_and_begin_at_zero(tiny_model):
    import interp

    figure = interp.patterns(tiny_model, "The <b>keys</b>").figure("L1H1", weighted=True)
    assert "<b>" not in figure.to_json() and figure.data[0].zmin == 0
    assert len(figure.data[0].z) == len(figure.layout.xaxis.ticktext)
    figure = interp.head_scores(tiny_model, n=2, length=4).figure("previous_token")
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 1)
    assert figure.data[1].customdata[5] == "L1H1"


def test_a_difference_of_patterns_has_a_sign_and_is_of_as_many_tokens(tiny_model):
    import interp

    one, other = (interp.patterns(tiny_model, text) for text in ("The key is old", "The book is old"))
    figure = one.figure("L1H1", less=other, called="the key - the book")
    np.testing.assert_array_equal(np.array(figure.data[0].z, np.float32), one.of("L1H1") - other.of("L1H1"))
    assert figure.data[0].zmin == -figure.data[0].zmax < 0 and "the key - the book: " in figure.to_json()
    with pytest.raises(interp.InputError, match="tokens given"):
        one.figure("L1H1", less=interp.patterns(tiny_model, "The key"))
