"""Text that somebody else wrote, on a terminal: nothing in it acts there."""

from __future__ import annotations

import unicodedata

CODED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format, half a pair, line and paragraph separators


def visible(text: str) -> str:
    """The text with ⏎ for line ends and codes for other control and format characters: none acts on the terminal."""
    return "".join("⏎" if c == "\n" else _code(c) if unicodedata.category(c) in CODED else c for c in text)


def _code(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"
