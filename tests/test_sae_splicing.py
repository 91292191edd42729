"""Splicing against identities and edits written by hand, for every kind of dictionary."""

from __future__ import annotations

import pytest
import torch

SITE = "blocks.1.hook_resid_post"
CROSS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
WHERE = {
    "autoencoder": {},
    "heads": {"site": "blocks.0.attn.hook_z"},
    "transcoder": {"site": "blocks.1.hook_resid_mid", "out_site": "blocks.1.hook_mlp_out"},
    "skip transcoder": {"site": "blocks.1.hook_resid_mid", "out_site": "blocks.1.hook_mlp_out", "skip": True},
    "crosscoder": {"site": CROSS, "d_in": 64},
}
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", "abstopk")


@pytest.fixture
def tokens(tiny_model):
    return torch.randint(1, tiny_model.d_vocab, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=WHERE)
def dct(request, make_dictionary):
    return make_dictionary(**WHERE[request.param])


@torch.no_grad()
def clean_pass(model, tokens, dct):
    """Logits, and the activations that a crosscoder has to be given."""
    from interp.decoder.hooks import captured

    with captured(model, [*dct.sites, *dct.out_sites]) as cache:
        logits = model(tokens)
    return logits, cache


@torch.no_grad()
def spliced_logits(model, tokens, dct, **how):
    import sae

    _, cache = clean_pass(model, tokens, dct)
    given = cache if len(dct.sites) > 1 else None
    with sae.spliced(model, dct, given=given, **how):
        return model(tokens)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("where", WHERE)
def test_splicing_without_edits_leaves_the_logits_as_they_are(where, architecture, make_dictionary, tiny_model, tokens):
    dct = make_dictionary(architecture, **WHERE[where])
    clean, _ = clean_pass(tiny_model, tokens, dct)
    for edit in (None, lambda latents: latents):
        kept = spliced_logits(tiny_model, tokens, dct, keep_error=True, edit=edit)
        torch.testing.assert_close(kept, clean, rtol=1e-5, atol=1e-5)
    replaced = spliced_logits(tiny_model, tokens, dct)
    assert (replaced - clean).abs().max() > 1e-2
    assert torch.equal(clean_pass(tiny_model, tokens, dct)[0], clean)


@torch.no_grad()
def test_an_edited_latent_moves_its_sites_by_its_decoder_row(dct, tiny_model, tokens):
    """Against edits written by hand with the decoder rows; the value of each latent from a clean pass."""
    import sae
    from interp.decoder.hooks import edited

    _, cache = clean_pass(tiny_model, tokens, dct)
    z = dct.encode(torch.cat([cache[site].flatten(2) for site in dct.sites], -1))
    latent = int(z.sum((0, 1)).argmax())
    rows = dct.W_dec[latent].chunk(len(dct.out_sites))
    wanted = {
        sae.zero(latent): -z[..., latent],
        sae.clamp(latent, 8.0): 8.0 - z[..., latent],
        sae.scale([latent], 3.0): 2 * z[..., latent],
    }
    for edit, change in wanted.items():
        ours = spliced_logits(tiny_model, tokens, dct, edit=edit, keep_error=True)

        def at(site, row, change=change):
            def hook(y):
                base = cache[site] if len(dct.out_sites) > 1 else y
                return base + (change[..., None] * row).reshape(y.shape)

            return hook

        with edited(tiny_model, {s: at(s, row) for s, row in zip(dct.out_sites, rows, strict=True)}):
            by_hand = tiny_model(tokens)
        torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-4)
        assert (ours - clean_pass(tiny_model, tokens, dct)[0]).abs().max() > 1e-3


