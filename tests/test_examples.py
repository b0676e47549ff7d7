"""Each example does what its section of examples/README.md says."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from capo_ray.cli import main
from capo_ray.cli.compose import compose_train
from capo_ray.config.sections import VerifierConfig
from capo_ray.verifiers import VerifierPool
from tests.credit_groups import Member, group

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(path: Path) -> ModuleType:
    """The module at a path, under its own name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_loop_learns_from_what_it_rolled_out(capsys: pytest.CaptureFixture[str]) -> None:
    (accuracy,) = load(EXAMPLES / "the_loop.py").main(updates=1)
    assert 0.0 < accuracy < 1.0
    assert capsys.readouterr().out.startswith("update 1  right 0.")


def test_the_price_of_a_wrong_step_is_taken_off_its_tokens() -> None:
    own = load(EXAMPLES / "own_credit" / "own_credit.py")
    judged = group(Member(1, [2]), Member(0, [1, 1], flags=[[1]]))
    credit = own.priced(judged, own.PricedConfig(price=0.5))
    # Rewards 1, 1 | 0 | -1/2 over four tokens: their mean is 3/8.
    assert [list(row) for row in credit.advantages] == [[0.625, 0.625], [-0.375, -0.875]]


def test_the_package_of_the_own_method_names_its_config() -> None:
    project = tomllib.loads((EXAMPLES / "own_credit" / "pyproject.toml").read_text())["project"]
    (entry,) = project["entry-points"]["capo_ray.credit_methods"].items()
    own = load(EXAMPLES / "own_credit" / "own_credit.py")
    assert entry == (own.PricedConfig().method, f"{own.__name__}:PricedConfig")
    assert own.PricedConfig.rule == f"{own.__name__}:{own.priced.__name__}"


def test_the_own_verifier_judges_in_a_process_of_its_own() -> None:
    config = VerifierConfig(
        kind="custom", path=f"{EXAMPLES}/own_verifier.py:last_number", timeout_s=30, num_processes=1
    )
    with VerifierPool(config) as pool:
        verdicts = asyncio.run(pool.verify("14", ["so it is 14", "14, or 15"]))
        unknown = asyncio.run(pool.verify("x", ["14"]))
    assert [v.reward for v in verdicts] == [1, 0]
    assert unknown[0].reward is None


def test_saved_rollouts_are_credited_offline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["credit", "capo", "--input", str(EXAMPLES / "saved_rollouts.jsonl"), "--json"]) == 0
    right, wrong = json.loads(capsys.readouterr().out)["responses"]
    assert wrong["wrong"] == [0.0, 1.0]  # two of three critiques flag the second step
    assert min(right["advantages"]) > wrong["advantages"][0] > wrong["advantages"][-1]


def test_a_critic_behind_an_api_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert load(EXAMPLES / "endpoint_critic.py").main() == 0
    quality = json.loads(capsys.readouterr().out)["quality"]  # of each number of votes, and way to count them
    assert quality and {(row["precision"], row["recall"]) for row in quality} == {(1.0, 1.0)}


def test_the_run_on_two_gpus_is_planned(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"question": "2+2?", "answer": "#### 4"}) + "\n")
    script = (EXAMPLES / "two_gpus.sh").read_text()
    words = script.partition(" train ")[2].replace("\\\n", " ").replace('"$@"', "").split()
    done = subprocess.run(["bash", "-n", str(EXAMPLES / "two_gpus.sh")], check=False)
    assert done.returncode == 0
    config = compose_train([*words, f"data.path={data}"])
    engine, critic, learner = config.engine, config.critic, config.learner
    assert engine.num_gpus + critic.num_gpus + learner.num_ranks * learner.num_gpus == 2
