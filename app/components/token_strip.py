"""Lines of tokens, each on a blue as deep as its number; no text of a token is ever read as markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from interp.plots.labels import visible

_JS = """
export default function({data, parentElement}) {
  const host = parentElement.querySelector('.ts');
  host.replaceChildren();
  host.setAttribute('role', 'list'); host.setAttribute('aria-label', data.label);
  data.strips.forEach(strip => {
    const line = document.createElement('div'); line.className = 'strip'; line.setAttribute('role', 'listitem');
    const head = document.createElement('span'); head.className = 'head'; head.textContent = strip.head;
    const text = document.createElement('span'); text.className = 'text'; text.dir = 'ltr';
    strip.tokens.forEach((token, k) => {
      const span = document.createElement('span'), v = strip.values[k], t = Math.max(0, Math.min(1, v / data.limit));
      span.className = 'token' + (k === strip.marked ? ' on' : '');
      span.textContent = token;
      span.title = `${JSON.stringify(token)}  ${v.toPrecision(4)}`;
      span.style.background = t > 0 ? `rgba(33,102,172,${0.08 + 0.72 * t})` : '';
      if (t > 0.65) span.style.color = 'white';
      text.appendChild(span);
    });
    line.append(head, text); host.appendChild(line);
  });
}
"""

_CSS = """
.strip{display:flex;gap:14px;align-items:baseline;padding:3px 0;border-bottom:1px solid var(--st-border-color, #8883)}
.head{flex:none;width:11em;text-align:right;opacity:.75;
  font:12px var(--st-code-font, monospace);color:var(--st-text-color)}
.text{font:14px/1.8 var(--st-code-font, monospace);white-space:pre-wrap;overflow-wrap:anywhere}
.token{border-radius:3px;padding:1px 0;color:var(--st-text-color);unicode-bidi:isolate}
.token.on{outline:2px solid rgb(230,150,20)}
"""

_mount = st.components.v2.component("workbench_token_strip", html="<div class='ts'></div>", css=_CSS, js=_JS)


@dataclass(frozen=True)
class Strip:
    """One line: `tokens` with a number each, a short `head` before them, and the index of the token to outline."""

    tokens: Sequence[str]
    values: Sequence[float]
    head: str = ""
    marked: int | None = None


def token_strips(strips: Sequence[Strip], *, key: str, label: str) -> None:
    """Show the lines on one scale, from 0 (no colour) to the largest number of all (deepest blue)."""
    limit = max((value for strip in strips for value in strip.values), default=0.0)
    lines = [
        {"head": s.head, "tokens": [visible(t) for t in s.tokens], "values": [float(v) for v in s.values],
         "marked": s.marked}
        for s in strips
    ]  # fmt: skip
    _mount(key=key, data={"strips": lines, "limit": float(limit) if limit > 0 else 1.0, "label": label})
