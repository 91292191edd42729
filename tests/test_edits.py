"""Edits by name: what they say, and that the run has them."""

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

TOKENS = torch.randint(1, 200, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("L3H5=0", ("L3H5", "=", 0.0)),
        ("L2.mlp*0.5", ("L2.mlp", "*", 0.5)),
        ("front-k8/417=8", ("front-k8/417", "=", 8.0)),
        ("joy@3.resid_post+4", ("joy@3.resid_post", "+", 4.0)),
        ("joy@3.resid_post-4.5", ("joy@3.resid_post", "+", -4.5)),
        ("joy@3.resid_post=-1e-2", ("joy@3.resid_post", "=", -0.01)),
        (" L3H5+L4H1=0 ", ("L3H5+L4H1", "=", 0.0)),
        ("L1H0*-1", ("L1H0", "*", -1.0)),
    ],
)
def test_an_edit_is_a_component_an_operator_and_a_number(text, wanted):
    from interp.causal.edits import Spec

    assert Spec.of(text) == Spec(*wanted)


@pytest.mark.parametrize("text", ["L3H5", "L3H5=", "=0", "L3H5=zero", "L3H5=1e999", ""])
def test_what_is_no_edit_is_refused_with_examples(text):
    from interp.causal.edits import Spec
    from interp.errors import InputError

    with pytest.raises(InputError, match="is no edit: write L3H5=0"):
        Spec.of(text)


def test_latents_of_a_transcoder_are_refused(tiny_model, make_dictionary, pairs):
    import interp
    from interp.causal.edits import parse
    from interp.errors import InputError

    given = {"demo": make_dictionary(site="blocks.1.hook_resid_mid", out_site="blocks.1.hook_mlp_out")}
    with pytest.raises(InputError, match="reads blocks.1.hook_resid_mid and writes blocks.1.hook_mlp_out"):
        parse(tiny_model, "demo/3=4", dictionaries=given)
    with pytest.raises(InputError, match="sae.spliced"):
        interp.ablate(tiny_model, pairs, components="demo/3", method="zero", dictionaries=given)


def test_edits_do_what_their_functions_do(tiny_model, make_dictionary):
    from interp.causal.edits import parse
    from interp.decoder.hooks import captured, edited

    up, demo = torch.randn(32, generator=torch.Generator().manual_seed(1)), make_dictionary()
    given = {"dictionaries": {"demo": demo}, "directions": {"up": up}}
    unit = up / up.norm()

    def clamped(x):
        z = demo.encode(x)
        return x + demo.decode(z.index_fill(-1, torch.tensor([7]), 3.0)) - demo.decode(z)

    for spec, site, by_hand in [
        ("L0H1=0", "0.z", lambda z: z * (torch.arange(4) != 1)[:, None]),
        ("L1.mlp*0.5", "1.mlp_out", lambda x: x * 0.5),
        ("L1N5+2", "1.post", lambda x: x + 2.0 * (torch.arange(x.shape[-1]) == 5)),
        ("up@0.resid_post+4", "0.resid_post", lambda x: x + 4 * unit),
        ("up@0.resid_post=0", "0.resid_post", lambda x: x - (x @ unit)[..., None] * unit),
        ("demo/7=3", "1.resid_post", clamped),
    ]:
        with torch.no_grad(), edited(tiny_model, parse(tiny_model, spec, **given)):
            found = tiny_model(TOKENS)
        with torch.no_grad(), captured(tiny_model, site), edited(tiny_model, {site: by_hand}):
            assert_close(found, tiny_model(TOKENS), rtol=0, atol=2e-5)  # sums in another order


def test_edits_of_one_place_are_made_in_order(tiny_model):
    from interp.causal.edits import parse

    (site, edit), *more = parse(tiny_model, "L0H1=2, L0H1*3, L0H2=0").items()
    z = torch.ones(1, 2, 4, 8)
    assert (site, more) == ("blocks.0.attn.hook_z", [])
    assert edit(z)[0, 0, :, 0].tolist() == [1, 6, 0, 1] and (z == 1).all()


def test_a_wrong_edit_is_one_line(tiny_model, tmp_path):
    from interp.causal.edits import parse
    from interp.cli.editing import read
    from interp.errors import InputError, MissingFile, UnknownComponent

    with pytest.raises(UnknownComponent, match='no component "L9H0"'):
        parse(tiny_model, "L9H0=0")
    with pytest.raises(InputError, match="is no number to add 4 to: use =0"):
        parse(tiny_model, "L0H1+4")
    with pytest.raises(MissingFile, match='no direction "joy": neither a run'):
        read(["joy@0.resid_post+4"], tiny_model, tmp_path)
    with pytest.raises(MissingFile, match='no dictionary "demo"'):
        read(["demo/3=4"], tiny_model, tmp_path)
    save_file({"joy": torch.zeros(32)}, tmp_path / "joy.safetensors")
    with pytest.raises(InputError, match="not all 0"):
        read([f"{tmp_path / 'joy.safetensors'}@0.resid_post+4"], tiny_model, tmp_path)


def test_a_direction_is_a_run_or_a_file(tiny_model, tmp_path):
    from interp.cli.editing import read

    (tmp_path / "runs" / "joy").mkdir(parents=True)
    up = torch.arange(32.0)
    save_file({"direction": up}, tmp_path / "runs" / "joy" / "direction.safetensors")
    for name in ("joy", str(tmp_path / "runs" / "joy" / "direction.safetensors")):
        edits = read([f"{name}@1.resid_pre+2"], tiny_model, tmp_path)
        moved = edits["blocks.1.hook_resid_pre"](torch.zeros(1, 1, 32))
        assert_close(moved[0, 0], 2 * up / up.norm())
