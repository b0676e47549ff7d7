r"""One spelling for one answer: the rules that make texts of the same value the same text, before anything is compared.

    unicode   `½`, `x²`, `√2`, `（1，2）`, `−`      ->  LaTeX and ASCII
    dress     `\bf 42`, `\left(`, `$…$`, `\dfrac`   ->  the bare formula, one command for each meaning
    code      `sqrt(2)`, `x**2`, `4.5e33`, `pi`      ->  LaTeX
    numbers   `1,234`, `5\,000`, `0.\overline{3}`    ->  `1234`, `5000`, `\frac{1}{3}`
    units     `10 cm^2`, `£30`, `28 percent`         ->  `10`, `30`, `28\%`
    lists     `1; 2`, `$1$, $2$`, `1 \text{ and } 2` ->  `1,2`

Each rule is a line of `_RULES` or a function; all are linear in the text, which is bounded.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

MAX_CHARS = 2048

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "\u2011": "-", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "±": r"\pm ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "°": r"^\circ ", "、": ",", "。": ".", "∠": r"\angle ", "ℝ": r"\mathbb{R}", "⟨": "(", "⟩": ")", "“": "", "”": "",
}  # fmt: skip
_TABLE = str.maketrans({**_SIGNS, **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}})
_HIGH = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_HIGHS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_ROOT = re.compile(r"√ ?(\([^()]{1,80}\)|[0-9.]+|[a-zA-Z])")

_FONTS = r"mathbf|boldsymbol|bm|textbf|textit|underline|mathit|bold|bf|rm|it|displaystyle|textstyle"
_UNIT_WORDS = (
    "mm cm dm km nm mi ft in yd kg mg lb lbs oz ml mL min mins hr hrs sec secs ms km/h km/hr m/s mph kmph rpm Hz kHz "
    "MHz eV keV MeV GeV kPa atm mol deg rad USD"
)
_KNOWN = "|".join(sorted(_UNIT_WORDS.split(), key=len, reverse=True))
_NO_UNIT = r"(?!(?:and|or|to|mod|if|for|where|when|with|plus|minus|times|over|is|are|not|percent|pct|sqrt|pi)\b)"
_POWER = r"(?:\^\{?-?[0-9]\}?)?"

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # dress
        (r"\\\\(?=(?:[dtc]?frac|sqrt|pi|text|cdot|times|left|right|circ)(?![a-z]))", r"\\"),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
        (r"\\(?:[lL]arge|LARGE|[hH]uge|small|normalsize|displaystyle|textstyle|limits|quad|qquad)(?![a-zA-Z])", " "),
        (r"\\color ?\{[a-zA-Z]{1,20}\}|\\textcolor ?\{[a-zA-Z]{1,20}\}", ""),
        (rf"\\(?:{_FONTS}) ?\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}", r"\1"),
        (rf"\\(?:{_FONTS})(?![a-zA-Z]) ?", ""),
        (r"\\begin\{(?:array|aligned)\}(?:\{[clr|]{1,9}\})?([^&\\]*(?:\\(?!\\|end\{)[^&\\]*)*)\\end\{\w+\}", r"\1"),
        (r"^\\(?:text|mbox|mathrm)\{[^{}]*(?:[aA]nswer|:)[^{}]*\}(?=.)", ""),
        (r"\\!\s*", ""),
        (r"(?<=[0-9])(?:\\[,;: ]|\{[,]\})\s?(?=[0-9]{3}(?![0-9]))", ""),
        (r"\{,\}", ","),
        (r"(?<!\\)\\[,;: ]|~|(?<!\\)\\$", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\dbinom(?![a-zA-Z])", r"\\binom"),
        (r"\{([^{}]{1,80})\\over(?![a-zA-Z]) ?([^{}]{1,80})\}", r"\\frac{\1}{\2}"),
        (r"\\(?:leq|leqslant|leqq)(?![a-zA-Z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant|geqq)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:varnothing|empty)(?![a-zA-Z])|\\\{ ?\\\}", r"\\emptyset "),
        (r"\\(?:mid|vert|lvert|rvert)(?![a-zA-Z])", "|"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        (r"\\(?:mathrm|text|mathit|rm) ?\{ ?([eid]) ?\}", r"\1"),
        (r"\\textcircled\{([1-9])\}", lambda m: chr(0x2460 + int(m.group(1)) - 1)),
        (r"\\text\{([①-⑳]+)\}", r"\1"),
        (r"(?<![A-Za-z\\])C_\{?([0-9a-z]{1,4})\}?\^\{?([0-9a-z]{1,4})\}?", r"\\binom{\1}{\2}"),
        (r"(?<=[0-9})])\\binom", r"\\cdot\\binom"),  # read as a mixed number, which adds
        (r"^(?:\\text\{ ?)?[aA]ll real numbers ?\}?\.?$|^(?:[a-z] ?\\in ?)?\\mathbb ?\{?R\}?$", r"(-\\infty,\\infty)"),
        (r" ?,? ?\\(?:text|mbox)\{,? ?for (?:all|every|any) \}.{0,60}$| for (?:all|every) .{0,40}$", ""),
        # code
        (r"(?<![\w\\])(?:np|math|sympy|sp)\.(?=[a-z])", ""),
        (r"\*\*", "^"),
        (r"(?<![A-Za-z\\])sqrt ?\(([^()]{1,80})\)", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])exp ?\(([^()]{1,80})\)", r"e^{\1}"),
        (r"\\exp ?\{", "e^{"),
        (r"(?<![A-Za-z\\])(arcsin|arccos|arctan|sin|cos|tan|log|ln)(?= ?\()", r"\\\1"),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![\w.])([0-9]+\.?[0-9]*)[eE]([+-]?)0*([0-9]{1,4})(?![\w.])", r"\1\\times10^{\2\3}"),
        (r"(?<=[0-9])\.(?=[-/+*) ]|$)", ""),
        (r"\+ ?- ?", "-"),
        (r"(?<![0-9.])([0-9]+)\.0+(?![0-9])", r"\1"),
        (r"\^\{\+([0-9])", r"^{\1"),
        (r"\^\{?(?:\\prime ?){1,3}\}?", lambda m: "'" * m.group().count("prime")),
        # units
        (r" ?(?:\\(?:text|mbox|mathrm) ?\{ ?(?:percent|pct|per cent)\.? ?\}|(?:percent|pct)\.?)$", r"\\%"),
        (r"^(-?)(?:\\?\$|[£€¥]|\\(?:pounds|euro|yen) ?|US\\?\$|USD |Rs\.? )(?=[-0-9.])", r"\1"),
        (r"(?<=[0-9]) ?(?:\\?\$|[£€¥])$", ""),
        # lists
        (r" ?\\(?:text|mbox|mathrm) ?\{ ?,? ?(?:and|or) ?\} ?|(?<=[\w})]) ?,? (?:and|or) (?=[-\w\\({])", ", "),
        (r"(, ?), ", r"\1"),
        (r"(?<=[0-9]) ?\\(?:text|mbox) ?\{ ?to ?\} ?(?=[0-9])", ":"),
        (r"(?<=[(,\[])\+(?=\\infty)", ""),
    )
)  # fmt: skip
_WRAPPED = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ('"', '"'), ("{", "}"))
_DOLLARS = re.compile(r"\\\$ ?(?=[-0-9.])|(?<=[0-9]) ?\\\$")
_BETWEEN_MARKS = re.compile(r"\$ ?([,;]) ?\$")
_OTHER_MARKS = re.compile(r"\\?(?:(?<!^)\$(?!$)|^\$(?![0-9.-])|(?<![0-9])\$$)")
_WORD_LIST = re.compile(r"\\text\{([^{}\\]*,[^{}\\]*)\}")
_UNITS = re.compile(
    rf"(?<=[0-9}})]) ?(?:\\(?:text|mbox|mathrm|textrm|operatorname) ?\{{[ ~]*{_NO_UNIT}[^{{}}\\0-9]*\}}"
    rf"|(?:{_KNOWN})(?![A-Za-z])|[\u4e00-\u9fff]{{1,4}})\.?{_POWER}$"
    rf"|(?<=[0-9])\^\{{?\\circ ?\}}?(?: ?[CF])?$"
    rf"|(?<=[0-9}})]) \(?{_NO_UNIT}[A-Za-z]{{3,}}(?: {_NO_UNIT}[A-Za-z]{{2,}}){{0,3}}\)?{_POWER}$"
)
_AFTER_PI = re.compile(
    r"(?<=\\pi)(?: ?\\(?:text|mbox|mathrm) ?\{[^{}\\0-9]*\}| (?:square |cubic )?units)" + _POWER + "$"
)
_WORDY = re.compile(r"\\(?:text|mbox)|(?<![\\A-Za-z])[A-Za-z]{3,}")
_REPEATING = re.compile(r"(?<![0-9.])([0-9]{0,15})\.([0-9]{0,15})\\overline ?\{([0-9]{1,15})\}")
_THOUSANDS = re.compile(r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,]|\.[0-9]*,)")
_SPACED_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_MIXED = re.compile(r"(-?[0-9]+) ([0-9]+)/([0-9]+)")
_CLOCK = re.compile(
    r"^([0-9]{1,2})(?::([0-9]{2}))?"
    r"(?: ?\\(?:text|mbox|mathrm) ?\{[ ~]*([aApP])\.? ?[mM]\.? ?\}"
    r"| ?([AP])\.?M\.?| ?([ap])\.m\.?|(?<=:[0-9]{2}) ?([ap])m)$"
)
_SCALED = re.compile(
    r"^(-?[0-9][0-9,]*(?:\.[0-9]+)?) ?(?:\\(?:text|mbox|mathrm) ?\{[ ~]*)?"
    r"(thousand|million|billion|trillion)s?\b(?: [a-z]+){0,3} ?\}?$"
)
_SPACES = re.compile(r"\s+")
_SPACE_AROUND = re.compile(r" ?([=+\-*/^_{}()\[\]|<>,:]) ?")
_AFTER_COMMAND = re.compile(r"(\\[a-zA-Z]+) (?![a-zA-Z])")


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """The text in the spelling that answers are compared in; the same value to a reader."""
    text = _SPACES.sub(" ", text).strip()
    if len(text) > MAX_CHARS:
        return text
    text = _unwrapped(_DOLLARS.sub("", _without_signs(text)))
    text = _OTHER_MARKS.sub("", _BETWEEN_MARKS.sub(r"\1 ", text))
    if listed := _WORD_LIST.fullmatch(text):
        text = listed.group(1)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _unwrapped(_SPACES.sub(" ", text).strip())
    text = _CLOCK.sub(_time_of_day, _SCALED.sub(r"\1\2", _REPEATING.sub(_fraction, text)))
    text = _without_units(text)
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    if mixed := _MIXED.fullmatch(text):
        text = f"{mixed.group(1)}\\frac{{{mixed.group(2)}}}{{{mixed.group(3)}}}"
    text = _SPACE_AROUND.sub(r"\1", _without_semicolons(_without_thousands(text)))
    return _AFTER_COMMAND.sub(r"\1", text).strip()


def _without_signs(text: str) -> str:
    """Unicode signs as LaTeX and ASCII."""
    if text.isascii():
        return text
    text = _ROOT.sub(lambda m: f"\\sqrt{{{m.group(1).strip('()')}}}", text.translate(_TABLE))
    text = _HIGHS.sub(lambda m: f"^{{{m.group().translate(_HIGH)}}}", text)
    return _VULGAR.sub(lambda m: f"\\frac{{{unicodedata.normalize('NFKC', m.group()).replace('⁄', '}{')}}}", text)


def _unwrapped(text: str) -> str:
    """Without formula marks, bold, quotes or braces around the whole, and the full stop after it."""
    for opening, closing in _WRAPPED:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            inside = text[len(opening) : -len(closing)]
            if opening not in inside and closing not in inside and not (opening == "{" and "," in inside):
                text = inside.strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


def _without_units(text: str) -> str:
    """Without the unit at its end; a text of two amounts ("5 hours 30 minutes") keeps both of its own."""
    for _ in range(2):
        unit = _UNITS.search(text) or _AFTER_PI.search(text)
        if unit is None or not unit.start() or _WORDY.search(text[: unit.start()].replace("\\text{to}", "")):
            break
        text = text[: unit.start()].rstrip()
    return text


def _time_of_day(match: re.Match[str]) -> str:
    r"""`7 \text{ p.m.}` and `7:00 PM` as `7:00pm`: half of the day is no unit that may be left out on either side."""
    hour, minute, *halves = match.groups()
    return f"{hour}:{minute or '00'}{next(half for half in halves if half).lower()}m"


def _fraction(match: re.Match[str]) -> str:
    r"""`0.2\overline{3}` as `\frac{7}{30}`."""
    whole, fixed, repeated = match.groups()
    value = int(whole or 0) + Fraction(int(fixed or 0), 10 ** len(fixed))
    value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(fixed))
    return str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _without_semicolons(text: str) -> str:
    """`p=5,q=2; p=7,q=2` as a list of pairs, `1; 2` as one of numbers; braces that no command owns as a set."""
    if text.startswith("{") and text.endswith("}") and "," in text and "}" not in text[:-1]:
        text = f"\\{{{text[1:-1]}\\}}"
    if ";" not in text:
        return text
    parts = [part.strip() for part in text.split(";")]
    return ",".join(f"({part})" if "," in part and part[0] not in "([\\" else part for part in parts if part)


def _without_thousands(text: str) -> str:
    """Without commas that group digits: those outside of brackets, three digits and no blank after them."""
    if "," not in text:
        return text
    depth, spans = 0, []
    for index, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif depth == 0 and char == ",":
            spans.append(index)
    outside = frozenset(spans)

    def joined(match: re.Match[str]) -> str:
        return match.group().replace(",", "") if match.group().find(",") + match.start() in outside else match.group()

    return _THOUSANDS.sub(joined, text)
