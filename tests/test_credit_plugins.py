"""A credit method of another package: a distribution in a folder on sys.path, as pip would have installed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
from typing import ClassVar, Literal
from capo_ray.config.credit import CreditBase, Idle
from capo_ray.credit import rows
from capo_ray.credit.statistics import standardise_scalars

class HalfConfig(CreditBase):
    """Half of what GRPO gives."""
    rule: ClassVar[str] = "half_credit:half"
    method: Literal["half"] = "half"
    share: float = 0.5

    def idle_beside(self, config):
        return (Idle(("credit.share",), config.loss.kl_coef == 0, "where nothing holds it back; raise loss.kl_coef"),)

def half(group, config, progress=0.0):
    rewards = rows.outcome_rewards(group)
    whole = standardise_scalars(rewards, rows.response_weights(group))
    return rows.to_outcome_credit(group, [config.share * a for a in whole], rewards)
'''
RIGHT = {"text": "a7", "tokens": ["a", "7"], "reward": 1}
LINE = {"id": "w", "responses": [RIGHT, {**RIGHT, "reward": 0}]}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    info = tmp_path / "half_credit-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-credit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[capo_ray.credit_methods]\nhalf = half_credit:HalfConfig\n")
    (tmp_path / "half_credit.py").write_text(MODULE)
    return tmp_path


def python(package: Path, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    command = [sys.executable, *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, env=where, timeout=60, check=False)


def test_a_method_of_another_package_is_used_like_one_of_ours(package: Path) -> None:
    words = ("-m", "capo_ray", "credit", "half", "--input", "-", "--json", "credit.share=0.25")
    done = python(package, *words, text=json.dumps(LINE))
    assert done.returncode == 0, done.stderr
    assert [r["advantages"] for r in json.loads(done.stdout)["responses"]] == [[0.25] * 2, [-0.25] * 2]
    # Its module may be the first to be imported, as in a Ray worker that unpickles its config.
    script = (
        "import half_credit, pickle; from capo_ray.cli.compose import compose_train, list_choices\n"
        "config = compose_train(['credit=half', 'credit.share=0.75'])\n"
        "assert pickle.loads(pickle.dumps(config)) == config and config.credit.share == 0.75\n"
        "assert 'half' in list_choices('credit')\n"
        "from capo_ray.cli.schema import ConfigError\n"
        "for given in ['credit=haf'], ['credit=half', 'loss.kl_coef=0', 'credit.share=0.75']:\n"
        "    try: compose_train(given)\n"
        "    except ConfigError as error: print(error)\n"
    )
    done = python(package, "-c", script)
    assert done.returncode == 0, done.stderr
    assert "did you mean credit=half?" in done.stdout
    assert "credit.share has no effect where nothing holds it back; raise loss.kl_coef" in done.stdout


def test_a_package_that_cannot_be_loaded_is_named_and_harms_no_other_method(package: Path) -> None:
    (package / "half_credit.py").write_text("import a_package_that_is_not_here\n")
    refused = python(package, "-m", "capo_ray", "credit", "half", "--input", "-", text=json.dumps(LINE))
    assert refused.returncode != 0
    assert "credit=half is of the package half-credit" in refused.stderr
    assert "a_package_that_is_not_here" in refused.stderr and "Traceback" not in refused.stderr
    assert python(package, "-m", "capo_ray", "credit", "grpo", "--input", "-", text=json.dumps(LINE)).returncode == 0
