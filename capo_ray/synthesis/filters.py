"""The filters of synthesis, in order; the first that refuses a candidate is the one that counts it.

    format         a question, a solution, and an answer that is a plain number
    process        the calculator finds no false claim in the solution, whose last mark, if any, is the answer
    agreement      solved again from the question alone, the answer is the same
    band           the policy to be trained solves it now and then
    novelty        no problem like it was kept, and it is none of the templates
    contamination  it shares no 13 words in a row with a held-out problem, numbers counting as alike

After SHARP (arXiv 2505.14147, read at second hand). Ours: the calculator, the 13 words, and that numbers count as
alike, so that a held-out problem with other numbers is caught as well.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from capo_ray.answers import fast_equal
from capo_ray.critics import calculate, parse_critique
from capo_ray.synthesis.candidates import Candidate
from capo_ray.synthesis.programs import MARK

FILTERS = ("format", "process", "agreement", "band", "novelty", "contamination")
GRAM = 13
"""Words in a row that two problems may not share; a shorter problem may not be the whole of another."""
_WORD = re.compile(r"[a-z]+|\d[\d,.]*")
_PLAIN = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def words_of(text: str) -> list[str]:
    """The words of a text in small letters; a number, or several in a row, is one #: `1,200` may be spelt `1 ,200`."""
    found = _WORD.findall(text.lower().replace("'", "").replace("’", ""))
    words = ["#" if word[0].isdigit() else word for word in found]
    return [word for i, word in enumerate(words) if word != "#" or i == 0 or words[i - 1] != "#"]


def grams(text: str) -> set[str]:
    """Every 13 words in a row; all words of a shorter text."""
    words = words_of(text)
    if len(words) < GRAM:
        return {" ".join(words)}
    return {" ".join(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}


def digest(text: str) -> str:
    """The same for texts that differ in case, spaces and punctuation alone."""
    return hashlib.sha256(" ".join(_WORD.findall(text.lower())).encode()).hexdigest()


@dataclass
class Held:
    """The problems that nobody may see: what they share with others is a leak."""

    grams: set[str] = field(default_factory=set)
    num_problems: int = 0

    def add(self, questions: Iterable[str]) -> None:
        """Hold these questions, too."""
        for question in questions:
            self.grams |= grams(question)
            self.num_problems += 1

    def leaks(self, question: str) -> bool:
        """Whether a question shares 13 words in a row with any of them, or is one of the short ones."""
        return not self.grams.isdisjoint(grams(question))


@dataclass
class Filters:
    """All filters and their counts.

    `agreement` and `pass_rate` are shares of fresh solutions that come to the stated answer, by whoever proposed the
    candidate and by the policy to be trained; where one is None its filter is not asked.
    """

    held: Held = field(default_factory=Held)
    agreement: Callable[[Candidate], float] | None = None
    pass_rate: Callable[[Candidate], float] | None = None
    min_agreement: float = 0.5
    low: float = 0.1
    high: float = 0.9

    def __post_init__(self) -> None:
        self.dropped: Counter[str] = Counter(dict.fromkeys(FILTERS, 0))
        self.num_seen = self.num_kept = 0
        self._known: set[str] = set()

    def know(self, questions: Iterable[str]) -> None:
        """These questions exist already."""
        self._known |= {digest(question) for question in questions}

    def admit(self, candidate: Candidate) -> str:
        """The filter that refuses a candidate, which is counted; empty where it is kept."""
        refused = self.refusal(candidate)
        self.count(candidate, refused)
        return refused

    def refusal(self, candidate: Candidate) -> str:
        """As `admit`, without the count: nothing is remembered of the candidate."""
        return next((name for name in FILTERS if not getattr(self, f"_{name}")(candidate)), "")

    def count(self, candidate: Candidate, refused: str) -> None:
        """Put a decision into the account, one of now or of before an interruption."""
        self.num_seen += 1
        if refused:
            self.dropped[refused] += 1
        else:
            self.num_kept += 1
            self._known.add(digest(candidate.question))

    def counts(self) -> dict[str, int]:
        """Candidates seen, dropped at each filter in order, and kept."""
        return {"candidates": self.num_seen, **{name: self.dropped[name] for name in FILTERS}, "kept": self.num_kept}

    @property
    def not_asked(self) -> tuple[str, ...]:
        """The filters that nobody could answer."""
        asked = {"agreement": self.agreement, "band": self.pass_rate}
        return tuple(name for name, who in asked.items() if who is None)

    def _format(self, candidate: Candidate) -> bool:
        texts = (candidate.question, candidate.solution)
        return all(text.strip() for text in texts) and bool(_PLAIN.fullmatch(candidate.answer))

    def _process(self, candidate: Candidate) -> bool:
        lines = candidate.solution.splitlines()
        flagged, _, _ = parse_critique(calculate(lines), len(lines))
        marks = MARK.findall(candidate.solution)
        return not flagged and (not marks or bool(fast_equal(candidate.answer, marks[-1][1])))

    def _agreement(self, candidate: Candidate) -> bool:
        return self.agreement is None or self.agreement(candidate) >= self.min_agreement

    def _band(self, candidate: Candidate) -> bool:
        return self.pass_rate is None or self.low <= self.pass_rate(candidate) <= self.high

    def _novelty(self, candidate: Candidate) -> bool:
        return digest(candidate.question) not in self._known

    def _contamination(self, candidate: Candidate) -> bool:
        return not self.held.leaks(candidate.question)


def derived_agreement(candidate: Candidate) -> float:
    """1 where the program of a candidate comes from the question alone to the stated answer, else 0."""
    return float(candidate.derived is not None and bool(fast_equal(candidate.derived, candidate.answer)))


def plain_solution(solution: str, answer: str) -> str:
    """A worked solution without its marks, a blank line between lines, the answer in a box at the end."""
    lines: Sequence[str] = [MARK.sub("", line).strip() for line in solution.splitlines()]
    return "\n\n".join([*(line for line in lines if line), f"\\boxed{{{answer}}}"])
