"""A run, or several side by side, as one HTML file: the same pages with their figures inside, asking no server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from capo_ray.runs.reading import Head, Run
from capo_ray.view import figures, what_if
from capo_ray.view.document import SCRIPTS, build_document, read_asset

MAX_NUMBERS = 2_000_000
"""Of tokens' credit, over all groups and methods: some 20 MB of file."""

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def build_report(runs: Sequence[Run], num_groups: int) -> str:
    """The file's text, with `num_groups` groups of each run: the newest, and those that critics disagree on."""
    shown = "".join(map(read_asset, SCRIPTS))
    names = sorted({*figures.MADE, *re.findall(r'"([a-z_0-9]+/[a-z_0-9]+)"', shown)})
    content = [_content(run, names, num_groups) for run in runs]
    lines = [figures.run_line(run, number) for number, run in enumerate(runs)]
    return build_document(embedded={"runs": lines, "content": content}, policy=POLICY)


def _content(run: Run, names: Sequence[str], num_groups: int) -> dict[str, Any]:
    heads = _chosen(run, num_groups)
    settings, known = run.settings, what_if.methods(run.settings)
    order = [known["own"], *(name for name in known["all"] if name != known["own"])]
    groups: dict[str, Any] = {}
    credits: dict[str, Any] = {}
    left = MAX_NUMBERS
    for head in heads:
        line = run.group_text(head.index)
        groups[str(head.index)] = run.group(head.index)
        told: dict[str, Any] = {}
        for method in order:
            if left <= 0:
                break
            found = what_if.credit(line, method, (), settings)
            left -= sum(len(response["advantages"]) for response in found.get("responses", ()))
            told[method] = found
        credits[str(head.index)] = told
    critic = figures.critic_page(run)
    for part in ("lenient", "strict", "split"):
        critic[part] = [one for one in critic[part] if str(one["index"]) in groups]
    for kind in critic["kinds"]:
        if str(kind["example"]["group"]) not in groups:
            del kind["example"]
    return {
        "series": figures.series(run, names),
        "heads": figures.group_list(heads, 0, len(heads))["groups"],
        "groups": groups,
        "credits": credits,
        "methods": known,
        "critic": critic,
        "flow": figures.flow_page(run, None),
    }


def _chosen(run: Run, count: int) -> list[Head]:
    """A third of them the newest, a third those with split votes, a third those where critic and verifier part."""
    chosen: dict[int, Head] = {}
    for sort, share in (("disagreement", count // 3), ("gap", 2 * (count // 3)), ("update", count)):
        for head in figures.choose(run, sort=sort):
            if len(chosen) >= share:
                break
            chosen.setdefault(head.index, head)
    return sorted(chosen.values(), key=lambda head: (-head.facts["update"], head.index))
