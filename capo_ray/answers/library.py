r"""math-verify, made ready once per process: no `eval` of numbers, nothing imported in the middle of a check.

latex2sympy2 turns each number token into a sympy number through `sympify`, which is `eval`, and sympy imports modules
and generates code on first use. `prepare` replaces the first by the two constructors that it would end in, and runs
the rest ahead, so that an audit hook sees nothing during a check.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

# one pair for each kind of answer, so that what sympy loads on first use is loaded
SAMPLE_PAIRS = (
    (r"\frac{1}{2}+x", "x+0.5"),
    ("(1,2)", "1,2"),
    ("x=5", "x=4"),
    (r"\{1,2\}", r"\{1,3\}"),
    (r"\sqrt{8}", "2.8"),
    ("[1,2)", r"(-\infty,3]"),
    ("3+2i", "3-2i"),
    ("x<5", "5>x"),
    ("2^{10}", "5!"),
    (r"\text{cat}", "x"),
    ("52_8", "52"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ("y=2x+3", "y=3+2x"),
    (r"(0,9)\cup(9,36)", "(0,36)"),
    (r"1\pm\sqrt{19}", "1,2"),
    (r"\cot x", r"\frac{1}{\tan x}"),
    (r"\binom{5}{2}", "1"),
    (r"\sin(2x)", r"2\sin x\cos x"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\log_2 8", "e^{2}"),
    ("|x-1|", r"\pi r^2"),
    (r"\sum_{k=1}^{3}k", "6"),
    (r"\int_0^1 x dx", "0.5"),
    (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
    (r"\lfloor 2.5\rfloor", "x^2-1=0"),
    (r"x\in[1,2]", "[1,2]"),
    ("a+b+c", "a+c+b+0.5"),
    ("2 \\text{ or } 3", "2,3"),
    ("1e5x", "0.1y"),
    (r"[\frac{\pi^2}{8},\frac{5\pi^2}{4}]", r"(-\sqrt{3},\sqrt{3})"),
    (r"70\sqrt{2}", "(3,4]"),
    (r"(-\infty,2)\cup(3,\infty)", r"\frac{7}{2}"),
    (r"\left(\frac{3}{5},\frac{8}{3}\right]", r"(5,\infty)"),
    (r"x\in[-2,7]", "x\\in[-2,8]"),
    ("(15,-29)", r"(3,\frac{\pi}{2})"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{1,-2\}"),
    ("4210_{5}", "4210_5"),
    (r"15\text{ cm}^2", r"15\mbox{ cm}^3"),
    ("5x-7y+11z+4=0", "5x-7y+11z=4"),
    (r"\begin{pmatrix}1/5\\-18/5\end{pmatrix}", r"\begin{pmatrix}-1&0\\0&-1\end{pmatrix}"),
)
MAX_GENERATORS = 12


def prepare(equal: Callable[[str, str], bool]) -> None:
    """Patch number reading, then run `equal` over the sample pairs."""
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time-outs are off
    import sympy.integrals.manualintegrate
    import sympy.physics.units  # noqa: F401  loaded in the middle of some integrals otherwise
    from latex2sympy2_extended import latex2sympy2
    from sympy.polys.monomials import MonomialOps

    latex2sympy2._Latex2Sympy.parse_number = lambda self, text: _number(text.replace(",", ""))
    latex2sympy2.convert_number = _convert_number
    for count in range(1, MAX_GENERATORS + 1):
        operations = MonomialOps(count)
        for build in ("mul", "pow", "mulpow", "ldiv", "div", "lcm", "gcd"):
            getattr(operations, build)()
    for a, b in SAMPLE_PAIRS:
        equal(a, b)
        equal(a, f"{b}+1")


def _number(text: str) -> Any:
    """The sympy number of a number token: what `sympy.Number(text)` gives, without its `eval`."""
    import sympy

    return sympy.Integer(int(text)) if text.isascii() and text.isdigit() else sympy.Float(text)


def _convert_number(text: str) -> Any:
    """latex2sympy2's own function of this name, without its `eval`: `0,25` is a float, other commas are thousands."""
    if "," in text and text.startswith("0"):
        text = text.replace(",", ".")
    return _number(text.replace(",", "").replace(" ", "").lstrip("0") or "0")
