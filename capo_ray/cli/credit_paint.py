"""Paints a group's credit: each response step by step, each token on green (raised) or red (lowered)."""

from __future__ import annotations

from rich.console import Console
from rich.style import Style
from rich.text import Text

from capo_ray.arrays import Runs
from capo_ray.steps.visible import visible
from capo_ray.types import Group, GroupCredit, Judged

FAINTEST = 0.15  # how much of the colour the smallest non-zero advantage gets


class Canvas(Console):
    """A console that lets the command say that its reader is gone; rich would end it as if lines had been refused."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def paint_group(console: Console, name: str, group: Group, credit: GroupCredit, audit: dict[str, float]) -> None:
    """Print one group; numbers stand beside the colours, so that it reads without them too."""
    console.print(Text(f"group {visible(name)}  {visible(group.problem.prompt)}", style="bold"), soft_wrap=True)
    strongest = max((abs(a) for row in credit.advantages for a in row.values.tolist()), default=0.0)
    for i, member in enumerate(group.members):
        words = {None: "invalid", 1: "right", 0: "wrong"}
        head = f"  response {i}  {words[member.verdict.reward]}  {credit.valid_critiques[i]} valid critiques"
        console.print(Text(head, style="cyan"))
        row = Runs.of(member.trajectory.response.over_tokens(credit.advantages[i].expand()))
        for k in range(len(member.steps)):
            step = _paint_step(member, k, row, credit.step_weights[i][k], strongest, console.color_system == "standard")
            console.print(step, soft_wrap=True)
    figures = "  ".join(f"{key.removeprefix('credit/')}={value:.3f}" for key, value in audit.items())
    console.print(Text(f"  audit  {figures}\n", style="dim"), soft_wrap=True)


def _paint_step(member: Judged, k: int, advantages: Runs, weight: float, strongest: float, few_colours: bool) -> Text:
    start, end = member.steps[k]
    low, high = min(advantages[start:end]), max(advantages[start:end])
    credit = f"{low:+.3f}" if low == high else f"{low:+.3f}…{high:+.3f}"
    line = Text(f"    step {k}  wrong {weight:.2f}  credit {credit}  ", style="dim")
    bounds = (0, *member.trajectory.response.char_ends.tolist())
    for t in range(start, end):
        piece = visible(member.trajectory.response.text[bounds[t] : bounds[t + 1]])
        line.append(piece, _style(advantages[t], strongest, few_colours))
    return line


def _style(advantage: float, strongest: float, few_colours: bool) -> Style:
    """White on green or red, stronger with size; of 16 colours (a terminal in tmux or screen) the weak half is letters
    alone, and what has no credit stays as it is, since the nearest of 16 to a faint green or red is grey."""
    if not few_colours:
        return Style(color="white", bgcolor=_colour(advantage, strongest), dim=False)
    if not strongest or not advantage:
        return Style(dim=False)
    name = "green" if advantage > 0 else "red"
    if abs(advantage) < strongest / 2:
        return Style(color=name, dim=False)
    return Style(color="black" if advantage > 0 else "white", bgcolor=name, dim=False)


def _colour(advantage: float, strongest: float) -> str:
    """A background: green for credit, red for blame, stronger with size."""
    if not strongest or not advantage:
        return "#303030"
    share = FAINTEST + (1 - FAINTEST) * abs(advantage) / strongest
    level = int(48 + share * 122)
    return f"#00{level:02x}28" if advantage > 0 else f"#{level:02x}1414"
