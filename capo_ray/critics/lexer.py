r"""Cuts a line of a solution into what arithmetic is made of: numbers, operators, `=`, units, unknowns, breaks.

    "so 3 eggs x 2 = 6."  ->  number 3, unit egg, loose x, op *, number 2, equals =, number 6, break

`unknown` marks what may be an operation or a variable that we do not read: every sign that is not plain punctuation,
every letter, subscript and command. `loose` is an operation written as a word, `restart` the place where a new
expression begins after words for want of an operator, `asked` a question mark. Linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MAX_DIGITS = 30
MAX_WORDS_BETWEEN = 4
"""Words between a value and what it is said to be equal to; behind more of them something else is meant."""

_LATEX = (
    (re.compile(r"(?<=[0-9])(?:,\\!|\{,\}|\\,)\s?(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\\(?:left|right)(?![a-z])"), ""),  # "g\left(" is a function's value as "g(" is
    (re.compile(r"([=≈(+*/-] ?)\\boxed(?![a-z])"), r"\1 "),
    (re.compile(r"\\boxed(?![a-z])"), ";"),  # an answer beside what stands before it, not a factor
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname|displaystyle)(?![a-z])"), " "),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-z])|[×·∙⋅∗]"), "*"),
    (re.compile(r"\\div(?![a-z])|÷"), "/"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![a-z])|≃|≅|~"), "≈"),
    (re.compile(r"\\\\|\\[\[\]()]|\\(?:q?quad|Rightarrow|implies|therefore)(?![a-z])|[⇒→∴]"), ";"),
    (re.compile(r"\\[,;:! ]|&"), " "),
    (re.compile(r"\\([$%#])"), r"\1"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\*\*(?=[^0-9(\s]|$)|(?<![0-9)\s])\*\*"), " "),  # markdown bold
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\$(?=\?)"), ""),
    (re.compile(r"\$(?![ ]?[0-9.(-])"), ";"),  # the end of a formula, or one that begins with a letter
)
_LEX = re.compile(
    r"(?P<number>(?<![0-9.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)"
    r"|(?P<frac>\\[dt]?frac(?![a-z]))|(?P<command>\\[a-zA-Z]+)|(?P<equals>=|≈)|(?P<op>[-+*/^()%{}])"
    r"|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)?)|(?P<money>[$€£])|(?P<space>[ \t]+)|(?P<dots>\.\.+|…|\.(?=\\))"
    r"|(?P<stop>[.,;:!\"“”]|\?)|(?P<other>[\s\S])"
)
_OPERATIONS = {"times": "*", "plus": "+", "minus": "-", "of": "*", "x": "*"}
# Words that may stand for an operation: what they touch is not checked.
_UNKNOWN_WORDS = (
    "twice half halves double triple quadruple thrice third thirds fourth fourths quarter quarters fifth squared cubed "
    "than less more square root sqrt sum difference product ratio divided multiplied over remainder mod log percent "
    "percentage dozen dozens hundred thousand million billion pair pairs score gross as much many"
)
_UNKNOWN = frozenset(_UNKNOWN_WORDS.split())
# Words between two statements: what follows is an expression of its own.
_CLAUSES = (
    "and or so but then thus hence therefore because since where if that we when while giving gives get is are was"
)
_CLAUSE_WORDS = frozenset(_CLAUSES.split())
_INNER = (
    (re.compile(r"\\[dtc]?frac ?\{([^{}]{1,120})\} ?\{([^{}]{1,120})\}"), r"((\1)/(\2))"),
    (re.compile(r"\\[dtc]?frac ?([0-9]) ?([0-9])"), r"((\1)/(\2))"),
    (re.compile(r"([\^_]) ?\{([^{}]{1,120})\}"), r"\1(\2)"),
    (re.compile(r"\\sqrt ?\{([^{}]{1,120})\}"), r"\\sqrt(\1)"),
)
_MIXED = re.compile(r"(?<![0-9.)])[0-9]+ ?\(\([0-9]+\)/\([0-9]+\)\)")

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
    lexed = [(m.lastgroup or "other", m.group()) for m in _LEX.finditer(_without_braces(line))]
    after_value = gap = False
    resume = 0
    words: list[str] = []  # prose since the last value; other letters are unknown at once
    for place, (kind, text) in enumerate(lexed):
        if place < resume:
            continue
        if kind == "space":
            gap = True
            continue
        following = _next_kind(lexed, place)
        if kind == "number":
            yield from _number(text, after_value, bool(words))
            after_value, words = True, []
        elif kind in ("word", "command"):
            piece = _word(lexed, place, after_value, bool(words), gap)
            if piece[0] == "op" and (words or text not in "xX"):
                yield "loose", text
            yield piece
            if piece[0] in ("op", "break"):
                after_value, words = False, []
            elif kind == "word" and piece[0] == "unit":
                words.append(text)
                resume = place + 1 + (_power_length(lexed, place) if following == "power" else 0)
        elif kind == "money":
            if after_value and words:
                yield "restart", ""
                after_value, words = False, []
            yield "unit", "$"
        elif kind == "equals":
            if len(words) > MAX_WORDS_BETWEEN:
                yield "unknown", ""
            yield kind, text
            after_value, words = False, []
        elif kind == "op":
            yield from _operator(lexed, place, after_value, bool(words), gap)
            after_value, words = text in ")%}", []
        elif kind == "stop":
            ended = _stop(lexed, place, after_value and not gap)
            yield from ended
            if ended[-1][0] != "unknown":
                after_value, words = False, []
        else:
            yield "unknown", text
        gap = False


def _number(text: str, after_value: bool, worded: bool) -> Iterator[tuple[str, str]]:
    if after_value:
        # "3 eggs 4 - 2 = 2" begins anew at 4; "1 1/2" is a number we do not read.
        yield ("restart", "") if worded else ("unknown", text)
    if len(text) > MAX_DIGITS:
        yield "unknown", ""
        text = "0"
    yield "number", text


def _operator(
    lexed: Sequence[tuple[str, str]], place: int, after_value: bool, worded: bool, gap: bool
) -> Iterator[tuple[str, str]]:
    text = lexed[place][1]
    bare = text in "*/^" and not after_value
    if bare or (worded and text in "+-*/^" and (not after_value or text == "^" or (not gap and text != "/"))):
        yield "unknown", text  # its left operand is a word, or letters are its base
    if text in "+-*/^" and _next_kind(lexed, place) == "word":
        yield "unknown", text
    if text == "(" and after_value and (worded or (gap and _is_aside(lexed, place))):
        yield ("restart", "") if gap else ("unknown", text)  # "13 eggs (16 - 3 = 13)", "4 (15 minutes)"
    yield "op", {"{": "(", "}": ")"}.get(text, text)


def _stop(lexed: Sequence[tuple[str, str]], place: int, behind_value: bool) -> list[tuple[str, str]]:
    text, (after, _) = lexed[place][1], (*lexed[place + 1 : place + 2], ("end", ""))[0]
    if behind_value and text == ":" and _next_kind(lexed, place) == "number":
        return [("unknown", text)]  # a time or a ratio
    if text == "!" and after == "number":
        return [("unknown", text)]  # derangements: !5
    factorial = [("unknown", text)] if text == "!" and behind_value else []
    return [*factorial, ("asked" if text == "?" else "break", text)]


def _word(lexed: Sequence[tuple[str, str]], place: int, after_value: bool, worded: bool, gap: bool) -> tuple[str, str]:
    kind, text = lexed[place]
    word, following = text.lower(), _next_kind(lexed, place)
    if after_value and (word == "x" or not worded) and word in _OPERATIONS and following in ("number", "open", "money"):
        return "op", _OPERATIONS[word]
    if kind == "command":
        return "unknown", word
    if word in _CLAUSE_WORDS and following != "attached":
        return ("unknown", word) if word == "and" and _is_fraction(lexed, place) else ("break", word)
    is_unit = word in MEASURES and after_value
    if is_unit and following == "power":
        return ("unit", word) if _power_length(lexed, place) else ("unknown", word)
    if word in _UNKNOWN or len(word) == 1 or (after_value and not gap and not is_unit):
        return ("unit", word) if word in ("a", "m", "g", "l") and gap and following != "attached" else ("unknown", word)
    if following in ("attached", "power", "joined"):
        return "unknown", word  # f(3), ab^2, ab_1
    return "unit", word.rstrip("s") if after_value else ""


def _next_kind(lexed: Sequence[tuple[str, str]], place: int) -> str:
    """What follows: a lexer kind; a parenthesis is `open` after a blank, else `attached`; `power` is an attached ^."""
    after = lexed[place + 1 : place + 3]
    spaced = bool(after) and after[0][0] == "space"
    kind, text = after[1] if spaced and len(after) > 1 else after[0] if after and not spaced else ("end", "")
    if text == "(":
        return "open" if spaced or lexed[place][0] != "word" else "attached"
    if lexed[place][0] == "word" and not spaced and kind in ("op", "other", "number", "command"):
        return "power" if text == "^" else "joined" if text in "_|[" or kind != "op" else kind
    return kind


def _power_length(lexed: Sequence[tuple[str, str]], place: int) -> int:
    """The pieces of `^2` or `^(3)` after a unit that ends its clause; 0 where something is still to come."""
    length = 4 if lexed[place + 2 : place + 3] == [("op", "(")] else 2
    rest = [piece for piece in lexed[place + 1 + length : place + 5 + length] if piece[0] != "space"]
    digits = lexed[place + (3 if length == 4 else 2) :][:1]
    return length if digits and digits[0][0] == "number" and (not rest or rest[0][0] == "stop") else 0


def _is_aside(lexed: Sequence[tuple[str, str]], place: int) -> bool:
    """Whether a parenthesis holds a number of something."""
    rest = [piece for piece in lexed[place + 1 : place + 5] if piece[0] not in ("space", "money")]
    return len(rest) > 1 and rest[0][0] == "number" and rest[1][0] == "word" and rest[1][1] not in _OPERATIONS


def _is_fraction(lexed: Sequence[tuple[str, str]], place: int) -> bool:
    """Whether `and` joins a number to a fraction: 1 and 1/2."""
    rest = [piece for piece in lexed[place + 1 : place + 6] if piece[0] != "space"]
    return len(rest) > 1 and rest[0][0] == "number" and rest[1][1] == "/"


def _without_braces(line: str) -> str:
    r"""The line with `\frac{a}{b}` as `((a)/(b))` and `^{a}` as `^(a)`, innermost first; mixed numbers are unknown."""
    for _ in range(8):
        before = line
        for pattern, replacement in _INNER:
            line = pattern.sub(replacement, line)
        if line == before:
            break
    return _MIXED.sub(" \\\\mixed ", line)
