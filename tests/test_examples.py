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
from typing import Any

import numpy as np
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


@pytest.fixture
def in_other_trainers(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = EXAMPLES / "in_other_trainers"
    monkeypatch.syspath_prepend(str(folder))
    return folder


def two_groups(tokenizer: Any) -> dict[str, Any]:
    """Padded responses to two problems, interleaved; of each group one is right and one errs in its last step."""
    texts = [
        "2+3 = 5\n\n5+1 = 6\n\n#### 6",
        "1+1 = 2\n\n2+1 = 3\n\n#### 3",
        "2+3 = 5\n\n5+1 = 7\n\n#### 7",
        "1+1 = 2\n\n2+1 = 4\n\n#### 4",
    ]
    rows = [tokenizer.encode(text) for text in texts]
    mask = np.array([[int(t < len(row)) for t in range(40)] for row in rows])
    ids = np.array([row + [tokenizer.pad_token_id] * (40 - len(row)) for row in rows])
    return {"texts": texts, "rows": rows, "responses": ids, "response_mask": mask, "answers": ["6", "3", "6", "3"]}


def assert_the_wrong_step_is_blamed(advantages: Any, given: dict[str, Any]) -> None:
    assert advantages.shape == (4, 40) and not advantages[given["response_mask"] == 0].any()
    for right, wrong in ((0, 2), (1, 3)):
        length = len(given["rows"][wrong])
        at = advantages[wrong].min()
        assert (advantages[wrong] == at).sum() > 3
        assert advantages[right, 0] > 0 > advantages[wrong, 0] == advantages[wrong, length - 1] > at


def test_arrays_of_verl_get_the_credit_of_their_steps(in_other_trainers: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES.parent / "capo_ray" / "assets" / "chains-policy")
    given = two_groups(tokenizer)
    batch = {name: torch.tensor(given[name]) for name in ("responses", "response_mask")}
    others = {
        "uid": np.array(["a", "b", "a", "b"], dtype=object),
        "reward_model": np.array([{"ground_truth": answer} for answer in given["answers"]], dtype=object),
        "extra_info": np.array([{"question": q} for q in ("2+3+1", "1+1+1") * 2], dtype=object),
    }
    example = load(in_other_trainers / "verl_arrays.py")
    advantages, returns = example.capo_advantages(batch, others, tokenizer, critic={"critic": "calculator"})
    assert advantages.dtype == torch.float32 and returns is advantages
    assert_the_wrong_step_is_blamed(advantages.numpy(), given)


def test_the_trainer_of_trl_gets_the_credit_of_its_steps(in_other_trainers: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not here: pip install capo-ray[parity]")
    from datasets import Dataset
    from trl import GRPOConfig

    policy = str(EXAMPLES.parent / "capo_ray" / "assets" / "chains-policy")
    settings = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=4,
        num_generations=2, max_completion_length=40, max_steps=1, learning_rate=1e-3,
    )  # fmt: skip
    given: dict[str, Any] = {}
    data = [{"prompt": f"{q}\n", "question": q, "answer": a} for q, a in [("2+3+1", "6"), ("1+1+1", "3")]]
    trainer = load(in_other_trainers / "trl_trainer.py").capo_trainer()(
        critic={"critic": "calculator"}, model=policy, args=settings, train_dataset=Dataset.from_list(data),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
    )  # fmt: skip
    given = two_groups(trainer.processing_class)
    order = [0, 2, 1, 3]  # TRL's groups stand together
    rows = [given["rows"][i] for i in order]
    trainer._generate = lambda prompts: ([[5]] * 4, rows, None, [""] * 4, None, {}, None, None)
    batch = trainer._generate_and_score_completions([data[0], data[0], data[1], data[1]])
    back = np.zeros((4, 40), dtype=np.float32)
    width = batch["advantages"].shape[1]
    back[order, :width] = batch["advantages"].numpy()
    assert_the_wrong_step_is_blamed(back, given)
    assert width == batch["completion_ids"].shape[1]
    loss = trainer._compute_loss(trainer.model, batch | {"num_items_in_batch": batch["completion_mask"].sum()})
    assert loss.isfinite()
