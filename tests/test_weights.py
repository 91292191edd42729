"""Circuits of weights against the matrices that are never built, and against what the model itself computes."""

import math

import numpy as np
import pytest
import torch
from einops import einsum

FAMILIES = ["gpt2", "llama", "opt", "neox", "mixtral"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, make_model):
    return make_model(request.param)


def explicit(model, layer, head, offset=0):
    """OV and QK [d_vocab, d_vocab] of a head, float64, with no help of `interp.lenses.weights`: from the layer norms'
    own weights and, for RoPE, the angles of its definition."""
    from interp.decoder import parts

    attention, group = model.bridge.blocks[layer].attn, model.n_heads // model.n_kv_heads
    norm, last = parts.norm(model, layer, "attn"), model.bridge.ln_final.original_component
    layer_norm = isinstance(norm, torch.nn.LayerNorm)
    centre = torch.eye(model.d_model, dtype=torch.float64) - layer_norm / model.d_model
    W_E, W_U = model.bridge.embed.W_E.double(), model.bridge.unembed.W_U.double()
    before, after = centre @ torch.diag(norm.weight.double()), centre @ torch.diag(last.weight.double())
    q, o = attention.W_Q[head].double(), attention.W_O[head].double()
    k, v = attention.W_K[head // group].double(), attention.W_V[head // group].double()
    ov = W_E @ before @ v @ o @ after @ W_U
    scale = 1 / math.sqrt(model.d_head)
    qk = (W_E @ before @ q) @ turned(model, offset) @ (W_E @ before @ k).T * scale
    return (ov - ov.mean(1, keepdim=True)).detach(), (qk - qk.mean(1, keepdim=True)).detach()


def turned(model, offset):
    """RoPE's rotation of a row by `offset` positions, from its definition: the first half of the numbers turned
    against the second (of NeoX: the first quarter of the head against the next)."""
    R = torch.eye(model.d_head, dtype=torch.float64)
    if model.bridge.cfg.positional_embedding_type == "rotary":
        width = model.d_head // 4 if "neox" in model.name else model.d_head
        base = 1e6 if "mixtral" in model.name else 1e4
        for i in range(width // 2):
            angle, j = offset * base ** (-2 * i / width), i + width // 2
            R[i, i] = R[j, j] = math.cos(angle)
            R[i, j], R[j, i] = math.sin(angle), -math.sin(angle)
    return R


@pytest.mark.parametrize("offset", [0, 3])
def test_eigenvalues_are_those_of_the_matrix_of_all_tokens(model, offset):
    import interp

    circuits = interp.head_circuits(model, offset=offset, n_tokens=10**6)
    for row in (1, 7, 10):
        layer, head = divmod(row, model.n_heads)
        for name, matrix in zip(("ov", "qk"), explicit(model, layer, head, offset), strict=True):
            wanted = torch.linalg.eigvals(matrix).numpy()
            wanted = wanted[np.argsort(-np.abs(wanted))][: model.d_head]
            found = getattr(circuits, name)[row]
            gap = np.abs(found[:, None] - wanted[None, :])
            assert max(gap.min(0).max(), gap.min(1).max()) < 2e-6 * np.abs(wanted).max()  # RoPE's cos are float32
            score = circuits.table()[{"ov": "ov_copying", "qk": "qk_matching"}[name]][row]
            assert score == pytest.approx(wanted.sum().real / np.abs(wanted).sum(), abs=1e-5)
            assert score == pytest.approx(float(matrix.trace()) / np.abs(wanted).sum(), abs=1e-5)
        ov = explicit(model, layer, head)[0]
        own = ((ov > ov.diagonal()[:, None]).sum(1) < 5).double().mean()
        assert circuits.table().copies[row] == pytest.approx(float(own))


def test_scores_of_the_model_follow_from_queries_keys_and_rotation(model):
    """q at position i times k at position j, each turned by its position, is q @ rotation(i - j) @ k."""
    from interp.lenses.weights import read

    layers = {offset: list(read(model, offset=offset)) for offset in (0, 2)}
    assert not any(layer.unlike for layer in layers[2])
    assert layers[0][0].scale == pytest.approx(1 / math.sqrt(model.d_head), rel=1e-4)
    torch.testing.assert_close(layers[0][0].rotation, torch.eye(model.d_head, dtype=torch.float64))
    torch.testing.assert_close(layers[2][1].rotation, turned(model, 2), atol=1e-6, rtol=0)


def test_composition_is_the_ratio_of_the_norms_of_whole_matrices(model):
    import interp
    from interp.lenses.weights import read

    layers = list(read(model, offset=1))
    found = interp.composition(model, offset=1, n_random=20)
    table = found.table().set_index(["earlier", "later", "kind"]).score
    for (a, i), (b, j) in [((0, 1), (1, 2)), ((0, 3), (2, 0)), ((1, 2), (2, 3))]:
        first, last = layers[a], layers[b]
        ov = first.W_V[i] @ first.W_O[i]
        qk = last.W_Q[j] @ last.rotation @ last.W_K[j].T * last.scale
        for kind, reads in {"q": qk, "k": qk.T, "v": last.W_V[j] @ last.W_O[j]}.items():
            wanted = float((ov @ reads).norm() / (ov.norm() * reads.norm()))
            assert table[f"L{a}H{i}", f"L{b}H{j}", kind] == pytest.approx(wanted, rel=1e-4)  # float32
    n = model.n_heads
    assert len(table) == 3 * 3 * n * n and not (found.table().score > 1 + 1e-6).any()


def test_random_directions_score_one_over_the_root_of_the_width(tiny_model):
    """Turned at random, the mean square of a score is 1 / d_model whatever the singular values: E |X U Y|^2 = |X|^2
    |Y|^2 / d."""
    import interp

    found = interp.composition(tiny_model, n_random=2000, kinds="v").table()
    assert found.random.iloc[0] == pytest.approx(1 / math.sqrt(tiny_model.d_model), rel=0.1)
    again = interp.composition(tiny_model, n_random=2000, kinds="v").table()
    assert again.equals(found)
    random_weights = found.score.mean()  # the tiny model's weights are random
    assert random_weights == pytest.approx(found.random.iloc[0], rel=0.1)


def test_a_head_made_to_copy_copies_and_one_made_to_read_it_composes(make_model):
    import interp

    model, width = make_model("llama"), 8
    with torch.no_grad():
        W_U = model.bridge.unembed.W_U
        both = (W_U - W_U.mean(1, keepdim=True)) @ model.bridge.embed.W_E
        basis = torch.linalg.svd(both).U[:, :width]
        first, second = (model.plain_blocks[layer].self_attn for layer in (0, 1))
        first.v_proj.weight[:width] = basis.T
        first.o_proj.weight[:, :width] = torch.linalg.inv(both).T @ basis  # W_O (W_U W_E) W_V is the identity
        second.k_proj.weight[:width] = first.o_proj.weight[:, :width].T
    row = interp.head_circuits(model).table().set_index("component").loc["L0H0"]
    assert row.ov_copying > 0.99
    best = interp.composition(model, kinds="k").table().iloc[0]
    assert best.earlier == "L0H0" and best.later in ("L1H0", "L1H1")  # two heads share the key


def test_the_first_mlp_may_stand_in_the_embedding(tiny_model):
    import interp

    direct, through = (interp.head_circuits(tiny_model, embedding=name) for name in ("tokens", "mlp0"))
    W_E, block = tiny_model.bridge.embed.W_E, tiny_model.plain_blocks[0]
    with torch.no_grad():
        embed = (W_E + block.mlp(block.ln_2(W_E))).double()
        norm, last = block.ln_1.weight.double(), tiny_model.bridge.ln_final.original_component.weight.double()
        attention = tiny_model.bridge.blocks[0].attn
        x = (embed - embed.mean(1, keepdim=True)) * norm
        written = x @ attention.W_V[0].double() @ attention.W_O[0].double()
        ov = (written - written.mean(1, keepdim=True)) * last @ tiny_model.bridge.unembed.W_U.double()
        wanted = torch.linalg.eigvals(ov - ov.mean(1, keepdim=True)).abs().max()
    assert np.abs(through.ov[0]).max() == pytest.approx(float(wanted), rel=1e-5)
    assert not np.allclose(np.abs(direct.ov[0]).max(), float(wanted), rtol=0.01)


@pytest.fixture(scope="module")
def other(tiny_dir, tmp_path_factory):
    def make(name, config):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        import interp

        folder = tmp_path_factory.mktemp(name)
        tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
                 "hidden_size": 32, "intermediate_size": 48, "vocab_size": len(tokenizer), "initializer_range": 0.2,
                 "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config(**sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return interp.load_model(str(folder))

    return make


def test_normalised_queries_leave_ov_and_refuse_qk_by_name(other):
    from transformers import Qwen3Config

    import interp

    model = other("qwen3", Qwen3Config)
    circuits = interp.head_circuits(model)
    assert np.isnan(circuits.qk).all() and np.isfinite(circuits.ov).all()
    assert "normalised" in circuits.about["unlike"] and circuits.table().qk_matching.isna().all()
    assert set(interp.composition(model).table().kind) == {"v"}
    with pytest.raises(interp.InputError, match="queries and keys are normalised"):
        interp.composition(model, kinds=["k"])
    assert "does not apply" in circuits.figure("qk").data[1].text[0]


def test_a_norm_after_attention_is_refused_by_name(other):
    from transformers import Gemma2Config

    import interp

    model = other("gemma2", Gemma2Config)
    for call in (interp.head_circuits, interp.composition):
        with pytest.raises(interp.InputError, match="norm after attention"):
            call(model)
    assert interp.head_scores(model, n=2, length=4).table().shape[0] == 8  # patterns are still read


def test_what_is_not_there_is_refused(tiny_model, tmp_path):
    import interp
    from interp.lenses.composition import Composition
    from interp.lenses.eigenvalues import HeadCircuits

    with pytest.raises(interp.InputError, match="offset 64 given"):
        interp.head_circuits(tiny_model, offset=64)
    with pytest.raises(interp.InputError, match="Nearest: mlp0"):
        interp.head_circuits(tiny_model, embedding="mlp")
    with pytest.raises(interp.InputError, match='no composition "x"'):
        interp.composition(tiny_model, kinds="x")
    for kind in (Composition, HeadCircuits):
        with pytest.raises(interp.InputError, match="interp heads"):
            kind.load(tmp_path)


def test_circuits_and_composition_are_saved_loaded_and_drawn(tiny_model, tmp_path):
    import interp
    from interp.lenses.composition import Composition
    from interp.lenses.eigenvalues import HeadCircuits

    circuits, pairs = interp.head_circuits(tiny_model), interp.composition(tiny_model)
    circuits.save(tmp_path), pairs.save(tmp_path)
    again = HeadCircuits.load(tmp_path)
    assert (again.ov == circuits.ov).all() and again.table().equals(circuits.table()) and again.about == circuits.about
    loaded = Composition.load(tmp_path)
    assert loaded.table().equals(pairs.table()) and loaded.about == pairs.about
    assert loaded.into("L1H2", "v", 1).earlier.iloc[0] in {"L0H0", "L0H1", "L0H2", "L0H3"}
    assert "L0H0->L1H0" in pairs.figure("k").data[1].customdata
    assert len(again.figure("ov", head="L1H3").data[0].x) == tiny_model.d_head
    with pytest.raises(interp.InputError, match="Nearest"):
        again.figure("ov", head="L7H0")


def test_what_attention_gives_the_stream_of_one_token_is_ov(make_model):
    """With one key the head writes LN(x) W_V W_O: the folded matrices, divided by the norm's scale, plus the bias."""
    from interp.decoder.hooks import captured
    from interp.lenses.weights import read

    model = make_model("gpt2")
    tokens = torch.tensor([[5], [9]])
    with torch.no_grad(), captured(model, ["1.resid_pre", "1.z"]) as cache:
        model(tokens)
    x, z = (value[:, 0].double() for value in cache.values())
    layer = list(read(model))[1]
    scale = (x - x.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    values = einsum(x, layer.W_V, "token d_model, head d_model d_head -> token head d_head") / scale[:, None, None]
    torch.testing.assert_close(values[0] - values[1], z[0] - z[1], atol=1e-5, rtol=1e-4)
