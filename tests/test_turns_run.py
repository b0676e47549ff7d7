"""A run of turns on real parts: Ray, vLLM and DeepSpeed play a grid puzzle that at times hangs or dies, with a policy
that has a chat template."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny import write_tiny_model
from capo_ray.environments import Task, grid
from capo_ray.ledger import read_balance
from capo_ray.metrics import read_rows
from capo_ray.runs.layout import LEDGER_FILE
from tests.test_main_job import ENVIRONMENT, finish, log_of, start

pytestmark = [pytest.mark.real, pytest.mark.timeout(420)]

ASKS = "?"
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}" + ASKS + "{% endif %}{{ m.content }}\n{% endfor %}"
)  # a line is a turn, whoever speaks, and a user's begins with a mark
MOVES = "udlr"
FAILURES = {"u": "error: timeout", "d": "error: crash"}
"""What the policy reads where it says these in its second turn."""
HAUNTED = """
import os, time
from typing import ClassVar, Literal
from capo_ray.config.environment import GridEnvironment
from capo_ray.environments import grid

class Haunted(GridEnvironment):
    rule: ClassVar[str] = "haunted:reply"
    kind: Literal["haunted"] = "haunted"

def reply(task, said):
    word = said[1].strip() if len(said) == 2 else ""
    if word == "u":
        time.sleep(600)
    if word == "d":
        os._exit(3)
    return grid.reply(task, said)
"""


def write_haunted(folder: Path) -> Path:
    """The grid puzzle as another package's environment, whose second reply hangs behind u and dies behind d."""
    info = folder / "haunted-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: haunted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[capo_ray.environments]\nhaunted = haunted:Haunted\n")
    (folder / "haunted.py").write_text(HAUNTED)
    return folder


def write_mover(folder: Path) -> Path:
    """A policy that says a move drawn at random and ends its line, whatever it reads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_tiny_model(folder, layers=1, tie_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    vocab = tokenizer.get_vocab()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        layer, read, said = model.model.layers[0], model.model.embed_tokens.weight, model.lm_head.weight
        for silent in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, read, said):
            silent.zero_()
        read[:, 0] = 1.0  # what was read last decides: behind a line's end a move, behind a move a line's end
        for token in MOVES:
            read[vocab[token], :2] = torch.tensor([0.0, 1.0])
            said[vocab[token], 0] = 2.0
        said[vocab["\n"], 1] = 2.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of two updates."""
    folder = tmp_path_factory.mktemp("turns")
    run_dir = folder / "grid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PYTHONPATH", os.pathsep.join([str(write_haunted(folder / "site")), *sys.path]))
        process = start(run_dir, *words_of(write_mover(folder / "mover")))
    assert finish(process, run_dir) == 0, log_of(run_dir)
    return run_dir


def words_of(model: Path) -> list[str]:
    """A run of two updates with that policy."""
    return [
        "credit=gigpo",
        f"model.path={model}",
        "model.chat_template=true",
        "model.system_prompt=",
        'model.stop_tokens=["\n"]',
        "environment.kind=haunted",
        "environment.timeout_s=1",
        "environment.num_processes=2",
        "environment.size=3",
        "environment.min_moves=1",
        "environment.most_moves=2",
        "environment.max_turns=4",
        "environment.turn_tokens=4",
        "rollout.max_response_tokens=80",
        "verifier.kind=exact",
        "stream.max_age=0",
        "run.num_updates=2",
    ]


def groups_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "transcripts.jsonl").read_text().splitlines()]


def test_what_was_read_is_what_the_environment_says_and_stands_as_the_template_has_it(played: Path) -> None:
    groups = groups_of(played)
    assert len(groups) == 2 and {len(g["responses"]) for g in groups} == {4}
    for group in groups:
        for one in group["responses"]:
            tokens = one["tokens"]
            spans = one.get("acted") or [[0, len(tokens)]]
            said = ["".join(tokens[a:b]) for a, b in spans]
            assert all(turn in [f"{move}\n" for move in MOVES] for turn in said)
            told, solved = replies_to(group["question"], said)
            heard = ["".join(tokens[b:c]) for (_, b), (c, _) in pairwise(spans)]
            assert heard == [f"{ASKS}{text}\n" for text in told[: len(heard)]] and len(told) - len(heard) == 1
            assert one["reward"] == solved and (solved or len(said) == 4)


