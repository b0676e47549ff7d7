"""Which transport carries the weights, and what the dry run says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capo_ray.checkpoint.settings import write_settings
from capo_ray.cli import plan
from capo_ray.cli.compose import compose_train
from capo_ray.place.transport import choose_transport


@pytest.mark.parametrize("given", ["auto", "host"])
def test_the_dry_run_tells_what_carries_the_weights_and_why(given: str) -> None:
    config = compose_train([f"weights.transport={given}"])
    text, chosen = plan.to_text(config), choose_transport(config)
    assert f"weights go by {chosen.name}: {chosen.why}" in text
    assert ("(weights.transport=auto)" in text) is (given == "auto")
    assert json.loads(json.dumps(plan.to_json(config)))["transport"] == {"name": chosen.name, "why": chosen.why}


@pytest.mark.parametrize(("written", "resumed"), [("shared_memory", "auto"), ("host", "host")])
def test_a_resumed_run_keeps_its_transport_but_for_the_only_one_of_earlier_versions(
    tmp_path: Path, written: str, resumed: str
) -> None:
    tree = compose_train([]).model_dump(mode="json")
    tree["weights"]["transport"] = written
    write_settings(tmp_path / "config.yaml", tree)
    assert compose_train([f"resume={tmp_path}"]).weights.transport == resumed
