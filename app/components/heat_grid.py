"""A map of components whose cells can be clicked or reached with the arrow keys; names and tooltips are set as text."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from interp.plots import Grid
from interp.plots.effects import Amount

# Component v2 takes a string for a file's path unless it has a line break inside: both strings below have many.
_JS = """
const instances = new WeakMap();
const WHITE = [247, 247, 247], BLUE = [33, 102, 172], RED = [178, 24, 43];
const mix = (a, b, t) => a.map((x, k) => Math.round(x + (b[k] - x) * t));
const make = (parent, cls, text) => {
  const d = document.createElement('div'); d.className = cls; d.textContent = text; parent.appendChild(d); return d;
};

function build(host, data) {
  const R = data.rows.length, C = data.columns.length;
  host.replaceChildren();
  const grid = make(host, 'grid', '');
  grid.setAttribute('role', 'grid'); grid.setAttribute('aria-label', data.label);
  grid.style.gridTemplateColumns = `max-content repeat(${C}, minmax(16px, 1fr))`;
  grid.style.maxWidth = `${Math.max(320, 76 * C + 40)}px`;
  const cells = [];
  make(grid, 'axis', '');
  const tall = C > 8 && data.columns.some(c => c.length > 5) ? ' tall' : '';
  data.columns.forEach(c => make(grid, 'axis' + tall, tall ? c.replace('\\n', '  ') : c));
  data.rows.forEach((r, i) => {
    make(grid, 'axis', r);
    for (let j = 0; j < C; j++) {
      const d = make(grid, 'cell', ''); d.dataset.i = i; d.dataset.j = j;
      d.setAttribute('role', 'gridcell'); cells.push(d);
    }
  });
  const legend = make(host, 'legend', '');
  const state = {key: '', cells, legend, send: null};
  const pick = d => {
    const name = state.data.names[+d.dataset.i][+d.dataset.j];
    if (name !== null) { state.mark(name); state.send('sel', name); }
  };
  state.mark = name => cells.forEach((d, k) => {
    const own = state.data.names[+d.dataset.i][+d.dataset.j], on = own !== null && own === name;
    d.classList.toggle('on', on); d.setAttribute('aria-selected', on);
    d.tabIndex = on || (name === null && k === 0) ? 0 : -1;
  });
  grid.addEventListener('click', e => { const d = e.target.closest('.cell'); if (d) pick(d); });
  grid.addEventListener('keydown', e => {
    const d = e.target.closest('.cell'); if (!d) return;
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[e.key];
    if (move) {
      const i = Math.min(R - 1, Math.max(0, +d.dataset.i + move[0]));
      const j = Math.min(C - 1, Math.max(0, +d.dataset.j + move[1]));
      cells[i * C + j].focus(); e.preventDefault();
    }
    if (e.key === 'Enter' || e.key === ' ') { pick(d); e.preventDefault(); }
  });
  return state;
}

function paint(state) {
  const {values, hover, texts, limit, centre, red_is_positive, unsigned, ticks, columns} = state.data;
  const C = columns.length, numbers = C <= 14;
  state.cells.forEach((d, k) => {
    const i = Math.floor(k / C), j = k % C, v = values[i][j];
    d.title = hover[i][j]; d.setAttribute('aria-label', d.title); d.classList.toggle('missing', v === null);
    if (v === null) { d.style.background = ''; d.textContent = ''; return; }
    const x = (v - centre) / limit, t = unsigned ? Math.max(0, Math.min(1, v / (2 * limit))) : Math.min(1, Math.abs(x));
    const end = unsigned || (x >= 0) !== red_is_positive ? BLUE : RED;
    d.style.background = `rgb(${mix(WHITE, end, t).join(',')})`;
    d.style.color = t > 0.55 ? 'white' : 'rgb(50,50,60)';
    if (texts) { d.textContent = texts[i][j]; return; }
    d.textContent = !numbers ? '' : Math.abs(v) < 0.005 * limit ? '0' : v.toPrecision(2).replace('-', '\\u2212');
  });
  state.legend.replaceChildren();
  const bar = make(state.legend, 'bar', '');
  const ends = unsigned ? [WHITE, mix(WHITE, BLUE, 0.5), BLUE]
    : red_is_positive ? [BLUE, WHITE, RED] : [RED, WHITE, BLUE];
  bar.style.background = `linear-gradient(to right, ${ends.map(c => `rgb(${c})`).join(', ')})`;
  const labels = make(state.legend, 'ticks', '');
  ticks.forEach(t => make(labels, 'tick', t));
}

export default function({data, parentElement, setTriggerValue}) {
  const host = parentElement.querySelector('.hg');
  const shape = JSON.stringify([data.rows, data.columns]);
  let state = instances.get(parentElement);
  if (!state || state.shape !== shape) {
    state = build(host, data); state.shape = shape; instances.set(parentElement, state);
  }
  state.send = setTriggerValue; state.data = data;
  paint(state); state.mark(data.selected);
}
"""

_CSS = """
.hg{overflow-x:auto;padding:3px}
.grid{display:grid;gap:2px;font:11px var(--st-code-font, monospace);color:var(--st-text-color)}
.axis{padding:1px 4px;text-align:center;align-self:center;white-space:pre;unicode-bidi:isolate}
.axis.tall{writing-mode:vertical-rl;transform:rotate(180deg);justify-self:center;align-self:start;padding:4px 1px}
.cell{min-height:34px;display:flex;align-items:center;justify-content:center;cursor:pointer;border-radius:3px;
  font-size:11px;overflow:hidden;white-space:nowrap}
.cell.missing{background:repeating-linear-gradient(45deg,#999 0 2px,transparent 2px 6px);cursor:default}
.cell:hover{outline:2px solid var(--st-primary-color)}
.cell.on{outline:3px solid var(--st-text-color);z-index:1;font-weight:bold}
.cell:focus-visible{outline:3px dashed var(--st-text-color)}
.legend{max-width:320px;margin-top:10px;font:11px var(--st-code-font, monospace);color:var(--st-text-color)}
.bar{height:10px;border-radius:3px}
.ticks{display:flex;justify-content:space-between}
"""

_mount = st.components.v2.component("workbench_heat_grid", html="<div class='hg'></div>", css=_CSS, js=_JS)


def heat_grid(
    grid: Grid, *, key: str, selected: str | None, on_pick: Callable[[str], None], label: str = "heat map"
) -> None:
    """Show `grid` with the cell called `selected` outlined; `on_pick` gets the name of a cell that is clicked."""
    names = {name for line in grid.names for name in line if name is not None}

    def picked() -> None:
        name = st.session_state[key].sel
        if isinstance(name, str) and name in names:
            on_pick(name)

    scale = grid.scale
    low, high, unsigned = scale.centre - scale.limit, scale.centre + scale.limit, isinstance(scale, Amount)
    sign = "" if unsigned else "+"
    data = {
        "rows": grid.rows, "columns": grid.columns, "names": grid.names, "values": grid.values, "hover": grid.hover,
        "limit": scale.limit, "centre": scale.centre, "red_is_positive": scale.red_is_positive, "label": label,
        "ticks": [f"{low:{sign}.3g}", f"{scale.centre:g}", f"{high:{sign}.3g}"], "texts": grid.texts,
        "unsigned": unsigned,
        "selected": selected if selected in names else None,
    }  # fmt: skip
    _mount(key=key, data=data, on_sel_change=picked)
