"""The logit lens against Hugging Face's own hidden states, norm and unembedding, and over tasks against the loop."""

import numpy as np
import pytest
import torch

FAMILIES = ["gpt2", "llama", "mixtral", "opt", "neox"]
FINAL_NORM = {"gpt2": "transformer.ln_f", "llama": "model.norm", "mixtral": "model.norm",
              "opt": "model.decoder.final_layer_norm", "neox": "gpt_neox.final_layer_norm"}  # fmt: skip
IDS = [0, 17, 45, 120, 33, 9, 81]


@pytest.fixture(scope="module", params=FAMILIES)
def named(request, make_model):
    return request.param, make_model(request.param)


def probabilities(model, family, ids):
    """[layer, pos, d_vocab], by Hugging Face's model alone; the last is its output."""
    with torch.no_grad():
        out = model.plain(torch.tensor([ids]), output_hidden_states=True)
        streams, head = out.hidden_states[:-1], model.plain.get_output_embeddings()
        early = [head(model.plain.get_submodule(FINAL_NORM[family])(stream))[0] for stream in streams]
    return torch.stack([*early, out.logits[0]]).log_softmax(-1)


def test_each_layer_says_what_the_norm_and_the_unembedding_make_of_its_stream(named):
    import interp

    family, model = named
    rows = interp.logit_lens(model, IDS, top=3).table()
    wanted = probabilities(model, family, IDS)
    assert rows["layer"].unique().tolist() == [-1, 0, 1, 2]
    for row in rows.itertuples():
        log_p, output = wanted[row.layer + 1, row.position], wanted[-1, row.position]
        torch.testing.assert_close(torch.tensor(row.top_prob), log_p.exp().topk(3).values, atol=1e-5, rtol=1e-4)
        assert row.target_id == (IDS[row.position + 1] if row.position < 6 else int(output.argmax()))
        assert row.prob == pytest.approx(log_p[row.target_id].exp().item(), abs=1e-5)
        assert abs(row.rank - 1 - int((log_p > log_p[row.target_id]).sum())) <= 1  # two that differ by rounding
        assert row.kl == pytest.approx((output.exp() * (output - log_p)).sum().item(), abs=1e-5)
        assert row.entropy == pytest.approx(-(log_p.exp() * log_p).sum().item(), abs=1e-5)


def test_the_last_layer_is_the_models_output_to_the_bit(named):
    import interp

    _, model = named
    rows = interp.logit_lens(model, IDS, target=5).table()
    with torch.no_grad():
        logits = model(torch.tensor([IDS]))[0]
    last = rows[rows["layer"] == 2]
    assert last["logit"].tolist() == logits[:, 5].tolist() and (last["kl"] == 0).all()


def test_an_edited_run_is_read_by_unedited_eyes(tiny_model):
    import interp

    steer = torch.linspace(-3, 3, 32)
    edits = {"0.resid_post": lambda x: x + steer, "ln_final.hook_normalized": lambda x: x * 0.5}
    plain, found = (interp.logit_lens(tiny_model, IDS, target=5, edits=e).table() for e in ({}, edits))
    with interp.edited(tiny_model, edits), torch.no_grad():
        logits = tiny_model(torch.tensor([IDS]))[0]
    assert found[found["layer"] == 1]["logit"].tolist() == logits[:, 5].tolist()
    with interp.captured(tiny_model, "0.resid_post") as cache, torch.no_grad():
        tiny_model(torch.tensor([IDS]))
    wanted = tiny_model.head(cache["blocks.0.hook_resid_post"][0] + steer)[:, 5].detach()
    torch.testing.assert_close(torch.tensor(found[found["layer"] == 0]["logit"].tolist()), wanted)
    assert found[found["layer"] == -1]["logit"].tolist() == plain[plain["layer"] == -1]["logit"].tolist()


def test_a_few_logits_at_a_time_give_the_same(tiny_double, monkeypatch):
    import interp
    from interp.lenses import reading

    whole = interp.logit_lens(tiny_double, IDS).table()
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 2 * tiny_double.d_vocab)
    parts = interp.logit_lens(tiny_double, IDS).table()
    assert whole["top_id"].tolist() == parts["top_id"].tolist()
    np.testing.assert_allclose(whole["kl"], parts["kl"], atol=1e-6)


