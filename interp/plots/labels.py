"""Text on figures: nothing in it is markup, nothing in it is invisible."""

from __future__ import annotations

import html
import unicodedata

LONGEST = 12
"""Characters of a token on an axis."""


def escaped(text: str) -> str:
    """Text that plotly shows as it is; it reads `&lt;`, but not `&quot;`."""
    return html.escape(text, quote=False)


def visible(text: str) -> str:
    """Text with what cannot be seen written out: newline, tab, control and bidirectional characters, nothing at all."""
    if text == "":
        return "∅"
    if set(text) == {" "}:
        return "·" * len(text)
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in "\n\t":
        return {"\n": "↵", "\t": "⇥"}[character]
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return f"\\u{ord(character):04x}"
    return character


def short(token: str) -> str:
    """A token beside a map: visible, without the spaces around it, cut where it is long."""
    text = visible(token)
    text = text.strip(" ") or text
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def tick(token: str) -> str:
    """A token on an axis of plotly: `short`, escaped."""
    return escaped(short(token))
