r"""Which answers are too costly to be worth a look: seen in the text, so they cost microseconds and not a time-out.

A refused answer is *undecided*, not wrong. Each limit stands far above what answers of known data sets hold, or is a
multiple of what the reference itself holds, so that a right answer in another spelling passes; an answer that is the
reference's own text is equal before anything is refused, and one that `fast_equal` tells apart is wrong, not refused.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_NESTING = 12
MAX_POWER_DIGITS = 100_000
MAX_GROUP_POWER = 16
MAX_SOLVED_POWER = 4
MAX_ENTRIES = 24
MAX_COUNT_DIGITS = 3
MAX_SYMBOLS = 40
MAX_DIGITS = 60
MAX_FUNCTIONS = 4
MAX_ROOTS = 6
MAX_BARS = 4

_UNFINISHED = re.compile(r"\\(?:i*int|oint|sum|prod|lim)(?![a-zA-Z])")
_SYMBOL = re.compile(r"\\(?:text|textbf|mbox|mathrm)\{[^{}\\]*\}|\\[a-zA-Z]+|[0-9.]+|[^\s{}\\]")
_DIGITS = re.compile(r"[0-9.,]+")
_TERM = r"(?:[0-9]++|e|\\pi)"
_TOWER = re.compile(rf"(?<![0-9])({_TERM})((?:\^\(*-?{_TERM})+)")
_TERMS = re.compile(_TERM)
_POWER = re.compile(r"(?:[a-df-zA-Z)\]}]|\\[a-zA-Z]+)\^[{(]*([0-9]+)")
_FACTORIAL = re.compile(r"!!|([0-9]+) ?!|\^(?:[0-9]+|\{[^{}]*\}) ?!|([)}\]]) ?!")
_LARGE_INSIDE = re.compile(r"[\^!]|[0-9]{3}")
_CODE = re.compile(r"\(['\"]|['\"][/_]|__")
_MATRIX_POWER = re.compile(r"matrix\}\^")
_COUNTING = re.compile(r"\\(?:d?binom|Gamma|zeta)(?![a-zA-Z])")
_LARGE_COUNT = re.compile(rf"[0-9]{{{MAX_COUNT_DIGITS + 1}}}|\^")
_RELATION = re.compile(r"[=<>]|\\(?:[lg]eq?|[lg]eqslant|neq?)(?![a-zA-Z])")
_FUNCTION = re.compile(r"\\(?:arc|oper|sin|cos|tan|cot|sec|csc|log|ln|exp|lg)")


def refusal(text: str, reference: str = "") -> str | None:
    """Why an answer of at most `MAX_ANSWER_CHARS` is not looked at, or None; both texts are normalised."""
    if (operator := _UNFINISHED.search(text)) and not _UNFINISHED.search(reference):
        return f"an unfinished calculation ({operator.group()})"
    if (count := _symbols(text)) > max(MAX_SYMBOLS, 4 * _symbols(reference)):
        return f"{count} symbols, far more than the reference"
    if _CODE.search(text) and not _CODE.search(reference):
        return "code"
    deepest = _nesting(text)
    if deepest > max(MAX_NESTING, _nesting(reference) + 2):
        return f"nested {deepest} deep"
    if (count := _entries(text)) > max(MAX_ENTRIES, 2 * _entries(reference)):
        return f"a list of {count} entries"
    if (count := _longest(text)) > max(MAX_DIGITS, _longest(reference) + MAX_DIGITS // 2):
        return f"a number of {count} digits"
    if "^" in text and (why := _refused_power(text, reference)):
        return why
    if "!" in text and _is_large_factorial(text, _longest(reference) if "!" in reference else 0):
        return "a factorial too large to write out"
    if (count := text.count("|")) > max(MAX_BARS, 2 * reference.count("|")):
        return f"{count} bars"
    if "\\" in text:
        return _refused_commands(text, reference)
    return None


def _is_large_factorial(text: str, known_digits: int) -> bool:
    """Whether a factorial is of a large number or of what may be one: of a power, of a factorial, `!!`.

    `n!` and `(n-k)!` stay symbols and cost nothing.
    """
    for match in _FACTORIAL.finditer(text):
        digits, bracket = match.groups()
        if digits is not None:
            if len(digits) > max(MAX_COUNT_DIGITS, min(known_digits, MAX_COUNT_DIGITS + 1)):
                return True
        elif bracket is None:
            return True
        else:
            depth, start = 0, match.start()
            while start >= 0:
                depth += (text[start] in ")}]") - (text[start] in "({[")
                if depth == 0:
                    break
                start -= 1
            if _LARGE_INSIDE.search(text, max(start, 0), match.start()):
                return True
    return False


def _refused_power(text: str, reference: str) -> str | None:
    flat = text.replace("{", "").replace("}", "").replace(" ", "")
    if any(_too_high(match) for match in _TOWER.finditer(flat)):
        return "a power too large to write out"
    highest, known = _highest_power(text), _highest_power(reference)
    if highest > max(MAX_GROUP_POWER, 2 * known):
        return "a power too large to expand"
    if highest > max(MAX_SOLVED_POWER, known) and _RELATION.search(text) and _RELATION.search(reference):
        return "an equation too high to solve"
    if _MATRIX_POWER.search(text) and not _MATRIX_POWER.search(reference):
        return "a power of a matrix"
    return None


def _refused_commands(text: str, reference: str) -> str | None:
    if _COUNTING.search(text) and _LARGE_COUNT.search(text):
        return "a count too large to write out"
    if (count := len(_FUNCTION.findall(text))) > max(MAX_FUNCTIONS, 2 * len(_FUNCTION.findall(reference))):
        return f"{count} functions"
    if count and _RELATION.search(text) and _RELATION.search(reference) and not _FUNCTION.search(reference):
        return "an equation of functions"
    if (count := text.count("\\sqrt")) > max(MAX_ROOTS, 2 * reference.count("\\sqrt")):
        return f"{count} roots"
    return None


@lru_cache(maxsize=1024)
def _symbols(text: str) -> int:
    """The symbols of a formula: commands, numbers, letters and signs, a text in words counting as one."""
    return len(_SYMBOL.findall(text))


def _entries(text: str) -> int:
    return text.count(",") + text.count("\\\\") + 1


def _longest(text: str) -> int:
    """The digits of the longest number."""
    return max(map(len, _DIGITS.findall(text)), default=0)


def _highest_power(text: str) -> int:
    """The highest power of a letter or group."""
    return max((int(digits[:9]) for digits in _POWER.findall(text)), default=0)


def _nesting(text: str) -> int:
    """The most brackets of any kind that are open at once."""
    depth = deepest = 0
    for char in text:
        if char in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")}]":
            depth -= 1
    return deepest


def _too_high(match: re.Match[str]) -> bool:
    """Whether `a^b^c…` has more than `MAX_POWER_DIGITS` digits; e and pi count as 3."""
    terms = _TERMS.findall(match.group())
    base, *exponents = (int(term[-20:]) if term[0].isdigit() else 3 for term in terms)
    if base <= 1:
        return False
    exponent = 1
    for power in reversed(exponents):
        if exponent > 32 and power > 1:
            return True
        exponent = min(power**exponent, 10**24)
    return exponent * len(terms[0]) > MAX_POWER_DIGITS
