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


def test_components_of_every_kind_have_a_name_and_a_site():
    given = "L1N7,L0.resid_pre,embed,demo/3,up@1.resid_post,L0.heads"
    found = components(
        given, n_layers=2, n_heads=2, d_mlp=8, dictionaries={"demo": ("blocks.1.hook_mlp_out", 5)}, directions=["up"]
    )
    assert [c.name for c in found] == [*given.split(",")[:-1], "L0H0", "L0H1"]
    assert [c.site for c in found] == [
        "blocks.1.mlp.hook_post", "blocks.0.hook_resid_pre", "hook_embed", "blocks.1.hook_mlp_out",
        "blocks.1.hook_resid_post", "blocks.0.attn.hook_z", "blocks.0.attn.hook_z",
    ]  # fmt: skip
    assert len(components("neurons", n_layers=2, n_heads=2, d_mlp=8)) == 16
    assert len(components("demo/*", n_layers=2, n_heads=2, dictionaries={"demo": ("hook_embed", 5)})) == 5


def test_groups_are_sums_and_differences_of_names():
    both, rest, listed = components(["L0H1+L1.mlp", "heads-L0H1", ["L0H0", "L0H1"]], n_layers=2, n_heads=2)
    assert both.kind == "group" and [c.name for c in both.members] == ["L0H1", "L1.mlp"]
    assert [c.name for c in rest.members] == ["L0H0", "L1H0", "L1H1"] and listed.name == "L0H0+L0H1"
    with pytest.raises(UnknownComponent, match='"L9H9"'):
        components("L0H1+L9H9", n_layers=2, n_heads=2)
    with pytest.raises(UnknownComponent, match="no component left"):
        components("heads-heads", n_layers=2, n_heads=2)


@pytest.mark.parametrize("name", ["demo/9", "demo", "down@1.resid_post", "up@1.nothing", "L0N8", "neuron"])
def test_an_unknown_component_of_any_kind_names_the_nearest(name):
    with pytest.raises(UnknownComponent, match="Nearest: "):
        components(name, n_layers=2, n_heads=2, d_mlp=8, dictionaries={"demo": ("hook_embed", 5)}, directions=["up"])
