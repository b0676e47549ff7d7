r"""What kind of thing an answer is, read from its text: enough to see that two answers cannot be the same.

    scalar    a number or simple formula (`numbers`, `witness`)       points   an interval, or a union of them
    list      two or more entries, of which two differ                matrix   its size and the values of its cells
    word      `\text{…}`                                              equation one `=`; `x\in A` is read as A

math-verify never calls things of different kinds equal, once `x=` is dropped as it drops it; of one kind, values far
apart decide. A text that fits no kind is left to the library. Only differences are concluded here, never equality.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from capo_ray.answers.numbers import THOUSANDS, entry_value, has_loner, read_list
from capo_ray.answers.witness import GAP, apart, value_of

INFINITE = 1e300
MAX_CELLS = 16
MAX_INTERVALS = 6

MARKED_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\{([^{}\\]*)\}")
WORD = re.compile(r"\(?([A-Za-z][A-Za-z' -]*)\)?")
_SPECIAL_WORD = re.compile("inf|percent|pct|and|or", re.IGNORECASE)
_MEMBER = re.compile(r"[a-z] ?\\in ?(?![a-zA-Z])")
_MATRIX = re.compile(r"\\begin\{([pb])matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_INTERVAL = re.compile(r"([(\[])([^,()\[\]<>=|]{1,40}),([^,()\[\]<>=|]{1,40})([)\]])")
_INFINITY = re.compile(r" ?([-+]?) ?\\infty ?")
# outside ASCII the reader knows Greek letters and signs; the ranges here hold none of them
_NO_FORMULA = re.compile("[#?@~`\x01-\x08\x0e-\x1f\x7f\u0100-\u036f\u0400-\u1fff\u3000-\U0010ffff]")
_READ_ALONE = re.compile(r"\\[tmbo(\[]|\$|answer", re.IGNORECASE)  # text, units, boxes, other ends of a formula
_ESCAPED = re.compile(r"\\[{}\\]")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LETTER = re.compile("[a-zA-Z]")
_TERM = re.compile(r"([-+]?)([0-9]{1,6}(?:\.[0-9]{1,6})?)?([xyzabkmnpqrtuvw])?")

Span = tuple[float, float, bool, bool]  # low, high, low_open, high_open


@dataclass(frozen=True, slots=True)
class Shape:
    """One answer: its kind and what that kind is compared by; `spans` are sorted and disjoint."""

    kind: str
    values: tuple[complex, ...] = ()
    spans: tuple[Span, ...] = ()
    size: tuple[int, int] = (0, 0)
    constant: bool = False


@dataclass(frozen=True, slots=True)
class Equation:
    """Two sides; `line` holds the coefficients of both when all is linear (key "" is the constant)."""

    right: Shape
    assigned: bool
    line: dict[str, float] | None


def differ(a: str, b: str) -> bool:
    """Whether reference `a` and answer `b`, both normalised, are of kinds or hold values that are never equal."""
    if _is_unreadable(a) != _is_unreadable(b):
        return True
    first, second = _read(a), _read(b)
    if first is None or second is None:
        return False
    if isinstance(first, Equation):
        if isinstance(second, Equation):
            return bool(first.line and second.line and _slanted(first.line, second.line))
        many = first.line is not None and len(first.line) > 2  # of one letter, it may stand for its set of solutions
        if second.kind in ("points", "list") and not (first.assigned or many):
            return False
        return _unlike(first.right, second)
    return _unlike(first, second.right if isinstance(second, Equation) else second)


def _is_unreadable(text: str) -> bool:
    """Whether math-verify's reader stops at some character or brace, and there is no part that it reads alone."""
    wrong = _NO_FORMULA.search(text) or (("{" in text or "}" in text) and not _closes(text))
    return bool(wrong) and not _READ_ALONE.search(text) and text.count("=") < 2


def _closes(text: str) -> bool:
    bare = _ESCAPED.sub("", text)
    return bare.count("{") == bare.count("}")


def is_word(text: str) -> bool:
    """Whether a text is a word marked as such, which no number equals."""
    match = MARKED_TEXT.fullmatch(text)
    return bool(match and WORD.fullmatch(match.group(1)) and not _SPECIAL_WORD.search(match.group(1)))


def _unlike(first: Shape, second: Shape) -> bool:
    """As `differ`, for what is no equation."""
    if first.kind != second.kind:
        kinds = {first.kind, second.kind}
        if kinds == {"scalar", "list"}:
            return False  # `numbers.same_entries` has looked at these
        if kinds == {"scalar", "word"}:  # a product of letters may spell the word
            return first.constant or second.constant
        if kinds == {"points", "list"}:
            return _no_pair(*((first, second) if first.kind == "points" else (second, first)))
        return True
    if first.kind == "points":
        return _other_points(first, second)
    if first.kind == "matrix":
        pairs = zip(first.values, second.values, strict=False)
        return first.size != second.size or any(apart(x, y) for x, y in pairs)
    return first.kind == "scalar" and apart(first.values[0], second.values[0])


def _no_pair(points: Shape, entries: Shape) -> bool:
    """Whether an interval is not the open one that a pair of numbers may stand for."""
    if len(entries.values) != 2 or len(points.spans) != 1 or points.spans[0][2:] != (True, True):
        return True
    ends = [complex(end) for end in points.spans[0][:2]]
    return has_loner(ends, entries.values) or has_loner(entries.values, ends)


