"""Where every head looks: a small picture a head, the chosen one large, with the tokens it looks from and at.

Patterns go to the browser as one byte a number and are drawn on canvases; token text is set as text, never as markup.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import numpy as np
import streamlit as st

from interp.plots.labels import visible

SIDE = 56
"""Width of a small picture, in pixels."""

_JS = """
const BLUE = [33, 102, 172], RED = [178, 24, 43], WHITE = [247, 247, 247];
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const make = (parent, tag, cls, text) => {
  const e = document.createElement(tag); if (cls) e.className = cls; if (text !== undefined) e.textContent = text;
  parent.appendChild(e); return e;
};
function draw(canvas, numbers, n, signed) {
  canvas.width = n; canvas.height = n;
  const context = canvas.getContext('2d'), image = context.createImageData(n, n);
  for (let q = 0; q < n; q++) for (let k = 0; k < n; k++) {
    const v = numbers[q * n + k], at = 4 * (q * n + k);
    const t = signed ? Math.abs(v - 127) / 127 : v / 255, end = signed && v < 127 ? RED : BLUE;
    for (let c = 0; c < 3; c++) image.data[at + c] = WHITE[c] + (end[c] - WHITE[c]) * t;
    image.data[at + 3] = k > q ? 0 : 255;
  }
  context.putImageData(image, 0, 0);
}
const kept = new WeakMap();
const same = (a, b) => a && ['small', 'small_n', 'n_heads', 'signed', 'label'].every(key => a[key] === b[key])
  && a.layers.join() === b.layers.join() && a.said.join() === b.said.join();

function thumbs(host, data) {
  const small = make(host, 'div', 'small'), state = {small, data, send: null};
  small.style.gridTemplateColumns = `max-content repeat(${data.n_heads}, max-content)`;
  small.setAttribute('role', 'grid'); small.setAttribute('aria-label', data.label);
  make(small, 'div', 'axis', '');
  for (let h = 0; h < data.n_heads; h++) make(small, 'div', 'axis', 'H' + h);
  const all = bytes(data.small), m = data.small_n, made = [];
  state.mark = name => made.forEach(canvas => canvas.classList.toggle('on', canvas.dataset.name === name));
  data.layers.forEach((layer, i) => {
    make(small, 'div', 'axis', 'L' + layer);
    for (let h = 0; h < data.n_heads; h++) {
      const name = `L${layer}H${h}`, canvas = make(small, 'canvas', 'thumb');
      const first = (i * data.n_heads + h) * m * m;
      draw(canvas, all.subarray(first, first + m * m), m, data.signed);
      canvas.dataset.name = name; canvas.title = `${name}  ${data.said[i * data.n_heads + h]}`;
      canvas.setAttribute('role', 'gridcell'); canvas.setAttribute('aria-label', canvas.title); canvas.tabIndex = 0;
      const pick = () => { state.mark(name); state.send('head', name); };
      canvas.addEventListener('click', pick);
      canvas.addEventListener('keydown', e => {
        if (e.key === 'Enter' || e.key === ' ') { pick(); e.preventDefault(); }
      });
      made.push(canvas);
    }
  });
  return state;
}

function large(host, data, send) {
  const n = data.tokens.length, part = make(host, 'div', 'large'), numbers = bytes(data.large);
  const size = Math.max(7, Math.min(30, Math.floor(560 / n)));
  const box = make(part, 'div', 'box');
  const names = make(box, 'div', 'queries'), rule = make(box, 'div', 'rule');
  names.style.gridTemplateRows = `repeat(${n}, ${size}px)`;
  const canvas = make(box, 'canvas', 'big');
  draw(canvas, numbers, n, data.signed);
  canvas.style.width = canvas.style.height = size * n + 'px';
  rule.style.width = size * n + 'px'; rule.style.height = size + 'px';
  const queries = data.tokens.map((token, q) => {
    const e = make(names, 'div', 'token');
    e.style.lineHeight = size + 'px'; e.title = `query ${q}: ${token}`;
    e.addEventListener('click', () => pick(q));
    return e;
  });
  const keys = make(part, 'div', 'keys');
  keys.style.gridTemplateColumns = `repeat(${n}, ${size}px)`;
  data.tokens.forEach((token, k) => {
    make(keys, 'div', 'key', size >= 11 ? token : '').title = `key ${k}: ${token}`;
  });
  const mark = pos => {
    queries.forEach((e, q) => {
      e.classList.toggle('on', q === pos); e.textContent = size >= 11 || q === pos ? data.tokens[q] : '';
    });
    rule.hidden = pos === null;
    requestAnimationFrame(() => {
      keys.style.marginLeft = rule.style.left = canvas.offsetLeft + 'px';
      rule.style.top = canvas.offsetTop + pos * size + 'px';
    });
  };
  const pick = q => { mark(q); send('pos', q); };
  const legend = make(part, 'div', 'scale'), most = data.limit.toPrecision(3);
  make(legend, 'span', '', data.signed ? '\u2212' + most : '0');
  make(legend, 'div', data.signed ? 'ramp signed' : 'ramp');
  make(legend, 'span', '', (data.signed ? '+' : '') + most);
  legend.title = data.formula;
  const tip = make(part, 'div', 'tip', '');
  const tell = e => {
    const q = Math.floor(e.offsetY / size), k = Math.floor(e.offsetX / size);
    if (q < 0 || k < 0 || q >= n || k > q) { tip.textContent = ' '; return null; }
    const v = numbers[q * n + k], value = data.signed ? (v - 127) / 127 * data.limit : v / 255 * data.limit;
    tip.textContent = `${q} “${data.tokens[q]}” looks at ${k} “${data.tokens[k]}”: ${value.toFixed(2)}`;
    return q;
  };
  canvas.addEventListener('mousemove', tell);
  canvas.addEventListener('click', e => { const q = tell(e); if (q !== null) pick(q); });
  mark(data.pos);
}

