r"""A numeric witness that two parsed answers differ, which spares math-verify its symbolic proof of it.

math-verify calls `simplify` on every unequal pair: most of its time, and it errs: without this
`\frac{1}{3\cdot2^{2006}}` equals `\frac{2^{2005}+1}{3\cdot2^{2006}}`. Two expressions that differ by more than a
thousandth at one point cannot be equal by any of its rules, so the proof is not needed. Only differences are ever
concluded here, never equality.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

GAP = 1e-3
MAX_ELEMENTS = 16
PLACES = (0.7345, 1.3718)
INFINITE = 1e300
TINY, TINY_RATIO, FEW_BITS = 1e-3, 1e-4, 16
ROUNDED = 5e-7


def refuted(gold: Any, pred: Any) -> bool:
    """Whether a value of one parsed answer has no counterpart in the other, in sets and tuples element by element."""
    from sympy import Eq

    if isinstance(gold, Eq) and isinstance(pred, Eq):
        return _other_equation(gold, pred)
    first, second = _as_values(gold, pred)
    if first is None or second is None:
        return False
    return _has_loner(first, second) or _has_loner(second, first)


def numbers_equal(gold: Any, pred: Any) -> bool | None:
    """What two constants' values say where math-verify's rounding to six decimals errs; None for all else.

    It calls `1/2^{99}` and `1/2^{98}` equal: below a thousandth they must agree by ratio. And it compares values only
    where one side is a bare number, so that `14.0-1.0i` is not `14-i` to it: any float inside makes both rounded.
    """
    from sympy import Expr, Float

    if not all(isinstance(side, Expr) and side.is_number for side in (gold, pred)):
        return None
    try:
        x, y = gold.evalf(20), pred.evalf(20)
        if not all(part.is_Float or part.is_Integer for side in (x, y) for part in side.as_real_imag()):
            return None
        if any(part.is_Float and part._prec < FEW_BITS for side in (x, y) for part in side.as_real_imag()):
            return None  # noise around a zero that was not recognised
        largest = max(abs(x), abs(y))
        if largest < TINY and abs(x - y) > TINY_RATIO * largest:
            return False
        if (gold.has(Float) or pred.has(Float)) and abs(x - y) < ROUNDED and largest >= TINY:
            return True
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError, RecursionError):
        pass
    return None


def _other_equation(gold: Any, pred: Any) -> bool:
    """Whether two equations of the same single letter are not multiples of each other.

    math-verify calls those equal whose real solutions are none (`x^2+1=0`, `x^4+1=0`), and no others: it compares the
    solutions of several letters only. A house rule, since an equation without solutions is not any other one.
    """
    from sympy import Expr

    if gold.free_symbols != pred.free_symbols:
        return True  # it solves for derivatives as for letters, and finds no difference
    if len(gold.free_symbols) != 1:
        return False
    if not all(isinstance(side, Expr) for side in (*gold.args, *pred.args)):
        return False
    (letter,) = gold.free_symbols
    values = []
    for equation in (gold, pred):
        for place in PLACES:
            value = _value(equation.lhs.subs(letter, place) - equation.rhs.subs(letter, place))
            if value is None or value == 0:
                return False
            values.append(value)
    return _apart(values[0] * values[3], values[1] * values[2])


def _as_values(gold: Any, pred: Any) -> tuple[tuple[complex, ...] | None, tuple[complex, ...] | None]:
    """Both answers' values, after dropping `x =` where the library drops it: when only one of them is an equation."""
    from sympy import Eq, MatrixBase

    if isinstance(gold, MatrixBase) and isinstance(pred, MatrixBase) and gold.shape == pred.shape:
        return _numbers(tuple(gold.flat())), _numbers(tuple(pred.flat()))
    if isinstance(gold, MatrixBase) or isinstance(pred, MatrixBase):
        return None, None
    if isinstance(gold, Eq):
        if not gold.lhs.is_Symbol:
            return None, None
        gold = gold.rhs
    elif isinstance(pred, Eq):
        pred = pred.rhs
    return _values(gold), _values(pred)


@lru_cache(maxsize=512)
def _values(parsed: Any) -> tuple[complex, ...] | None:
    """The numbers a parsed answer holds, its symbols replaced by fixed ones; None where it is of another kind."""
    from sympy import Expr, Interval, Tuple
    from sympy import FiniteSet as Finite

    if isinstance(parsed, Interval):
        elements: tuple[Any, ...] = (parsed.start, parsed.end)
    elif isinstance(parsed, (Finite, Tuple)):
        elements = tuple(parsed.args)
    elif isinstance(parsed, Expr):
        elements = (parsed,)
    else:
        return None
    return _numbers(elements)


def _numbers(elements: tuple[Any, ...]) -> tuple[complex, ...] | None:
    """The value of each element, or None where one of them has none."""
    if not 0 < len(elements) <= MAX_ELEMENTS:
        return None
    values = [_value(element) for element in elements]
    return None if None in values else tuple(value for value in values if value is not None)


def _value(element: Any) -> complex | None:
    """One expression's value; None for a bare symbol (the library compares its name) and for what may not end."""
    from sympy import Derivative, Expr, Integral, Limit, Product, Sum, oo

    if not isinstance(element, Expr) or element.is_Symbol:
        return None
    if element in (oo, -oo):
        return complex(INFINITE if element == oo else -INFINITE)
    if element.has(Sum, Product, Integral, Limit, Derivative):
        return None
    try:
        value = complex(element.evalf(15, subs={symbol: _stand_in(str(symbol)) for symbol in element.free_symbols}))
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError, RecursionError):
        return None  # no number comes out: the library decides
    return value if abs(value) < INFINITE else None  # also None for nan


def _stand_in(name: str) -> Any:
    """A fixed real number between 0.5 and 2.5 for a symbol of that name."""
    from sympy import Float

    fraction = int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48
    return Float(0.5 + 2 * fraction, 15)


def _has_loner(values: tuple[complex, ...], others: tuple[complex, ...]) -> bool:
    return any(all(_apart(x, y) for y in others) for x in values)


def _apart(x: complex, y: complex) -> bool:
    """Whether two values are too far from each other for any rounding."""
    return abs(x - y) > GAP * (1 + max(abs(x), abs(y)))
