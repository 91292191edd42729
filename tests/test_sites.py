"""Names of hook points and components."""

import pytest

from interp.decoder.sites import LAYER_SITES, Component, components, expand, full, layer_site, short
from interp.errors import UnknownComponent, UnknownSite

KNOWN = [layer_site(layer, name) for layer in range(6) for name in LAYER_SITES]


@pytest.mark.parametrize("name", LAYER_SITES)
def test_short_and_full_names_are_each_others_inverse(name):
    assert short(full(f"3.{name}")) == f"3.{name}" and full(f"3.{name}") == layer_site(3, name)


def test_ranges_and_stars_select_layers():
    assert expand("2-4.z", KNOWN) == [layer_site(layer, "z") for layer in (2, 3, 4)]
    assert expand("*.resid_post", KNOWN) == [layer_site(layer, "resid_post") for layer in range(6)]
    assert expand("blocks.*.attn.hook_z", KNOWN) == expand("*.z", KNOWN)
    assert expand(["1.z", "blocks.0.attn.hook_z"], KNOWN) == [layer_site(0, "z"), layer_site(1, "z")]


@pytest.mark.parametrize("name", ["3.resid_pots", "9.z", "8-9.z", "*.nothing", ""])
def test_an_unknown_site_names_the_nearest(name):
    with pytest.raises(UnknownSite, match="Nearest: "):
        expand(name, KNOWN)


def test_the_message_is_the_one_of_the_house():
    with pytest.raises(UnknownSite) as error:
        expand("3.resid_pots", KNOWN, model='"bundled"')
    assert str(error.value).startswith('no hook point "3.resid_pots" in "bundled". Nearest: 3.resid_post')


def test_components_by_group_and_name():
    assert [c.name for c in components("heads", n_layers=2, n_heads=2)] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert components("L1H1,L0.mlp", n_layers=2, n_heads=2) == [Component("head", 1, 1), Component("mlp", 0)]
    with pytest.raises(UnknownComponent, match="Nearest: L1H"):
        components("L1H7", n_layers=2, n_heads=2)
    with pytest.raises(UnknownComponent, match="mlps"):
        components("mlps", n_layers=2, n_heads=2, has_mlp=False)
