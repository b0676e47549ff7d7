"""A package that adds a method, a segmenter, a verifier and an environment, as pip would put it on sys.path."""

from __future__ import annotations

from pathlib import Path

MODULE = r'''
import re
from typing import ClassVar, Literal
from capo_ray.config.credit.critiques import CapoConfig
from capo_ray.config.environment import PlayedBase
from capo_ray.config.steps import StepsBase
from capo_ray.environments import Reply
from capo_ray.steps import text_ends

class OwnConfig(CapoConfig):
    """CAPO under another name."""
    method: Literal["own"] = "own"

class OwnLines(StepsBase):
    """So many lines are a step."""
    rule: ClassVar[str] = "own_parts:lines"
    segmenter: Literal["own_lines"] = "own_lines"
    num_lines: int = 1

def lines(response, steps):
    ends = [match.end() for match in re.finditer(r"\n\s*", response.text)]
    return text_ends(response, ends[steps.num_lines - 1 :: steps.num_lines], steps)

class OwnEcho(PlayedBase):
    """Says what was said, in capitals."""
    rule: ClassVar[str] = "own_parts:echo"
    kind: Literal["own_echo"] = "own_echo"
    ends: str = "stop"

def echo(task, said):
    last = said[-1].strip() if said else ""
    return Reply(last.upper(), done=last == task.settings["ends"])

def same_end(answer, response):
    return bool(re.search(rf"(?<!\d){re.escape(answer)}\D*$", response))
'''
ENTRY_POINTS = {
    "capo_ray.credit_methods": ("own", "own_parts:OwnConfig"),
    "capo_ray.segmenters": ("own_lines", "own_parts:OwnLines"),
    "capo_ray.environments": ("own_echo", "own_parts:OwnEcho"),
    "capo_ray.verifiers": ("own_end", "own_parts:same_end"),
}


def write_package(folder: Path) -> Path:
    """The folder, with the package and what tells of it."""
    info = folder / "own_parts-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    said = [f"[{group}]\n{name} = {value}\n" for group, (name, value) in ENTRY_POINTS.items()]
    (info / "entry_points.txt").write_text("".join(said))
    (folder / "own_parts.py").write_text(MODULE)
    return folder
