"""Cuts a line of a solution into what arithmetic is made of: numbers, operators, equals signs, units, unknowns, breaks.

    "so 3 eggs x 2 = 6."  ->  number 3, unit egg, loose x, op *, number 2, equals =, number 6, break

`unknown` marks what may be an operation or a variable that we do not read, `loose` an operation written as a word,
`restart` the place where a new expression begins for want of an operator. Linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MAX_DIGITS = 30

_LATEX = (
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname|boxed|displaystyle|left|right)(?![a-z])"), " "),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-z])|[×·∙⋅∗]"), "*"),
    (re.compile(r"\\div(?![a-z])|÷"), "/"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![a-z])|≃|≅|~"), "≈"),
    (re.compile(r"\\[,;:! ]|\\q?quad(?![a-z])|&"), " "),
    (re.compile(r"\\([$%#])"), r"\1"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\*\*(?=[^0-9(\s]|$)|(?<![0-9)\s])\*\*"), " "),  # markdown bold
    (re.compile(r"\*\*"), "^"),
)
_LEX = re.compile(
    r"(?P<number>(?<![0-9.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)"
    r"|(?P<frac>\\[dt]?frac(?![a-z]))|(?P<command>\\[a-zA-Z]+)|(?P<equals>=|≈)|(?P<op>[-+*/^()%{}])"
    r"|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)?)|(?P<money>[$€£])|(?P<space>[ \t]+)|(?P<other>[\s\S])"
)
_OPERATIONS = {"times": "*", "plus": "+", "minus": "-", "of": "*", "x": "*"}
# Words that may stand for an operation: what they touch is not checked.
_UNKNOWN_WORDS = (
    "twice half halves double triple quadruple thrice third thirds fourth fourths quarter quarters fifth squared cubed "
    "than less more square root sqrt sum difference product ratio divided multiplied over remainder mod log percent "
    "percentage dozen dozens hundred thousand million billion pair pairs score gross as much many"
)
_UNKNOWN = frozenset(_UNKNOWN_WORDS.split())
_FRAC = re.compile(r"\\[dt]?frac ?\{([^{}]{1,80})\} ?\{([^{}]{1,80})\}")

# Units of one measure: a sum or equation over two of them is a conversion, which is not checked.
_MEASURE_WORDS = (
    "second minute hour day week month year cent dollar penny pennies dime nickel foot feet inch inche yard mile meter "
    "metre centimeter millimeter kilometer cm mm km m ft in kg g gram kilogram mg pound lb ounce oz ton ml l liter "
    "litre gallon quart pint cup teaspoon tablespoon min hr sec degree radian"
)
MEASURES = frozenset(_MEASURE_WORDS.split())


def to_plain(text: str) -> str:
    """The text with LaTeX and typographic operators in plain letters."""
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def pieces_of(line: str) -> Iterator[tuple[str, str]]:
    """The line as numbers, operators, `=`, units, unknowns and breaks; a new number after words restarts."""
    lexed = [(m.lastgroup or "other", m.group()) for m in _LEX.finditer(_fractions(line))]
    after_value = gap = worded = False
    last_words: list[str] = []
    for place, (kind, text) in enumerate(lexed):
        if kind == "space":
            gap = True
            continue
        following = _next_kind(lexed, place)
        if kind == "number":
            if len(text) > MAX_DIGITS:
                yield "unknown", ""
                text = "0"
            if after_value:
                # "3 eggs 4 - 2 = 2" begins anew at 4; "1 1/2", "1 and 1/2" are numbers we do not read.
                yield ("restart", "") if worded else ("unknown", text)
                if last_words == ["and"]:
                    yield "unknown", text
            last_words = []
            yield "number", text
            after_value, worded = True, False
        elif kind in ("word", "command"):
            piece = _word(text, kind, after_value, worded, gap, following)
            if piece[0] == "op" and (worded or text not in "xX"):
                yield "loose", text
            yield piece
            after_value, worded = after_value and piece[0] != "op", True
            last_words.append(text.lower())
        elif kind == "money":
            if after_value and worded:
                yield "restart", ""
                after_value = worded = False
            yield "unit", "$"
        elif kind == "equals":
            yield kind, text
            after_value = worded = False
        elif kind == "op":
            if text in "+-*/^" and not after_value and (worded or text in "*/^"):
                yield "unknown", text  # its left operand is a word
            if text in "+-*/^" and following == "word":
                yield "unknown", text
            if text == "(" and after_value and (worded or gap):
                yield "restart", ""  # "13 eggs (16 - 3 = 13)"
            yield "op", {"{": "(", "}": ")"}.get(text, text)
            after_value, worded = text in ")%}", False
        elif text == ":" and after_value and not gap and following == "number":
            yield "unknown", text  # a time or a ratio
        else:
            yield "break", text
            after_value = worded = False
        gap = False


def _word(text: str, kind: str, after_value: bool, worded: bool, gap: bool, following: str) -> tuple[str, str]:
    word = text.lower()
    if after_value and (word == "x" or not worded) and word in _OPERATIONS and following in ("number", "open", "money"):
        return "op", _OPERATIONS[word]
    if kind == "command" or word in _UNKNOWN or len(word) == 1 or (after_value and not gap and word not in MEASURES):
        return ("unit", word) if word in ("a", "m", "g", "l") and gap else ("unknown", word)
    if following == "attached":
        return "unknown", word  # f(3)
    return "unit", word.rstrip("s") if after_value else ""


def _next_kind(lexed: Sequence[tuple[str, str]], place: int) -> str:
    """What follows: a lexer kind, or `open` for a parenthesis after a blank, `attached` for one without."""
    after = lexed[place + 1 : place + 3]
    spaced = bool(after) and after[0][0] == "space"
    kind, text = after[1] if spaced and len(after) > 1 else after[0] if after and not spaced else ("end", "")
    if text == "(":
        return "open" if spaced or lexed[place][0] != "word" else "attached"
    return kind


def _fractions(line: str) -> str:
    r"""The line with `\frac{a}{b}` as `((a)/(b))`, innermost groups first; what does not fit stays as it is."""
    for _ in range(8):
        line, changed = _FRAC.subn(r"((\1)/(\2))", line)
        if not changed:
            break
    return line