def replies_to(board: str, said: list[str]) -> tuple[list[str], int]:
    """What is read behind each turn, and whether the last one solves the puzzle; a turn that failed changed nothing."""
    told, played = list[str](), list[str]()
    for word in said:
        if len(played) == 1 and word.strip() in FAILURES:
            told.append(FAILURES[word.strip()])
        else:
            played.append(word)
            told.append(grid.reply(Task("p", board, "", {}), played).text)
    return told, grid.reply(Task("p", board, "", {}), played).outcome or 0


def test_a_reply_that_hangs_or_dies_is_read_and_costs_neither_response_nor_run(played: Path) -> None:
    rows = [row for row in read_rows(played / "metrics.jsonl") if "loss/objective_mean" in row]
    # Some 32 responses: that none said u or d in its second turn has a chance of one in a million.
    assert rows[-1]["environment/failures_total"] > 0 and rows[-1]["verifier/invalid_frac"] == 0
    assert rows[-1]["environment/process_starts_total"] == 2, "a hang costs its checker, and no new process"
    assert all(one["reward"] in (0, 1) for g in groups_of(played) for one in g["responses"])


def test_nothing_that_was_read_has_a_logprob_credit_or_loss(played: Path) -> None:
    policy = math.log(1 / 4)
    for group in groups_of(played):
        for one in group["responses"]:
            spoken = {t for a, b in one.get("acted") or [[0, len(one["tokens"])]] for t in range(a, b)}
            for t, (logprob, advantage) in enumerate(zip(one["logprobs"], one["credit"]["advantages"], strict=True)):
                assert t in spoken or (logprob, advantage) == (0, 0)
                if t in spoken and group["update"] == 1:
                    assert logprob == pytest.approx(policy if one["tokens"][t] != "\n" else 0.0, abs=0.05)
    rows = [row for row in read_rows(played / "metrics.jsonl") if "loss/objective_mean" in row]
    # The learner finds each sampled token as likely as the engine did, behind all that was said and read before it.
    assert len(rows) == 2 and all(row["loss/mismatch_max_nats"] < 1e-3 for row in rows)
    assert all(row["rollout/turns_mean"] > 1 for row in rows)
    assert any(a for group in groups_of(played) for one in group["responses"] for a in one["credit"]["advantages"])


def test_the_ledger_of_turns_balances(played: Path) -> None:
    balance = read_balance(played / LEDGER_FILE)
    assert balance.counts["trained"] == 2 * 4 * 4


@pytest.mark.parametrize("method", ["gigpo", "grpo"])
def test_a_run_of_turns_is_credited_again_from_its_transcripts(played: Path, method: str) -> None:
    words = ["credit", method, "--input", str(played / "transcripts.jsonl"), "--json", "steps=turn"]
    told = subprocess.run([sys.executable, "-m", "capo_ray", *words], capture_output=True, text=True, check=True).stdout
    again = [json.loads(line) for line in told.splitlines()]
    groups = groups_of(played)
    assert len(again) == len(groups)
    for group, credited in zip(groups, again, strict=True):
        for one, new in zip(group["responses"], credited["responses"], strict=True):
            assert new["steps"] == one["steps"]
            if method == "gigpo":
                assert new["advantages"] == pytest.approx(one["credit"]["advantages"], abs=1e-6)
            else:
                spoken = {t for a, b in one.get("acted") or [[0, len(one["tokens"])]] for t in range(a, b)}
                assert len({a for t, a in enumerate(new["advantages"]) if t in spoken}) == 1
                assert all(a == 0 for t, a in enumerate(new["advantages"]) if t not in spoken)
