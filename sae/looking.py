"""Which latents of a dictionary fire on a text, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from interp.decoder.hooks import Edit, captured, edited
from interp.decoder.model import Model
from interp.errors import InputError
from sae.dictionary import Dictionary
from sae.rows import joined
from sae.splicing import check_model


@torch.no_grad()
def activity(
    model: Model, dct: Dictionary, text: str | Sequence[int], *, edits: Mapping[str, Edit] | None = None
) -> pd.DataFrame:
    """A row a firing, by `position`, the strongest first: `token` there, `latent`, `activation`. `text` goes after BOS;
    token ids are taken as they are. Every site is flattened to d_in (`z`: head after head). `edits`: of the run that is
    read. WrongModel for another model's dictionary."""
    check_model(dct, model)
    ids = model.to_tokens(text) if isinstance(text, str) else [int(token) for token in text]
    if not 1 <= len(ids) <= model.n_ctx:
        raise InputError(f'{len(ids)} tokens given: "{model.name}" reads 1 to {model.n_ctx}.')
    with edited(model, edits or {}), captured(model, list(dct.sites)) as cache:
        model(torch.tensor([ids]))
    rows = joined({site: cache[site][0].flatten(1) for site in dct.sites}, dct.sites)
    latents = dct.encode(rows.to(dct.W_enc))
    position, latent = latents.nonzero(as_tuple=True)
    table = pd.DataFrame(
        {"position": position.cpu(), "latent": latent.cpu(), "activation": latents[position, latent].float().cpu()}
    )
    table.insert(1, "token", pd.Series(model.token_text(ids)).reindex(table["position"]).to_numpy())
    order = ["position", "activation"]
    return table.sort_values(order, ascending=[True, False], kind="stable", ignore_index=True)
