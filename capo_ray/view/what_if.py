"""The credit of a group by any method, from the evidence on its line: what `capo-ray credit` says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from capo_ray.config.base import RuleError
from capo_ray.config.credit import CREDIT_METHODS
from capo_ray.credit import EvidenceError
from capo_ray.evidence import FieldError
from capo_ray.evidence.offline import BadSetting, build_config, credit_of_line


def methods(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own method and all that there are."""
    return {"own": _section(settings, "credit").get("method", ""), "all": list(CREDIT_METHODS)}


def credit(line: str, method: str, overrides: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The group's credit and its audit; `{"refused": sentence}` where the line lacks what the method reads.

    The run's own method has the run's settings, any other its defaults; `overrides` (credit.key=value) change both.
    """
    if method not in CREDIT_METHODS:
        return {"refused": f"expected a credit method ({', '.join(CREDIT_METHODS)}), got {method!r}"}
    own = _section(settings, "credit")
    base = {key: value for key, value in own.items() if key != "method"} if own.get("method") == method else {}
    try:
        config = build_config(method, overrides, base)
        return credit_of_line(line, config, progress=_progress(line, settings))
    except (BadSetting, FieldError, EvidenceError, RuleError) as error:
        return {"refused": str(error)}


def _progress(line: str, settings: Mapping[str, Any]) -> float:
    """The share of the run that was done when the group was credited, as far as the line tells."""
    try:
        update = int(json.loads(line)["update"])
        return min(1.0, max(0.0, (update - 1) / int(_section(settings, "run")["num_updates"])))
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0.0


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, Mapping) else {}
