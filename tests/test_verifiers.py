"""The pool: verdicts, killing, replacing, limits, and that it never leaves its children behind."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from benchmarks.hostile_verifier import run_attack
from capo_ray.config.sections import VerifierConfig
from capo_ray.protocols import PartLost
from capo_ray.types import Verdict
from capo_ray.verifiers import VerifierPool
from capo_ray.verifiers.child import BEGIN, fork_spare
from capo_ray.verifiers.frames import Pipe, pack
from capo_ray.verifiers.jobs import Limit
from capo_ray.verifiers.lane import Lane
from tests.own_verifier import HANG

OWN = "tests.own_verifier:hang_or_crash"


def judge(pool: VerifierPool, answer: str, *responses: str) -> tuple[Verdict, ...]:
    return asyncio.run(pool.verify(answer, responses))


@pytest.fixture(scope="module")
def math_pool() -> Iterator[VerifierPool]:
    """One for all that needs math-verify: a child of it takes two seconds of processor time to start."""
    with VerifierPool(VerifierConfig(timeout_s=0.8)) as pool:
        yield pool


@pytest.fixture(scope="module")
def custom_pool() -> Iterator[VerifierPool]:
    config = VerifierConfig(kind="custom", path=OWN, timeout_s=0.5, num_processes=2)
    with VerifierPool(config) as pool:
        judge(pool, "warm", "warm")
        yield pool


def test_verdicts_come_in_order_and_say_what_was_read(math_pool: VerifierPool) -> None:
    verdicts = judge(math_pool, r"\frac{x}{2}", r"\boxed{0.5x}", "no idea", r"\boxed{x/3}", r"\boxed{9^{9^{9^9}}}")
    assert [v.reward for v in verdicts] == [1, 0, 0, None]
    assert [v.extracted for v in verdicts] == ["0.5x", None, "x/3", "9^{9^{9^9}}"]
    assert verdicts[1].reason == "no answer"
    assert verdicts[3].reason.startswith("refused")


def test_plain_numbers_never_wait_for_a_child() -> None:
    with VerifierPool(VerifierConfig()) as pool:
        start = time.perf_counter()
        assert [v.reward for v in judge(pool, "12", r"\boxed{12}", "#### 12.0", r"\boxed{13}")] == [1, 1, 0]
        assert time.perf_counter() - start < 0.3
        assert pool.stats()["verifier/checks_total"] == 0


def test_a_repeated_answer_is_checked_once(math_pool: VerifierPool) -> None:
    before = math_pool.stats()["verifier/checks_total"]
    assert [v.reward for v in judge(math_pool, "x+7", *[r"\boxed{7+x}"] * 6)] == [1] * 6
    judge(math_pool, "x+7", r"so \boxed{7 + x}")
    assert math_pool.stats()["verifier/checks_total"] == before + 1


def test_a_hang_is_an_invalid_verdict_and_its_neighbours_are_judged(custom_pool: VerifierPool) -> None:
    start = time.perf_counter()
    verdicts = judge(custom_pool, "yes", "yes", HANG, "no", "yes")
    assert [v.reward for v in verdicts] == [1, None, 0, 1]
    assert verdicts[1].reason.startswith("timeout")
    assert time.perf_counter() - start < 5
    assert custom_pool.stats()["verifier/timeouts_total"] == 1


def test_other_groups_do_not_wait_for_a_hang(custom_pool: VerifierPool) -> None:
    async def both() -> float:
        hanging = asyncio.ensure_future(custom_pool.verify("a", [HANG]))
        await asyncio.sleep(0.05)
        start = time.perf_counter()
        assert (await custom_pool.verify("b", ["b", "c"]))[0].reward == 1
        elapsed = time.perf_counter() - start
        assert (await hanging)[0].reward is None
        return elapsed

    assert asyncio.run(both()) < 0.4


@pytest.mark.parametrize(
    ("response", "reason"),
    [("crash", "crash"), ("raise", "crash: KeyError"), ("memory", "crash: out of memory"), ("none", "undecided"),
     ("text", "crash: expected True"), ("half", "crash: expected True")],
)  # fmt: skip
def test_what_a_custom_verifier_does_wrong_is_invalid(custom_pool: VerifierPool, response: str, reason: str) -> None:
    bad, good = judge(custom_pool, "fine", response, "fine")
    assert bad.reward is None
    assert bad.reason.startswith(reason)
    assert good.reward == 1


def test_a_custom_verifier_may_answer_as_numpy_does(custom_pool: VerifierPool) -> None:
    assert [v.reward for v in judge(custom_pool, "x", "numpy", "y")] == [1, 0]


def test_prints_of_a_custom_verifier_do_not_break_the_conversation(custom_pool: VerifierPool) -> None:
    assert [v.reward for v in judge(custom_pool, "print", "print", "x")] == [1, 0]


def test_a_megabyte_and_lone_surrogates_go_through(custom_pool: VerifierPool) -> None:
    big = "é" * 1_000_000
    assert [v.reward for v in judge(custom_pool, big, big, "\ud800")] == [1, 0]


def test_a_killed_child_is_replaced() -> None:
    config = VerifierConfig(kind="custom", path=OWN, timeout_s=20)
    with VerifierPool(config) as pool:  # a limit that no busy machine comes near: what counts is the replacement
        judge(pool, "warm", "warm")
        for lane in pool._lanes:
            assert lane._process is not None
            lane._process.kill()
        verdicts = judge(pool, "again", "again", "again?")
        assert {v.reward for v in verdicts} <= {1, 0, None}
        assert [v.reward for v in judge(pool, "more", "more", "less")] == [1, 0]


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the wait for a core is read on Linux alone")
def test_a_function_that_waits_for_a_core_is_not_late() -> None:
    core = min(os.sched_getaffinity(0))
    loop = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
    with VerifierPool(VerifierConfig(kind="custom", path=OWN, timeout_s=1)) as pool:
        assert judge(pool, "warm", "warm")[0].reward == 1
        lane = pool._lanes[0]
        others = [subprocess.Popen(loop, start_new_session=True) for _ in range(6)]
        try:
            start = time.monotonic()
            verdict = judge(pool, f"{lane._cpu_s + 0.5}", f"compute on {core}")[0]
            took_s = time.monotonic() - start
        finally:
            for other in others:
                other.kill()
                other.wait()
        assert verdict.reward == 1, verdict.reason
        assert took_s > 1.2  # by the clock it was late


def test_a_batch_that_a_killed_checker_never_read_is_not_read_by_the_next() -> None:
    with VerifierPool(VerifierConfig(kind="custom", path=OWN, timeout_s=0.5)) as pool:
        assert judge(pool, "warm", "warm")[0].reward == 1
        os.kill(pool._lanes[0]._pid, signal.SIGSTOP)
        assert judge(pool, "unread", "never")[0].reason.startswith("timeout")
        assert [v.reward for v in judge(pool, "b", "b", "c")] == [1, 0]


def test_a_spare_begins_when_it_is_told_to_and_not_when_its_parent_goes() -> None:
    told, tell = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)

    def work() -> int:
        os.write(tell, b"working")
        return 7

    for word, exit_code, said in ((b"", 1, b""), (BEGIN, 7, b"working")):
        pid, begin = fork_spare(work, null)
        os.write(begin, word)
        os.close(begin)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == exit_code
        os.write(tell, b".")
        assert os.read(told, 100) == said + b"."
    for fd in (told, tell, null):
        os.close(fd)


def test_a_child_whose_parent_is_gone_ends_although_its_checker_was_killed() -> None:
    settings = {"kind": "custom", "path": OWN, "memory_mib": 4096, "checks": 9}
    replies, theirs = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "capo_ray.verifiers.child", json.dumps({**settings, "timeout_s": 5.0})],
        stdin=subprocess.PIPE,
        stdout=theirs,
    )
    assert child.stdin is not None
    os.close(theirs)
    hello = json.loads(os.read(replies, 1000)[4:])
    os.close(replies)
    os.kill(hello["ready"], signal.SIGKILL)
    try:
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.stdin.close()


def test_replies_to_another_batch_are_nobodys() -> None:
    (inwards, replies), (_, requests) = os.pipe(), os.pipe()
    lane = Lane("lane", {"kind": "custom", "timeout_s": 5.0}, SimpleQueue(), Limit(5.0))
    lane._batch = 2
    for batch in (1, 3, 2):
        os.write(replies, pack({"batch": batch, "reward": int(batch == 2)}))
    assert lane._receive(Pipe(inwards, requests), 1.0) == {"batch": 2, "reward": 1}


def test_worn_out_checkers_are_replaced() -> None:
    config = VerifierConfig(kind="custom", path=OWN, checks_per_process=3)
    with VerifierPool(config) as pool:
        for index in range(12):
            assert judge(pool, str(index), str(index))[0].reward == 1
        assert pool.stats()["verifier/checker_starts_total"] >= 4
        assert pool.stats()["verifier/process_starts_total"] == 1


def test_the_deadline_of_a_group_leaves_late_pairs_invalid() -> None:
    config = VerifierConfig(kind="custom", path=OWN, timeout_s=30, deadline_s=0.3)
    with VerifierPool(config) as pool:
        start = time.perf_counter()
        (verdict,) = judge(pool, "a", HANG)
        assert verdict.reward is None and "deadline" in verdict.reason
        assert time.perf_counter() - start < 2


def test_a_child_that_cannot_start_is_a_lost_part_with_its_cause() -> None:
    with VerifierPool(VerifierConfig(kind="custom", path="tests.no_such_module:check")) as pool:  # noqa: SIM117
        with pytest.raises(PartLost, match=r"no_such_module.*check that tests.no_such_module:check can be"):
            judge(pool, "a", "b")


def test_a_closed_pool_refuses_and_leaves_no_process() -> None:
    pool = VerifierPool(VerifierConfig(kind="custom", path=OWN))
    assert judge(pool, "a", "a")[0].reward == 1
    pids = [lane._pid for lane in pool._lanes] + [lane._process.pid for lane in pool._lanes if lane._process]
    pool.close()
    pool.close()
    with pytest.raises(PartLost):
        judge(pool, "a", "a")
    _assert_gone(pids)


def test_children_end_when_their_parent_is_killed() -> None:
    code = (
        "import asyncio, time\n"
        "from capo_ray.config.sections import VerifierConfig\n"
        "from capo_ray.verifiers import VerifierPool\n"
        "pool = VerifierPool(VerifierConfig(kind='custom', path='tests.own_verifier:hang_or_crash'))\n"
        "asyncio.run(pool.verify('a', ['a']))\n"
        "print(*[lane._pid for lane in pool._lanes], *[lane._process.pid for lane in pool._lanes], flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=10)
    parent.stdout.close()
    _assert_gone(pids)


def _assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"processes {pids} outlive their pool"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_pool_serves_loops_in_several_threads(math_pool: VerifierPool) -> None:
    found: list[int | None] = []

    def work(index: int) -> None:
        found.extend(v.reward for v in judge(math_pool, f"x+{index}", f"\\boxed{{{index}+x}}", r"\boxed{x-1}"))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found, key=str) == [0] * 4 + [1] * 4


def test_choice_and_exact_need_no_children() -> None:
    with VerifierPool(VerifierConfig(kind="choice")) as pool:
        assert [v.reward for v in judge(pool, "B", r"\boxed{(b)}", "Answer: C. Rome", "hm, hard to say")] == [1, 0, 0]
        assert judge(pool, "Paris", r"\boxed{B}")[0].reward is None
        assert not pool._lanes
    with VerifierPool(VerifierConfig(kind="exact")) as pool:
        assert [v.reward for v in judge(pool, "1/2", r"\boxed{1/2}", r"\boxed{0.5}")] == [1, 0]


def test_numbers_are_measured_within_a_tolerance() -> None:
    with VerifierPool(VerifierConfig(kind="numeric", tolerance=0.05)) as pool:
        texts = (r"\boxed{9.9 \text{ m/s}^2}", "The answer is 9.0", r"#### 1.02\times10^{1}", r"\boxed{x}", "hm, well")
        assert [v.reward for v in judge(pool, "9.81", *texts)] == [1, 0, 1, 0, 0]
        assert judge(pool, r"\frac{\pi}{2}", r"\boxed{1.6}")[0].reward == 1
        assert judge(pool, "28\\%", r"\boxed{0.28}")[0].reward == 1
        spaced = (r"\boxed{9.8 \times 10^{0} \mathrm{~m/s^2}}", "The answer is 9.8 m/s^2.", r"\boxed{a \approx 9.8}")
        assert [v.reward for v in judge(pool, r"9.81 \times 10^0", *spaced)] == [1, 1, 1]
        assert [v.reward for v in judge(pool, "5", "The answer is 5 J.", r"\boxed{5 k\Omega}", r"\boxed{5x}")] == [
            1,
            1,
            0,
        ]
        assert judge(pool, "far", r"\boxed{5}")[0].reason.startswith("undecided")
        assert not pool._lanes
    with pytest.raises(ValueError, match=r"only read with verifier\.kind=numeric"):
        VerifierConfig(tolerance=0.5)


def test_nothing_is_right_or_wrong_against_an_empty_reference(math_pool: VerifierPool) -> None:
    for reference in ("", "None", " "):
        assert judge(math_pool, reference, r"\boxed{5}")[0].reason.startswith("undecided")


def test_a_check_that_the_machine_does_not_get_round_to_is_judged_all_the_same(math_pool: VerifierPool) -> None:
    assert judge(math_pool, "x+17", r"\boxed{17+x}")[0].reward == 1
    before = math_pool.stats()
    pid = math_pool._lanes[0]._pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()  # longer than the time of a check
    assert judge(math_pool, "x+18", r"\boxed{18+x}")[0].reward == 1
    stats = math_pool.stats()
    assert stats["verifier/checks_total"] == before["verifier/checks_total"] + 1
    assert stats["verifier/suspects_total"] == before["verifier/suspects_total"]


def test_a_custom_verifier_needs_a_path_and_others_take_none() -> None:
    with pytest.raises(ValueError, match=r"package\.module:function"):
        VerifierConfig(kind="custom")
    with pytest.raises(ValueError, match="only read with"):
        VerifierConfig(path="a:b")


BOMB = r"\boxed{\sum_{n=1}^{1000000}\sin n+37}"  # minutes in sympy


@pytest.fixture
def _unrefused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capo_ray.verifiers.pool.answers.refusal", lambda *_: None)


@pytest.mark.usefixtures("_unrefused")
def test_a_bomb_ends_in_the_slow_lane_within_its_limit_and_costs_it_once(math_pool: VerifierPool) -> None:
    before = math_pool.stats()
    bomb, right, wrong = judge(math_pool, "|x|", BOMB, r"\boxed{|-x|}", r"\boxed{|x|+1}")
    assert bomb.reward is None and bomb.reason.startswith("timeout")
    assert (right.reward, wrong.reward) == (1, 0)
    stats = math_pool.stats()
    assert stats["verifier/suspects_total"] > before["verifier/suspects_total"]
    assert stats["verifier/timeouts_total"] == before["verifier/timeouts_total"] + 1
    assert stats["verifier/slowest_check_s"] < 1.6  # 0.8 s, and what a busy machine adds
    start = time.perf_counter()
    assert judge(math_pool, "|x|", BOMB)[0].reward is None
    assert time.perf_counter() - start < 0.3
    assert math_pool.stats()["verifier/checks_total"] == stats["verifier/checks_total"]


@pytest.mark.slow
@pytest.mark.usefixtures("_unrefused")
def test_ordinary_pairs_do_not_wait_for_bombs(math_pool: VerifierPool) -> None:
    async def race() -> int:
        bombs = [asyncio.ensure_future(math_pool.verify("|x|", [BOMB.replace("37", str(i))])) for i in (40, 41, 42)]
        await asyncio.sleep(0.05)
        ordinary = await math_pool.verify("x+1", [rf"\boxed{{1+\frac{{{i}x}}{{{i}}}}}" for i in range(2, 5)])
        assert [v.reward for v in ordinary] == [1, 1, 1]
        waiting = sum(not bomb.done() for bomb in bombs)
        assert [(await bomb)[0].reward for bomb in bombs] == [None] * 3
        return waiting

    judge(math_pool, "x+1", r"\boxed{1+x}")
    assert asyncio.run(race()) >= 1


def test_a_killed_checker_is_followed_by_its_spare_and_none_is_left_behind() -> None:
    with VerifierPool(VerifierConfig(kind="custom", path=OWN, timeout_s=0.3)) as pool:
        for _ in range(3):
            assert [v.reward for v in judge(pool, "a", HANG, "a")] == [None, 1]
        (lane,) = pool._lanes
        assert lane._process is not None
        listed = Path(f"/proc/{lane._process.pid}/task/{lane._process.pid}/children")
        deadline = time.monotonic() + 5.0
        while len(children := listed.read_text().split()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # the next spare may still be on its way
        assert len(children) == 2  # the checker and its spare
    _assert_gone([int(pid) for pid in children])


@pytest.mark.slow
def test_hostile_answers_are_judged_and_touch_nothing() -> None:
    report = run_attack(count=25, seed=1, processes=1, timeout_s=0.3)
    assert report["failures"] == []


def test_a_verifier_that_opens_and_evaluates_is_seen_by_the_audit() -> None:
    report = run_attack(count=3, seed=1, processes=1, timeout_s=1.0, control="audit")
    assert any("audit events" in failure for failure in report["failures"])


def _run_cli(monkeypatch: pytest.MonkeyPatch, text: str, *words: str) -> tuple[int, list[dict[str, object]], str]:
    import argparse

    from capo_ray.cli import verify

    parser = argparse.ArgumentParser()
    verify.configure(parser)
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    out, err = io.StringIO(), io.StringIO()
    for name, stream in (("stdin", stdin), ("stdout", out), ("stderr", err)):
        monkeypatch.setattr(sys, name, stream)
    code = verify.run(parser.parse_args(["--input", "-", "--processes", "1", *words]))
    return code, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


def test_the_command_keeps_order_and_names_bad_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        json.dumps({"answer": "50\\%", "response": r"\boxed{0.5}"}),
        "not json",
        "",
        json.dumps({"answer": "5"}),
        json.dumps({"answer": "5", "response": "who knows"}),
        json.dumps({"answer": "5", "response": "The answer is 5."}),
    ]
    code, rows, errors = _run_cli(monkeypatch, "\n".join(lines))
    assert code == 1
    assert [row["reward"] for row in rows] == [1, None, None, 0, 1]
    assert "line 2" in errors and "line 4: expected a string in 'response'" in errors
    assert set(rows[0]) == {"reward", "reason", "extracted"}


@pytest.mark.slow
def test_the_command_keeps_order_around_hostile_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = (r"\boxed{9^{9^{9^9}}}", r"\boxed{" * 20_000, r"\boxed{\log_{8}(\log_{4}(x^{2}+10))^{9}}", "$" * 100_000)
    responses = [text for i, bad in enumerate(hostile) for text in (rf"\boxed{{{i}+x}}", bad)]
    lines = [json.dumps({"answer": f"x+{i // 2}", "response": text}) for i, text in enumerate(responses)]
    code, rows, _ = _run_cli(monkeypatch, "\n".join(lines), "--timeout", "0.5", "--processes", "2")
    assert code == 0
    assert [row["extracted"] for row in rows[::2]] == ["0+x", "1+x", "2+x", "3+x"]
    assert [row["reward"] for row in rows[::2]] == [1] * 4
    assert all(row["reward"] != 1 for row in rows[1::2])


def test_the_command_judges_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    code, rows, _ = _run_cli(monkeypatch, json.dumps({"answer": "C", "response": "Answer: (C)"}), "--kind", "choice")
    assert (code, [row["reward"] for row in rows]) == (0, [1])


def test_the_command_takes_numbers_and_lists_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(18, r"\boxed{18}"), (27.0, r"\boxed{27}"), (["4"], r"\boxed{4}"), (True, r"\boxed{1}"), ([], "1")]
    lines = [json.dumps({"answer": answer, "response": response}) for answer, response in pairs]
    code, rows, errors = _run_cli(monkeypatch, "\n".join(lines))
    assert (code, [row["reward"] for row in rows]) == (1, [1, 1, 1, None, None])
    assert "line 4: expected a string in 'answer', got bool" in errors
