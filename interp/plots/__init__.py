"""Tables as plotly figures, the same in a notebook, a report and the app. DataFrame in, Figure out: no model, no
streamlit. A file for each kind of table; figures of effects and of dictionaries are found here too."""

from interp.plots.colours import BLUE, GREY, RED, WHITE
from interp.plots.comparisons import comparison
from interp.plots.dictionaries import densities, frontier, training
from interp.plots.effects import (
    LOWER_IS_BETTER,
    PATCHING,
    Grid,
    Scale,
    component_grid,
    describe,
    effects,
    head_map,
    histogram,
    one_view,
    per_prompt,
    position_grid,
    position_map,
    ranked,
    scale,
)

__all__ = [
    "BLUE", "GREY", "LOWER_IS_BETTER", "PATCHING", "RED", "WHITE", "Grid", "Scale", "comparison",
    "component_grid", "densities", "describe", "effects", "frontier", "head_map", "histogram", "one_view",
    "per_prompt", "position_grid", "position_map", "ranked", "scale", "training",
]  # fmt: skip
