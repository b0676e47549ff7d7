"""The sources of a run: made from what its credit method asks for, and asked side by side, group by group."""

from __future__ import annotations

import asyncio
import pkgutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_

from capo_ray.config import TrainConfig
from capo_ray.config.credit import KINDS, CreditBase, Entropies, Request
from capo_ray.evidence.lines import ResponseLine
from capo_ray.evidence.source import Doors, EvidenceSource
from capo_ray.protocols import RunFailed
from capo_ray.types import Evidence, Judged, Problem


def source_of(kind: type[Request]) -> type[EvidenceSource]:
    """The class that gathers a kind of evidence, as the request names it."""
    try:
        found = pkgutil.resolve_name(kind.source)
    except (ImportError, AttributeError, ValueError) as error:
        raise RunFailed(
            f"{kind.__module__}.{kind.__name__}.source must be package.module:Class of an EvidenceSource (got "
            f"{kind.source!r}: {error})"
        ) from error
    if not (isinstance(found, type) and issubclass(found, EvidenceSource)):
        raise RunFailed(f"{kind.source} must be a subclass of capo_ray.evidence.EvidenceSource (got {found!r})")
    return found


def _requests(config: TrainConfig) -> tuple[Request, ...]:
    """What the method asks for, and what its steps are cut by."""
    asked = config.credit.evidence()
    return asked if config.credit.asked(Entropies) or not config.reads_entropies else (*asked, Entropies())


def build_sources(doors: Doors) -> tuple[EvidenceSource, ...]:
    """One for each kind of evidence that the run gathers."""
    return tuple(source_of(type(asked))(asked, doors) for asked in _requests(doors.config))


def deadline_s(config: TrainConfig) -> float:
    """The seconds within which a group's evidence is gathered where every source keeps its own deadline."""
    return sum(source_of(type(asked)).deadline_s(config) for asked in _requests(config))


async def gather(
    sources: Sequence[EvidenceSource], problem: Problem, members: Sequence[Judged], progress: float
) -> tuple[list[Judged], dict[str, float]]:
    """The members with what all sources say of them, invalid ones left bare; and the seconds of each stage."""
    valid = [m for m in members if m.verdict.valid]

    async def ask(source: EvidenceSource) -> tuple[Sequence[Evidence] | None, float]:
        started = time.monotonic()
        found = await source.gather(problem, valid, progress) if valid else None
        return found, time.monotonic() - started

    answers = await asyncio.gather(*(ask(source) for source in sources))
    pairs = [(source, found, s) for source, (found, s) in zip(sources, answers, strict=True) if found is not None]
    rows = [found for _, found, _ in pairs]
    for source, found, _ in pairs:
        if len(found) != len(valid) or not all(isinstance(one, Evidence) for one in found):
            got = f"{len(found)} of {', '.join(sorted({type(one).__name__ for one in found})) or 'nothing'}"
            raise RunFailed(
                f"{type(source).__name__}.gather must return Evidence of each of {len(valid)} responses (got {got})"
            )
    whole = {id(m): reduce(or_, told, m.evidence) for m, *told in zip(valid, *rows, strict=True)}
    judged = [replace(m, evidence=whole.get(id(m), m.evidence)) for m in members]
    for source in sources:
        source.note(judged)
    return judged, {source.stage: seconds for source, _, seconds in pairs if source.stage}


def read_evidence(line: ResponseLine, credit: CreditBase) -> Evidence:
    """All evidence on a line of `capo-ray credit`, each kind by its source; raises `FieldError` where one lacks."""
    own = {type(asked): asked for asked in credit.evidence()}
    kinds = dict.fromkeys((*KINDS, *own))
    return reduce(or_, (source_of(kind).read(line, own.get(kind)) for kind in kinds), Evidence())
