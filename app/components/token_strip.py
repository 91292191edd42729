"""Lines of tokens, each on a blue as deep as its number; a click picks one. No text of a token is ever markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from interp.plots.labels import visible

_JS = """
export default function({data, parentElement, setTriggerValue}) {
  const host = parentElement.querySelector('.ts');
  host.replaceChildren();
  host.setAttribute('role', 'list'); host.setAttribute('aria-label', data.label);
  data.strips.forEach((strip, row) => {
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
      if (data.pick) {
        span.classList.add('pick'); span.tabIndex = 0; span.setAttribute('role', 'button');
        const pick = () => {
          host.querySelectorAll('.token.on').forEach(other => other.classList.remove('on'));
          span.classList.add('on');
          setTriggerValue('token', [row, k]);
        };
        span.addEventListener('click', pick);
        span.addEventListener('keydown', e => {
          if (e.key === 'Enter' || e.key === ' ') { pick(); e.preventDefault(); }
        });
      }
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
.token.pick{cursor:pointer}
.token.pick:hover,.token.pick:focus-visible{outline:2px solid var(--st-primary-color)}
.head:empty{display:none}
"""

_mount = st.components.v2.component("workbench_token_strip", html="<div class='ts'></div>", css=_CSS, js=_JS)


@dataclass(frozen=True)
class Strip:
    """One line: `tokens` with a number each, a short `head` before them, and the index of the token to outline."""

    tokens: Sequence[str]
    values: Sequence[float]
    head: str = ""
    marked: int | None = None


def token_strips(
    strips: Sequence[Strip], *, key: str, label: str, on_pick: Callable[[int, int], None] | None = None
) -> None:
    """Show the lines on one scale, from 0 (no colour) to the largest number of all (deepest blue). `on_pick` gets the
    line and the token that is clicked."""
    limit = max((value for strip in strips for value in strip.values), default=0.0)

    def picked() -> None:
        token = (st.session_state.get(key) or {}).get("token")
        if on_pick and isinstance(token, list) and len(token) == 2 and all(isinstance(k, int) for k in token):
            line, place = token
            if 0 <= line < len(strips) and 0 <= place < len(strips[line].tokens):
                on_pick(line, place)

    lines = [
        {"head": s.head, "tokens": [visible(t) for t in s.tokens], "values": [float(v) for v in s.values],
         "marked": s.marked}
        for s in strips
    ]  # fmt: skip
    data = {"strips": lines, "limit": float(limit) if limit > 0 else 1.0, "label": label, "pick": on_pick is not None}
    _mount(key=key, data=data, on_token_change=picked)
