"""The grammar of a verdict, for constrained decoding: reasoning stays free, only the verdict is held to its form."""

from __future__ import annotations

_FREE = r"(.|\n)*"


def verdict_regex(num_steps: int, rubric: str) -> str:
    """A regular expression of whole answers about `num_steps` steps, in the subset that engines compile.

    Free text before the verdict; in the `paper` rubric, whose verdict comes first, also between verdict and list. Only
    indices of steps that exist can be written.
    """
    index = "|".join(str(i) for i in range(num_steps))
    some = rf"({index})(, ?({index}))*" if num_steps else ""
    wrong = rf"<incorrect_steps>({some})?</incorrect_steps>"
    if rubric == "paper":
        return rf"{_FREE}Judgement: (Yes\n<incorrect_steps></incorrect_steps>|No\n{_FREE}{wrong})"
    return rf"{_FREE}Judgement: (Yes|No)\n{wrong}"
