"""Every site and granularity of patching against one whole pass a prompt and place, on four architectures."""

import pytest
import torch
from test_sweeps import assert_same, slowly

LENGTH = 6


@pytest.fixture(scope="module", params=["gpt2", "llama", "opt", "neox"])
def model(request, make_model):
    """A random model of each family: learned positions, rotations and grouped keys, no hooked pattern, parallel."""
    return make_model(request.param)


@pytest.fixture(scope="module")
def task():
    from interp.data.tasks import Prompt, Task

    drawn = torch.randint(1, 200, (2, 2, LENGTH), generator=torch.Generator().manual_seed(4)).tolist()
    return Task("pairs", [Prompt(clean, [(LENGTH - 1, 5)], corrupted, 9) for clean, corrupted in drawn])


def put_in(model, task, source, places):
    """For `slowly`: the `source` run's activation put in at each (site, index or None, position or None)."""
    from interp.decoder.hooks import captured
    from interp.decoder.sites import full

    def row(site, index, at):
        def edits(number):
            prompt = task.prompts[number]
            with torch.no_grad(), captured(model, site) as cache:
                model(torch.tensor([prompt.clean_tokens if source == "clean" else prompt.corrupted_tokens]))

            def edit(value):
                where = [slice(None)] * value.ndim
                query, unit = (2, 1) if site.endswith("pattern") else (1, 2)
                where[query] = slice(None) if at is None else at
                where[unit] = slice(None) if index is None else index
                value = value.clone()
                value[tuple(where)] = cache[full(site)][tuple(where)]
                return value

            return {site: edit}

        return edits

    return [row(*place) for place in places]


ALL = range(LENGTH)
CASES = {
    "attn_out": ({"by": "layer"}, [(f"{layer}.attn_out", None, None) for layer in range(3)]),
    "mlp_out": ({"by": "layer"}, [(f"{layer}.mlp_out", None, None) for layer in range(3)]),
    "z": (
        {"by": "layer,head,position", "components": "L0H2,L2H3"},
        [(f"{layer}.z", head, at) for layer, head in ((0, 2), (2, 3)) for at in ALL],
    ),
    "q": ({"by": "layer,head"}, [(f"{layer}.q", head, None) for layer in range(3) for head in range(4)]),
    "k": ({"by": "layer,head", "components": "L1H1"}, [("1.k", 1, None)]),
    "v": ({"by": "layer,head,position", "components": "L0H0,L1H1"},
          [(f"{n}.v", n, at) for n in (0, 1) for at in ALL]),
    "pattern": ({"by": "layer,head,position", "components": "L0H1,L1H3"},
                [(f"{layer}.pattern", head, at) for layer, head in ((0, 1), (1, 3)) for at in ALL]),
    "post": ({"by": "layer,neuron,position", "components": "L0N7,L2N40"},
             [(f"{layer}.post", neuron, at) for layer, neuron in ((0, 7), (2, 40)) for at in ALL]),
}  # fmt: skip


@pytest.mark.parametrize("site", list(CASES))
def test_patching_a_site_equals_the_loop(model, task, site):
    from interp import patch

    if not any(name.endswith(f"hook_{site}") for name in model.sites):
        pytest.skip(f"its {site} cannot be patched: it is no site of the model")
    settings, places = CASES[site]
    method, source, start = "denoise", "clean", "corrupted"
    if site in ("q", "post"):
        method, source, start = "noise", "corrupted", "clean"
    found = patch(model, task, site=site, method=method, **settings)
    assert len(found.table()) == len(places)
    slow = slowly(model, task, put_in(model, task, source, places), "logit_diff", which=start)
    assert_same(found.values[method, "logit_diff"], slow)


def test_grouped_keys_and_values_have_a_row_for_each_group(model, task):
    from interp import InputError, patch

    table = patch(model, task, site="v", by="layer,head").table()
    assert len(table) == 3 * model.n_kv_heads and table.component[0] == "L0H0.v"
    if model.n_kv_heads < model.n_heads:
        with pytest.raises(InputError, match="L1H3"):
            patch(model, task, site="k", by="layer,head", components="L1H3")
