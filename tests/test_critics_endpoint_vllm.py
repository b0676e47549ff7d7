"""The endpoint critic, and a served policy, against vLLM's own OpenAI server, which holds the shipped critic."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from capo_ray.config.api import ApiConfig
from capo_ray.config.critic import CriticConfig, EndpointConfig
from capo_ray.critics.canary import CanaryCase, chain_cases
from capo_ray.critics.endpoint import EndpointJudge
from capo_ray.engines import HfTokenizer, ServedEngine
from capo_ray.problems import asset_path
from capo_ray.protocols import JudgeRequest, Sampling
from capo_ray.types import Completion, Critique

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
START_S = 200
MAX_LEN = 192
BARE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The shipped critic goes on from bare text and has no chat template of its own."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    template, log = folder / "chat.jinja", folder / "server.log"
    template.write_text(BARE)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--model", str(asset_path("laptop", "critic")), "--served-model-name", "judge", "--dtype", "float32"]
    words += [
        "--max-model-len",
        str(MAX_LEN),
        "--max-num-seqs",
        "32",
        "--enforce-eager",
        "--chat-template",
        str(template),
    ]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    ends = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None or time.monotonic() > ends:
                pytest.fail(f"vLLM's server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)


def ask(url: str, cases: Sequence[CanaryCase], k: int, **critic: object) -> list[tuple[Critique, ...]]:
    """The critiques of each case, and their votes in turn."""
    config = CriticConfig.model_validate(
        {
            "backend": "endpoint",
            "endpoint": EndpointConfig(base_url=url, model="judge"),
            "early_stop": False,
            "num_votes": k,
            "deadline_s": 200,
            **critic,
        }
    )

    async def go() -> list[tuple[Critique, ...]]:
        judge = EndpointJudge(config, vote="majority", quorum=1)
        try:
            asked = (judge.critique(case.problem, [JudgeRequest(case.steps)], k) for case in cases)
            return [votes[0] for votes in await asyncio.gather(*asked)]
        finally:
            await judge.close()

    return asyncio.run(go())


def test_votes_come_back_right_counted_and_in_form(url: str) -> None:
    cases = chain_cases(6, 4, seed=5)
    judged = ask(url, cases, 4, constrain=True)
    assert [[vote.flagged for vote in votes] for votes in judged] == [[case.wrong] * 4 for case in cases]
    for votes in judged:
        assert all(vote.provenance.output_tokens > 0 and vote.provenance.prompt_tokens > 10 for vote in votes)


def test_a_server_with_little_room_is_asked_again_with_what_it_has(url: str) -> None:
    (case,) = chain_cases(1, 4, seed=6)
    (votes,) = ask(url, [case], 2, max_tokens=4 * MAX_LEN)
    assert [vote.flagged for vote in votes] == [case.wrong] * 2, [vote.reason for vote in votes]


def test_what_it_refuses_abstains_in_its_own_words(url: str) -> None:
    (case,) = chain_cases(1, 4, seed=7)
    (votes,) = ask(url, [case], 1, endpoint=EndpointConfig(base_url=url, model="another"))
    assert votes[0].flagged is None
    assert votes[0].reason.startswith("refused: HTTP 404 at /v1/chat/completions: ") and "another" in votes[0].reason


def test_a_served_policy_answers_token_ids_as_the_model_itself_does(url: str) -> None:
    # The critic in the policy's place: what is asked is a prompt, whoever reads it.
    import torch
    from transformers import AutoModelForCausalLM

    path = asset_path("laptop", "critic")
    tokenizer, model = HfTokenizer(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompts = [tokenizer.encode_data(case.problem.prompt) for case in chain_cases(3, 4, seed=8)]

    async def go() -> list[Completion]:
        api = ApiConfig(base_url=url, model="judge")
        engine = ServedEngine(api, tokenizer, max_tokens=24, deadline_s=200)
        try:
            await engine.start()
            greedy = [await engine.generate(prompt, Sampling(temperature=0.0, max_tokens=24)) for prompt in prompts]
            drawn = await engine.generate(prompts[0], Sampling(n=3, seed=7, max_tokens=24))
            again = await engine.generate(prompts[0], Sampling(n=2, seed=8, max_tokens=24))
        finally:
            await engine.close()
        # Sample i is drawn under seed + i, as by our own engines: an interrupted evaluation goes on with the same.
        assert [list(one.token_ids) for one in drawn[1:]] == [list(one.token_ids) for one in again]
        return [one for (one,) in greedy]

    for prompt, one in zip(prompts, asyncio.run(go()), strict=True):
        ids = torch.tensor([prompt])
        told = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=tokenizer.eos_id)[0, len(prompt) :]
        assert list(one.token_ids) == told.tolist()
        assert one.text == tokenizer.decode(told.tolist())