@torch.no_grad()
def test_without_the_error_the_sites_are_what_the_dictionary_says(dct, tiny_model, tokens):
    import sae
    from interp.decoder.hooks import captured

    _, cache = clean_pass(tiny_model, tokens, dct)
    said = dct(torch.cat([cache[site].flatten(2) for site in dct.sites], -1)).chunk(len(dct.out_sites), -1)
    given = cache if len(dct.sites) > 1 else None
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[:, 5:] = True
    with sae.spliced(tiny_model, dct, mask=mask, given=given), captured(tiny_model, list(dct.out_sites)) as after:
        tiny_model(tokens)
    first, *_ = dct.out_sites
    assert torch.equal(after[first][:, :5], cache[first][:, :5])
    for site, part in zip(dct.out_sites, said, strict=True):
        torch.testing.assert_close(after[site][:, 5:].flatten(2), part[:, 5:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_edits_steer_generation_token_by_token(make_dictionary, tiny_model):
    """Greedy: with the block around the loop, as by adding the decoder row at every step by hand."""
    import sae
    from interp.decoder.hooks import edited

    dct = make_dictionary()

    def generate():
        ids = torch.tensor([[1, 2, 3]])
        for _ in range(8):
            ids = torch.cat([ids, tiny_model(ids)[:, -1:].argmax(-1)], dim=1)
        return ids[0].tolist()

    def by_hand(x):
        return x + (40 - dct.encode(x)[..., 7, None]) * dct.W_dec[7]

    plain = generate()
    with sae.spliced(tiny_model, dct, edit=sae.clamp(7, 40.0), keep_error=True):
        steered = generate()
    with edited(tiny_model, {SITE: by_hand}):
        assert steered == generate()
    assert steered != plain == generate()


def test_edits_leave_what_they_are_given_alone():
    import sae

    z = torch.rand(2, 3, 5)
    before = z.clone()
    assert sae.zero([1, 3])(z)[..., [1, 3]].abs().sum() == 0 and torch.equal(sae.zero(1)(z)[..., 0], z[..., 0])
    assert (sae.clamp(4, 2.0)(z)[..., 4] == 2).all()
    torch.testing.assert_close(sae.scale(2, 0.5)(z)[..., 2], z[..., 2] / 2)
    assert torch.equal(z, before)


def test_splices_that_cannot_be_are_refused(make_dictionary, tiny_model):
    import sae
    from interp.errors import InputError, UnknownSite, WrongModel

    def refused(error, match, dct, **how):
        with pytest.raises(error, match=match), sae.spliced(tiny_model, dct, **how):
            pass

    refused(InputError, "comes after .* pass given=", make_dictionary(**WHERE["crosscoder"]))
    backwards = make_dictionary(site="blocks.1.hook_mlp_out", out_site="blocks.0.hook_mlp_out")
    refused(InputError, "comes after", backwards)
    given = {CROSS[0]: torch.zeros(1, 2, 32)}
    refused(InputError, "holds no blocks.1.hook_resid_post", make_dictionary(**WHERE["crosscoder"]), given=given)
    refused(UnknownSite, "Nearest", make_dictionary(out_site="blocks.1.hook_mlp_oui"))
    refused(WrongModel, 'trained on "other"', make_dictionary(model={"name": "other", "fingerprint": "sha256:0"}))


@torch.no_grad()
def test_ablating_a_latent_is_splicing_it_out(make_dictionary, tiny_model, pairs):
    import interp
    import sae

    dct = make_dictionary()
    z = clean_pass(tiny_model, pairs.tokens("clean"), dct)[1][SITE]
    latent = int(dct.encode(z).sum((0, 1)).argmax())
    effects = interp.ablate(
        tiny_model, pairs, components=[f"demo/{latent}"], method="zero", metric="logit_diff", dictionaries={"demo": dct}
    )
    logits = spliced_logits(tiny_model, pairs.tokens("clean"), dct, edit=sae.zero(latent), keep_error=True)
    prompt, pos, answer, wrong = pairs.reads()
    difference = logits[prompt, pos, answer] - logits[prompt, pos, wrong]
    row = effects.table().iloc[0]
    assert row["component"] == f"demo/{latent}" and row["kind"] == "latent" and abs(row["effect"]) > 1e-3
    assert row["value"] == pytest.approx(float(difference.mean()), abs=1e-4)
