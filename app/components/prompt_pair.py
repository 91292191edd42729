"""A clean prompt above its corrupted one, token above token; those that differ are marked. Text is never markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from app.components.token_strip import visible

_JS = """
export default function({data, parentElement, setTriggerValue}) {
  const host = parentElement.querySelector('.pp');
  host.replaceChildren();
  const table = document.createElement('table');
  table.setAttribute('aria-label', data.label);
  const line = (name, cls, texts) => {
    const row = table.insertRow(); row.className = cls;
    const head = document.createElement('th'); head.textContent = name; row.appendChild(head);
    texts.forEach((text, k) => {
      const cell = row.insertCell(); cell.textContent = text;
      cell.classList.toggle('swapped', cls === 'token' && data.swapped[k]);
      cell.classList.toggle('on', data.names[k] !== null && data.names[k] === data.selected);
      if (cls === 'token' && data.swapped[k]) cell.title = 'differs between the two prompts';
      if (data.names[k] !== null) {
        cell.classList.add('pick');
        cell.addEventListener('click', () => {
          table.querySelectorAll('td').forEach(other => other.classList.toggle('on', other.cellIndex === k + 1));
          setTriggerValue('pos', data.names[k]);
        });
      }
    });
  };
  line('position', 'place', data.places);
  line('clean', 'token', data.clean);
  if (data.corrupted) line('corrupted', 'token', data.corrupted);
  host.appendChild(table);
}
"""

_CSS = """
.pp{overflow-x:auto}
table{border-collapse:separate;border-spacing:2px 3px;font:13px var(--st-code-font, monospace);
  color:var(--st-text-color)}
th{font-weight:normal;opacity:.75;text-align:right;padding-right:10px;font-size:12px}
td{padding:2px 5px;border-radius:3px;white-space:pre;text-align:center;unicode-bidi:isolate}
.place td{font-size:11px;opacity:.75}
.token td{background:rgba(128,128,140,.13)}
.token td.swapped{background:rgba(230,150,20,.38);text-decoration:underline dotted}
td.on{outline:2px solid var(--st-text-color);opacity:1}
td.pick{cursor:pointer}
"""

_mount = st.components.v2.component("workbench_prompt_pair", html="<div class='pp'></div>", css=_CSS, js=_JS)


def prompt_pair(
    pair: dict[str, Any], positions: Sequence[str], *, key: str, selected: str | None, on_pick: Callable[[str], None]
) -> bool:
    """Show a pair of prompts.jsonl; False where it has no text of single tokens. `positions`: those that a map has;
    `on_pick` gets the one whose token is clicked."""
    clean, corrupted = pair.get("clean_pieces"), pair.get("corrupted_pieces")
    if not isinstance(clean, list) or not clean:
        return False
    labels = pair.get("positions") if isinstance(pair.get("positions"), dict) else {}
    by_index = {index: label for label, index in labels.items()}
    names = [next((n for n in (by_index.get(k), str(k)) if n in positions), None) for k in range(len(clean))]
    both = isinstance(corrupted, list) and len(corrupted) == len(clean)
    ids = [pair.get(f"{which}_tokens") or pair[f"{which}_pieces"] for which in ("clean", "corrupted")] if both else []

    def picked() -> None:
        name = (st.session_state.get(key) or {}).get("pos")
        if name in names:
            on_pick(name)

    data = {
        "label": "clean and corrupted prompt", "names": names, "selected": selected,
        "places": [by_index.get(k, str(k)) for k in range(len(clean))],
        "clean": [visible(str(text)) for text in clean],
        "corrupted": [visible(str(text)) for text in corrupted] if both else None,
        "swapped": [a != b for a, b in zip(*ids, strict=True)] if both else [False] * len(clean),
    }  # fmt: skip
    _mount(key=key, data=data, on_pos_change=picked)
    return True
