"""A small puzzle: push the box onto the goal. A turn is one move; what follows it is the board.

    #######        @ the policy   + on the goal        say  r
    #.@$.*#        $ the box      * on the goal        read the board again, as above with the move made
    #######        . floor, o goal, # wall

A move into a wall, or of the box into one, is illegal and changes nothing. The state's key is the board itself.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capo_ray.environments.reply import Reply, Task
from capo_ray.types import Problem

MOVES = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
HELD_OUT_FRAC = 0.1
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Board:
    """A square of `size` with walls around it; places are (row, column), from 0."""

    size: int
    player: Place
    box: Place
    goal: Place

    @property
    def text(self) -> str:
        """One line a row, walls left out."""
        return "\n".join("".join(self._mark((r, c)) for c in range(self.size)) for r in range(self.size))

    def _mark(self, place: Place) -> str:
        on_goal = place == self.goal
        if place == self.player:
            return "+" if on_goal else "@"
        if place == self.box:
            return "*" if on_goal else "$"
        return "o" if on_goal else "."

    def move(self, name: str) -> Board | None:
        """The board after a move; None where it is illegal."""
        if name not in MOVES:
            return None
        player = self._step(self.player, name)
        box = self._step(player, name) if player == self.box else self.box
        if not (self._inside(player) and self._inside(box)):
            return None
        return Board(self.size, player, box, self.goal)

    @property
    def solved(self) -> bool:
        return self.box == self.goal

    def _step(self, place: Place, name: str) -> Place:
        down, right = MOVES[name]
        return place[0] + down, place[1] + right

    def _inside(self, place: Place) -> bool:
        return all(0 <= x < self.size for x in place)


def parse(text: str) -> Board:
    """The board that a text shows; raises ValueError on any other text."""
    rows = text.strip().split("\n")
    found = {mark: (r, c) for r, row in enumerate(rows) for c, mark in enumerate(row) if mark != "."}
    player, box = found.get("@") or found.get("+"), found.get("$") or found.get("*")
    goal = found.get("o") or found.get("+") or found.get("*")
    if not (player and box and goal) or any(len(row) != len(rows) for row in rows):
        raise ValueError(f"expected a square board with a player, a box and a goal, got {text!r}")
    return Board(len(rows), player, box, goal)


def reply(task: Task, said: Sequence[str]) -> Reply:
    """The board after all moves; only the last turn's can be illegal news, those before have been told."""
    board, legal = parse(task.question), True
    for turn in said:
        after = board.move(turn.strip())
        board, legal = after or board, after is not None
    text = board.text
    if board.solved:
        return Reply(text, text, done=True, outcome=1, legal=legal)
    return Reply(text, text, legal=legal)


def shortest(board: Board) -> str | None:
    """The moves of a shortest solution, the first in the order u, d, l, r; None where there is none."""
    ways, waiting = {board: ""}, deque([board])
    while waiting:
        at = waiting.popleft()
        if at.solved:
            return ways[at]
        for name in MOVES:
            after = at.move(name)
            if after is not None and after not in ways:
                ways[after] = ways[at] + name
                waiting.append(after)
    return None


def make_problem(seed: int, index: int, split: str, settings: Mapping[str, Any]) -> Problem:
    """Problem number `index` of a seed, always the same; its solution is a shortest one, a move a line."""
    size, fewest, most = (int(settings[name]) for name in ("size", "min_moves", "most_moves"))
    rng = random.Random(f"grid/{split}/{size}/{fewest}/{most}/{seed}/{index}")
    places = [(r, c) for r in range(size) for c in range(size)]
    while True:
        board = Board(size, *rng.sample(places, 3))
        way = shortest(board)
        side = "held_out" if _bucket(board.text) < HELD_OUT_FRAC else "train"
        if way is not None and fewest <= len(way) <= most and side == split:
            return Problem(f"grid-{split}-{seed}-{index}", board.text, "", "\n".join(way), "grid")


def _bucket(text: str) -> float:
    """In [0, 1): on which side a board stands for good."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
