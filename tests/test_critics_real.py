"""The judge on a real engine: the shipped critic through vLLM, its verdict constrained while decoding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LINES = [
    {"question": "7*8+5", "steps": ["7*8=6", "6+5=1", "\\boxed{1}"], "wrong_steps": []},
    {"question": "7*8+5", "steps": ["7*8=5", "5+5=0", "\\boxed{0}"], "wrong_steps": [0]},
    {"question": "3-9*2", "steps": ["3-9=4", "4*2=9", "\\boxed{9}"], "wrong_steps": [1]},
]


@pytest.mark.real
def test_the_laptop_critic_answers_in_form_under_a_constrained_verdict(tmp_path: Path) -> None:
    path, store = tmp_path / "chains.jsonl", tmp_path / "store.sqlite"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    command = [sys.executable, "-m", "capo_ray", "critique", "--input", str(path), "--gold", "--json"]
    command += ["critic.constrain=true", "critic.num_votes=4", f"critic.store={store}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout)
    assert out["summary"]["critiques"] == 12
    assert out["summary"]["invalid_frac"] == 0.0
    assert out["summary"]["output_tokens"] > 0