def _other_points(first: Shape, second: Shape) -> bool:
    if len(first.spans) != len(second.spans):
        return True
    return any(
        x[2:] != y[2:] or apart(x[0], y[0]) or apart(x[1], y[1]) for x, y in zip(first.spans, second.spans, strict=True)
    )


def _slanted(first: dict[str, float], second: dict[str, float]) -> bool:
    """Whether two lines' coefficients are clearly not in proportion."""
    names = sorted(first.keys() | second.keys())
    x, y = ([line.get(name, 0.0) for name in names] for line in (first, second))
    scale = max(map(abs, x)) * max(map(abs, y))
    crosses = (abs(x[i] * y[j] - x[j] * y[i]) for i in range(len(names)) for j in range(i))
    return max(crosses, default=0.0) > GAP * scale


@lru_cache(maxsize=4096)
def _read(text: str) -> Shape | Equation | None:
    if is_word(text):
        return Shape("word") if len(text) >= len("\\text{abc}") else None
    if text.startswith("\\begin{"):
        return _matrix(text)
    if member := _MEMBER.match(text):
        return _points(text[member.end() :])
    if text.count("=") == 1:
        return _equation(*text.split("="))
    return _plain(text)


def _plain(text: str) -> Shape | None:
    value = entry_value(text)
    if value is not None:
        return Shape("scalar", (value,), constant=not _LETTER.search(_COMMAND.sub("", text)))
    if (found := _points(text)) is not None:
        return found
    found_list = read_list(text)
    if found_list is None or not any(apart(x, found_list.values[0]) for x in found_list.values):
        return None
    return Shape("list", found_list.values)


def _equation(left: str, right: str) -> Equation | None:
    value = entry_value(right)
    if value is None or value_of(left) is None or "=" in left + right:
        return None
    shape = Shape("scalar", (value,), constant=not _LETTER.search(_COMMAND.sub("", right)))
    first, second = _linear(left), _linear(right)
    line = None
    if first is not None and second is not None:
        line = {name: first.get(name, 0.0) - second.get(name, 0.0) for name in first.keys() | second.keys() | {""}}
        if len(line) < 2 or any(not factor for name, factor in line.items() if name):
            line = None  # a letter that falls out
    return Equation(shape, bool(_LETTER.fullmatch(left)), line)


def _linear(text: str) -> dict[str, float] | None:
    """The coefficients of a sum of letters and numbers, each letter once."""
    text = text.replace(" ", "")
    found: dict[str, float] = {}
    place = 0
    while place < len(text):
        match = _TERM.match(text, place)
        if match is None or not (match.group(2) or match.group(3)) or (place and not match.group(1)):
            return None
        sign, number, name = match.groups("")
        if name in found:
            return None
        found[name] = (-1 if sign == "-" else 1) * float(number or 1)
        place = match.end()
    return found or None


def _matrix(text: str) -> Shape | None:
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [row.split("&") for row in match.group(2).split("\\\\")]
    values = [entry_value(cell.strip()) for row in rows for cell in row]
    if not 2 <= len(values) <= MAX_CELLS or None in values or len({len(row) for row in rows}) > 1:
        return None
    return Shape("matrix", tuple(v for v in values if v is not None), size=(len(rows), len(rows[0])))


def _points(text: str) -> Shape | None:
    """A union of intervals with constant ends, each low < high; None where that is not certain."""
    if not text.startswith(("(", "[")):
        return None
    parts = text.split("\\cup", MAX_INTERVALS)
    spans = [_span(part.strip()) for part in parts] if len(parts) < MAX_INTERVALS else [None]
    if None in spans:
        return None
    merged: list[Span] = []
    for span in sorted(span for span in spans if span is not None):
        joined = _joined(merged[-1], span, "." not in text) if merged else [span]
        if joined is None:
            return None
        merged[-1:] = joined
    return Shape("points", spans=tuple(merged))


def _joined(first: Span, second: Span, exact: bool) -> list[Span] | None:
    """Two intervals of which `first` begins no later, as one where they overlap; None where they touch or nearly."""
    if not all(apart(x, y) for x in first[:2] for y in second[:2]):
        # the point between them is in neither; sympy loses it where an end is a float
        touching = exact and first[1] == second[0] and first[3] and second[2]
        return [first, second] if touching else None
    if first[1] < second[0]:
        return [first, second]
    last = first if first[1] > second[1] else second
    return [(first[0], last[1], first[2], last[3])]


def _span(text: str) -> Span | None:
    match = _INTERVAL.fullmatch(text)
    if match is None or THOUSANDS.search(text):
        return None
    opening, low, high, closing = match.groups()
    start, end = _end(low), _end(high)
    if start is None or end is None or start >= end or not apart(start, end):
        return None
    if (start == -INFINITE and opening == "[") or (end == INFINITE and closing == "]"):
        return None
    return (start, end, opening == "(", closing == ")")


def _end(text: str) -> float | None:
    """The value of an interval's end, which must be a constant."""
    if match := _INFINITY.fullmatch(text):
        return -INFINITE if match.group(1) == "-" else INFINITE
    if _LETTER.search(_COMMAND.sub("", text)):
        return None
    value = entry_value(text.strip())
    return value.real if value is not None and value.imag == 0 else None