export default function({data, parentElement, setTriggerValue}) {
  const host = parentElement.querySelector('.pv');
  let state = kept.get(parentElement);
  if (!same(state?.data, data)) {
    host.replaceChildren();
    state = thumbs(host, data); kept.set(parentElement, state);
  }
  state.send = setTriggerValue; state.mark(data.head);
  host.replaceChildren(state.small);
  large(host, data, setTriggerValue);
}
"""

_CSS = """
.pv{display:flex;gap:36px;flex-wrap:wrap;align-items:flex-start;color:var(--st-text-color);
  font:12px var(--st-code-font, monospace)}
.small{display:grid;gap:4px;align-items:center;justify-items:center}
.axis{opacity:.75;font-size:11px}
.thumb{width:SIDEpx;height:SIDEpx;image-rendering:pixelated;cursor:pointer;border-radius:3px;
  outline:1px solid var(--st-border-color, #8885)}
.thumb:hover,.thumb:focus-visible{outline:2px solid var(--st-primary-color)}
.thumb.on{outline:3px solid var(--st-text-color)}
.box{display:flex;position:relative}
.big{image-rendering:pixelated;cursor:crosshair;outline:1px solid var(--st-border-color, #8885)}
.queries{display:grid;text-align:right;padding-right:6px}
.token{white-space:pre;cursor:pointer;unicode-bidi:isolate;max-width:11em;overflow:hidden;
  border-radius:3px;padding:0 3px}
.token.on{outline:2px solid rgb(230,150,20)}
.keys{display:grid}
.key{writing-mode:vertical-rl;transform:rotate(180deg);white-space:pre;justify-self:center;max-height:9em;
  overflow:hidden;unicode-bidi:isolate;padding:4px 0;text-align:right}
.rule{position:absolute;pointer-events:none;outline:2px solid rgb(230,150,20)}
.scale{display:flex;gap:8px;align-items:center;padding-top:6px;font-size:11px}
.ramp{width:160px;height:9px;border-radius:3px;background:linear-gradient(to right,rgb(247,247,247),rgb(33,102,172))}
.ramp.signed{background:linear-gradient(to right,rgb(178,24,43),rgb(247,247,247),rgb(33,102,172))}
.tip{min-height:1.6em;padding-top:6px;white-space:pre}
""".replace("SIDE", str(SIDE))

_mount = st.components.v2.component("workbench_patterns", html="<div class='pv'></div>", css=_CSS, js=_JS)


def patterns(
    values: np.ndarray,
    layers: Sequence[int],
    tokens: Sequence[str],
    *,
    key: str,
    head: str,
    pos: int | None,
    said: Sequence[str],
    limit: float,
    signed: bool,
    on_head: Callable[[str], None],
    on_pos: Callable[[int], None],
    label: str,
    formula: str,
) -> None:
    """Show `values` [layer, head, query, key], the head called `head` large. Numbers go from 0 (white) to `limit`
    (blue), signed ones from -`limit` (red). `said`: a line for each head, on hover. `on_head` and `on_pos` get the head
    and the query that are clicked. `formula` says what the colours are of."""
    n_layers, n_heads, n = values.shape[:3]
    names = [f"L{layer}H{index}" for layer in layers for index in range(n_heads)]
    step = -(-n // SIDE)  # of a long text a small picture shows the largest of each square
    cut = values
    if step > 1:
        side, more = -(-n // step), -n % step  # what is left over at the end is a square, too
        cut = np.pad(values, ((0, 0), (0, 0), (0, more), (0, more)))
        cut = cut.reshape(n_layers, n_heads, side, step, side, step)
        cut = np.where(np.abs(cut.max((3, 5))) >= np.abs(cut.min((3, 5))), cut.max((3, 5)), cut.min((3, 5)))
    chosen = values.reshape(-1, n, n)[names.index(head)]

    def heads() -> None:
        name = (st.session_state.get(key) or {}).get("head")
        if name in names:
            on_head(name)

    def queries() -> None:
        place = (st.session_state.get(key) or {}).get("pos")
        if isinstance(place, int) and 0 <= place < n:
            on_pos(place)

    data = {
        "tokens": [visible(token) for token in tokens], "layers": list(layers), "n_heads": n_heads, "head": head,
        "pos": pos, "said": list(said), "limit": limit, "signed": signed, "label": label,
        "formula": formula, "small_n": cut.shape[-1],
        "small": _bytes(cut, limit, signed), "large": _bytes(chosen, limit, signed),
    }  # fmt: skip
    _mount(key=key, data=data, on_head_change=heads, on_pos_change=queries)


def _bytes(values: np.ndarray, limit: float, signed: bool) -> str:
    """A byte a number: 0 to 255 from 0 to the limit; 0 to 254 from -limit to limit where there are signs."""
    scaled = np.clip(values / max(limit, 1e-12), -1 if signed else 0, 1)
    numbers = np.rint(127 + 127 * scaled if signed else 255 * scaled).astype(np.uint8)
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode("ascii")
