"""The table of all configuration keys: `python -m scripts.pages.configuration > docs/configuration.md`."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from capo_ray.cli.compose import GROUPS, list_choices
from capo_ray.cli.schema import keys_of
from capo_ray.config import CREDIT_METHODS, FAMILIES, SEGMENTERS, TrainConfig
from capo_ray.config.evaluation import EvalConfig
from capo_ray.config.search import SEARCHES
from capo_ray.config.sft import SftConfig
from capo_ray.config.solve import SolveConfig

OF_SOLVE = ("run", "suite", "eval", "resume")
OF_EVAL = ("run", "suite", "eval", "data", "rollout", "resume")
HEAD = """# Configuration

<!-- Made from the configuration models by `make docs`; a test holds the two equal. -->

An override is `group=choice` (a file of `conf/`), `key=value` (one of the keys below, no `+` needed), or `resume=RUN`.
`model=` and `critic=` also take a model directory or hub name. Values follow Hydra's grammar; the value of a text key
is taken as written. Environment look-ups (`${…}`) are refused. A key that is unknown, or that would have no effect
in the composition, ends the command with a sentence. `capo-ray train --dry-run …` prints what results.
"""


def build_reference() -> str:
    """The whole of docs/configuration.md."""
    lines = [HEAD, "## Choices", "", "| group | choices |", "|---|---|"]
    lines += [
        f"| `{group}` | {', '.join(f'`{c}`' for c in list_choices(group))} |"
        for group in (*GROUPS, "eval", "suite")
        if list_choices(group)
    ]
    keys = {key: field for key, field in keys_of(TrainConfig).items() if key.partition(".")[0] not in FAMILIES}
    sections: dict[str, dict[str, FieldInfo]] = {}
    for key, field in keys.items():
        sections.setdefault(key.rpartition(".")[0].split(".")[0], {})[key] = field
    for name, rows in sections.items():
        lines += ["", f"## {name}" if name else "## top level", "", *_table(rows)]
        if name == "run":
            for method, model in CREDIT_METHODS.items():
                needs = ", ".join(sorted(name for asked in model(method=method).evidence() for name in asked.reads))
                lines += _one_kind("credit", method, model, needs or "the verdict alone")
            for segmenter, section in SEGMENTERS.items():
                lines += _one_kind("steps", segmenter, section, ", ".join(sorted(section.reads, reverse=True)))
    own = {key: field for key, field in keys_of(EvalConfig).items() if key.partition(".")[0] in OF_EVAL}
    words = "Beside these it reads `model.*`, `engine.*`, `verifier.*` and `cluster.*` as above."
    lines += ["", "## capo-ray eval", "", words, "", *_table(own)]
    own = {key: field for key, field in keys_of(SolveConfig).items() if key.partition(".")[0] in OF_SOLVE}
    words = "Beside these it reads `critic.*` and `steps.*` as a run and the rest as `capo-ray eval`."
    lines += ["", "## capo-ray solve", "", words, "", *_table(own)]
    for name, search in SEARCHES.items():
        doc = " ".join((search.__doc__ or "").split())
        lines += ["", f"## search={name}", "", doc, "", *_table(keys_of(search, "search."))]
    lines += ["", "## capo-ray sft", "", "The keys of this command alone.", "", *_table(keys_of(SftConfig))]
    return "\n".join(lines) + "\n"


def _one_kind(section: str, name: str, model: type[BaseModel], reads: str) -> list[str]:
    doc = " ".join((model.__doc__ or "").split())
    return ["", f"## {section}={name}", "", f"{doc} Reads: {reads}.", "", *_table(keys_of(model, f"{section}."))]


def _table(rows: dict[str, FieldInfo]) -> list[str]:
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, field in rows.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {_values(field)} | {_default(field)} | {meaning} |")
    return lines


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    return f"`{list(value) if isinstance(value, tuple) else value!r}`".replace("|", "\\|")


def _values(field: FieldInfo) -> str:
    """The type and range of a field in words."""
    return " ".join([_kind(field.annotation), *_range(field.metadata)])


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is dict:
        return "names with values"
    if get_origin(annotation) is not None:
        inner = [arg for arg in get_args(annotation) if arg is not Ellipsis]
        if hasattr(annotation, "__metadata__"):
            return " ".join([_kind(inner[0]), *_range(annotation.__metadata__)])
        return f"{getattr(get_origin(annotation), '__name__', 'one')} of {', '.join(_kind(arg) for arg in inner)}"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}.get(
        getattr(annotation, "__name__", ""), str(getattr(annotation, "__name__", annotation))
    )


def _range(constraints: Any) -> list[str]:
    words = []
    for item in constraints:
        if isinstance(item, FieldInfo):
            words += _range(item.metadata)
        for kind, attribute, sign in (
            (annotated_types.Ge, "ge", "≥"),
            (annotated_types.Gt, "gt", ">"),
            (annotated_types.Le, "le", "≤"),
            (annotated_types.Lt, "lt", "<"),
        ):
            if isinstance(item, kind):
                words.append(f"{sign} {getattr(item, attribute):g}")
    return words


if __name__ == "__main__":
    print(build_reference(), end="")