@pytest.fixture(scope="module")
def two_lengths():
    from interp.data.tasks import Prompt, Task

    draw = torch.Generator().manual_seed(3)

    def tokens(n):
        return torch.randint(1, 200, (n,), generator=draw).tolist()

    prompts = [Prompt(tokens(n), [(n - 1, tokens(1)[0]), (2, 7)], wrong_token=tokens(1)[0]) for n in (9, 6, 9, 6, 9)]
    return Task("two lengths", prompts)


@pytest.mark.parametrize("at_once", [2**24, 1])
def test_the_curve_of_a_task_is_the_mean_over_its_prompts(tiny_model, two_lengths, monkeypatch, at_once):
    import interp
    from interp.lenses import curves

    monkeypatch.setattr(curves, "LOGITS_AT_ONCE", at_once)
    found = interp.lens_curve(tiny_model, two_lengths).table()
    each = []
    for prompt in two_lengths.prompts:
        reads = []
        for pos, answer in prompt.targets:
            right, wrong = (
                interp.logit_lens(tiny_model, prompt.clean_tokens, target=token).table().query(f"position == {pos}")
                for token in (answer, prompt.wrong_token)
            )
            right = right.assign(logit_diff=right["logit"].to_numpy() - wrong["logit"].to_numpy())
            reads.append(right[["logit_diff", "prob", "rank", "kl", "entropy"]].to_numpy())
        each.append(np.mean(reads, 0))
    for number, metric in enumerate(["logit_diff", "prob", "rank", "kl", "entropy"]):
        rows = found[found["metric"] == metric]
        np.testing.assert_allclose(rows["value"], np.mean(each, 0)[:, number], rtol=1e-4, atol=1e-5)
        assert (rows["ci_low"] <= rows["value"] + 1e-9).all() and (rows["value"] <= rows["ci_high"] + 1e-9).all()
        assert (rows["n"] == 5).all()


def test_text_is_a_task_without_wrong_answers(tiny_model, tiny_text):
    import interp
    from interp.data.classes import text_task

    rows = interp.lens_curve(tiny_model, text_task(tiny_model, str(tiny_text), n=4, context=16)).table()
    assert rows["metric"].unique().tolist() == ["prob", "rank", "loss", "kl", "entropy"]


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (IDS, {"target": "two of them"}, "is 6 tokens"),
        (IDS, {"target": 10**6}, "has tokens 0 to"),
        (IDS, {"top": 0}, "top 0 given"),
        ([], {}, "0 tokens given"),
        ([1] * 65, {}, "reads 1 to 64"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tiny_model, prompt, settings, message):
    import interp

    with pytest.raises(interp.InputError, match=message):
        interp.logit_lens(tiny_model, prompt, **settings)


def test_saved_and_loaded_they_are_the_same(tiny_model, two_lengths, tmp_path):
    import interp

    for found in (interp.logit_lens(tiny_model, IDS), interp.lens_curve(tiny_model, two_lengths)):
        found.save(tmp_path)
        again = type(found).load(tmp_path)
        assert again.table().to_dict() == found.table().to_dict() and again.about == found.about


@pytest.mark.parametrize("colour", ["top_prob", "prob", "rank", "kl", "entropy"])
def test_the_grid_names_each_cells_top_token_as_text(tiny_model, colour):
    import interp

    lens = interp.logit_lens(tiny_model, IDS)
    lens.rows["top"] = [["<b>x", *words[1:]] for words in lens.rows["top"]]
    heat = lens.figure(colour, last=5).data[0]
    assert heat.z.shape == (3, 5) and (heat.z >= 0).all() and set(heat.text.ravel()) == {"&lt;b&gt;x"}


def test_the_curve_draws_one_metric(tiny_model, two_lengths):
    import interp

    figure = interp.lens_curve(tiny_model, two_lengths).figure("rank")
    assert figure.layout.yaxis.type == "log" and len(figure.data) == 2
