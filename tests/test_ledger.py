"""The ledger: moves only along the graph, durable through kill -9, balanced at the end, one driver at a time."""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.cli import ledger as cli
from capo_ray.ledger import BadMove, LedgerLost, RunBusy, RunLock, SqliteLedger, read_balance
from capo_ray.ledger.balance import STATES
from capo_ray.ledger.sqlite import SOURCES
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import LEDGER_FILE
from capo_ray.types import TrajectoryKey
from tests.examples import examples

WAY = ("generated", "verified", "critiqued", "credited")


def siblings(group: int, count: int = 2, attempt: int = 0) -> list[TrajectoryKey]:
    return [TrajectoryKey(f"p{group}", group, sample, attempt) for sample in range(count)]


def credit(ledger: SqliteLedger, keys: list[TrajectoryKey]) -> None:
    for state in WAY:
        ledger.record(keys, state)


@pytest.fixture
def ledger(tmp_path: Path) -> SqliteLedger:
    return SqliteLedger(tmp_path / LEDGER_FILE, "run")


def test_a_run_whose_trajectories_are_all_trained_or_dropped_is_balanced(ledger: SqliteLedger) -> None:
    credit(ledger, siblings(0))
    ledger.record(siblings(0), "trained", update=1)
    ledger.record(siblings(1), "generated")
    assert not ledger.balance().balanced and ledger.balance().open == 2
    ledger.record(siblings(1), "dropped", reason="worker died")
    balance = ledger.balance()
    assert balance.balanced and balance.open == 0 and balance.updates == 1
    assert balance.reasons == {"worker died": 2}
    assert ledger.balance().counts == {**dict.fromkeys(STATES, 0), "trained": 2, "dropped": 2}


def test_credit_needs_no_critiques_but_a_verdict(ledger: SqliteLedger) -> None:
    ledger.record(siblings(0), "generated")
    with pytest.raises(BadMove, match="p0/0/0/0 moves to credited only from verified or critiqued, but is generated"):
        ledger.record(siblings(0), "credited")
    ledger.record(siblings(0), "verified")
    ledger.record(siblings(0), "credited")
    assert ledger.balance().counts["credited"] == 2


def test_a_refused_move_leaves_all_of_its_trajectories_where_they_were(ledger: SqliteLedger) -> None:
    ledger.record(siblings(0), "generated")
    ledger.record(siblings(1)[:1], "generated")
    with pytest.raises(BadMove, match=r"p1/1/1/0.*unknown to the ledger"):
        ledger.record([*siblings(0), *siblings(1)], "verified")
    assert ledger.balance().counts["generated"] == 3 and ledger.balance().counts["verified"] == 0


def test_no_trajectory_is_trained_twice_nor_dropped_after_training(ledger: SqliteLedger) -> None:
    credit(ledger, siblings(0))
    ledger.record(siblings(0), "trained", update=1)
    with pytest.raises(BadMove):
        ledger.record(siblings(0), "trained", update=2)
    with pytest.raises(BadMove):
        ledger.record(siblings(0), "dropped", reason="late")
    credit(ledger, siblings(1))
    with pytest.raises(BadMove, match="named twice"):
        ledger.record([siblings(1)[0], siblings(1)[0]], "trained", update=2)
    assert ledger.trained_twice() == 0


def test_two_attempts_at_one_response_trained_both_are_seen_as_trained_twice(ledger: SqliteLedger) -> None:
    for attempt in (0, 1):
        credit(ledger, siblings(0, attempt=attempt))
        ledger.record(siblings(0, attempt=attempt), "trained", update=attempt + 1)
    assert ledger.trained_twice() == 2
    assert not ledger.balance().balanced


@pytest.mark.parametrize(
    ("state", "more"),
    [("dropped", {}), ("trained", {}), ("verified", {"update": 1}), ("born", {}), ("verified", {"votes": []})],
)
def test_a_move_without_what_it_needs_is_refused(ledger: SqliteLedger, state: str, more: dict) -> None:
    credit(ledger, siblings(0))
    with pytest.raises(BadMove):
        ledger.record(siblings(0), state, **more)


def test_votes_stand_beside_the_trajectory(ledger: SqliteLedger, tmp_path: Path) -> None:
    for state in WAY[:2]:
        ledger.record(siblings(0), state)
    ledger.record(siblings(0), "critiqued", votes=[(3, 4), (4, 4)])
    rows = sqlite3.connect(tmp_path / LEDGER_FILE).execute("SELECT num_valid, num_votes FROM trajectories").fetchall()
    assert rows == [(3, 4), (4, 4)]
    assert ledger.balance().votes == {"4/4": 1, "3/4": 1}


def test_masked_tokens_count_for_as_long_as_their_trajectory_is_trained(ledger: SqliteLedger, tmp_path: Path) -> None:
    for group in range(2):
        credit(ledger, siblings(group))
        ledger.record(siblings(group), "trained", update=group + 1, masked=[5, 0])
    assert ledger.balance().masked_tokens == 10
    assert "10 tokens of the trained ones were too old" in cli._to_text(ledger.balance())
    ledger.rewind(1)
    assert ledger.balance().masked_tokens == 5
    with pytest.raises(BadMove, match=r"masked must have one entry per trajectory \(got 1 for 2\)"):
        ledger.record(siblings(5), "generated", masked=[1])


def test_a_ledger_of_before_masked_tokens_were_counted_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    old = SqliteLedger(path, "run")
    credit(old, siblings(0))
    old.record(siblings(0), "trained", update=1)
    old.close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE trajectories DROP COLUMN num_masked")
    assert read_balance(path).counts["trained"] == 2
    ledger = SqliteLedger(path, "run")
    credit(ledger, siblings(1))
    ledger.record(siblings(1), "trained", update=2, masked=[3, 4])
    assert ledger.balance().masked_tokens == 7


def test_a_rewind_takes_back_what_was_trained_after_the_checkpoint_and_all_that_is_open(ledger: SqliteLedger) -> None:
    for group in range(4):
        credit(ledger, siblings(group))
        if group < 3:
            ledger.record(siblings(group), "trained", update=group + 1)
    rewound = ledger.rewind(2)
    assert (rewound.rolled_back, rewound.interrupted) == (2, 2)
    balance = ledger.balance()
    assert balance.balanced and balance.counts["trained"] == 4 and balance.updates == 2
    assert balance.reasons == {"rolled_back": 2, "interrupted": 2}
    assert ledger.next_group() == 4
    credit(ledger, siblings(4))
    ledger.record(siblings(4), "trained", update=3)
    assert ledger.balance().balanced and ledger.trained_twice() == 0


def test_closing_drops_what_is_open_with_the_reason_given(ledger: SqliteLedger) -> None:
    ledger.record(siblings(0), "generated")
    ledger.record(siblings(1), "generated")
    assert ledger.close_open("run_ended") == 4
    assert ledger.balance().reasons == {"run_ended": 4} and ledger.balance().balanced
    assert ledger.close_open("run_ended") == 0


def test_runs_in_one_file_do_not_mix(tmp_path: Path) -> None:
    a, b = (SqliteLedger(tmp_path / LEDGER_FILE, run) for run in "ab")
    a.record(siblings(0), "generated")
    b.record(siblings(0), "generated")
    b.record(siblings(0), "verified")
    assert a.balance().counts["generated"] == 2 and b.balance().counts["generated"] == 0
    assert read_balance(tmp_path / LEDGER_FILE).open == 4


@settings(max_examples=examples(40))
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(STATES)), max_size=40))
def test_the_ledger_moves_exactly_as_the_graph_does(moves: list[tuple[int, str]]) -> None:
    ledger = SqliteLedger(Path(":memory:"), "run")
    model: dict[int, str] = {}
    for group, state in moves:
        allowed = model[group] in SOURCES[state] if group in model else state == "generated"
        more = {"reason": "x"} if state == "dropped" else {"update": 1} if state == "trained" else {}
        if allowed:
            ledger.record(siblings(group), state, **more)
            model[group] = state
        else:
            with pytest.raises(BadMove):
                ledger.record(siblings(group), state, **more)
    counts = ledger.balance().counts
    assert {s: n for s, n in counts.items() if n} == {s: 2 * list(model.values()).count(s) for s in set(model.values())}
    assert ledger.balance().balanced == all(state in ("trained", "dropped") for state in model.values())


def run_child(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *args], stdout=subprocess.PIPE, text=True)


def test_every_move_that_returned_survives_kill_9_in_the_midst_of_others(tmp_path: Path) -> None:
    child = run_child(
        """
        import sys
        from pathlib import Path
        from capo_ray.ledger import SqliteLedger
        from capo_ray.protocols import RunFailed
from capo_ray.types import TrajectoryKey
        ledger = SqliteLedger(Path(sys.argv[1]), "run")
        for group in range(100_000):
            ledger.record([TrajectoryKey("p", group, s) for s in range(4)], "generated")
            print(group, flush=True)
        """,
        str(tmp_path / LEDGER_FILE),
    )
    assert child.stdout is not None
    seen = [child.stdout.readline() for _ in range(50)]
    child.send_signal(signal.SIGKILL)
    seen += child.stdout.read().splitlines(keepends=True)
    child.wait(10)
    acknowledged = sum(line.endswith("\n") for line in seen)
    count = SqliteLedger(tmp_path / LEDGER_FILE, "run").balance().counts["generated"]
    assert count % 4 == 0 and acknowledged <= count // 4 <= acknowledged + 1


def test_a_second_driver_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    named = rf"in use by another driver \(pid {os.getpid()} on .*run.name"
    with RunLock(tmp_path), pytest.raises(RunBusy, match=named):
        RunLock(tmp_path).acquire()
    RunLock(tmp_path).acquire().release()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(
        RunFailed, match=r"expected a file system with locks .* got: Function not implemented; .*-o flock"
    ):
        RunLock(tmp_path).acquire()


def test_a_ledger_that_was_deleted_or_replaced_takes_no_more_moves(ledger: SqliteLedger, tmp_path: Path) -> None:
    path = next(tmp_path.rglob("*.sqlite"))
    ledger.record([TrajectoryKey("p", 0, 0)], "generated")
    ledger.check()
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(LedgerLost, match=r"\.sqlite was removed or replaced while its run went on"):
        ledger.record([TrajectoryKey("p", 0, 1)], "generated")
    path.write_bytes(content)
    with pytest.raises(LedgerLost, match="was removed or replaced"):
        ledger.check()


def test_an_error_of_sqlite_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(
        LedgerLost, match=r"the ledger .*ledger\.sqlite cannot be used \(file is not a database\); look at"
    ):
        SqliteLedger(tmp_path / "ledger.sqlite", "run")


def test_a_killed_driver_leaves_no_lock_even_when_a_forked_child_lives_on(tmp_path: Path) -> None:
    child = run_child(
        """
        import os, sys, time
        from pathlib import Path
        from capo_ray.ledger import RunLock
        lock = RunLock(Path(sys.argv[1])).acquire()
        if os.fork() == 0:
            print(os.getpid(), flush=True)  # by the child, which has let go of the lock by then
            time.sleep(30)
            os._exit(0)
        time.sleep(30)
        """,
        str(tmp_path),
    )
    assert child.stdout is not None
    orphan = int(child.stdout.readline())
    try:
        with pytest.raises(RunBusy):
            RunLock(tmp_path).acquire()
        child.kill()
        child.wait(10)
        RunLock(tmp_path).acquire().release()
    finally:
        os.kill(orphan, signal.SIGKILL)


def run_cli(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    return cli.run(parser.parse_args(argv))


def test_the_command_prints_counts_and_balance_of_a_run_that_is_going_on(
    ledger: SqliteLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.record(siblings(0), "generated")
    assert run_cli(str(tmp_path), "--json") == 1
    assert json.loads(capsys.readouterr().out)["balanced"] is False
    ledger.close_open("run_ended")
    assert run_cli(str(tmp_path), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["balanced"] is True and shown["counts"]["dropped"] == 2 and shown["reasons"] == {"run_ended": 2}
    assert run_cli(str(tmp_path)) == 0
    assert "balanced: every trajectory" in capsys.readouterr().out


def test_the_command_says_what_to_give_when_there_is_no_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noise").write_text("not a ledger at all, but long enough to be looked at as one " * 40)
    for path in (tmp_path, tmp_path / "noise", tmp_path / "nowhere"):
        assert run_cli(str(path)) == 2
        assert "give the directory of a run" in capsys.readouterr().err


def whole_ledger(path: Path) -> list[list[tuple[object, ...]]]:
    """A file with trained and dropped trajectories and all that it says of them."""
    ledger = SqliteLedger(path, "run")
    for group in range(20):
        credit(ledger, siblings(group, 4))
        more = {"state": "trained", "update": group // 4} if group % 5 else {"state": "dropped", "reason": "too_old"}
        ledger.record(siblings(group, 4), **more, masked=[group] * 4)
    ledger.close()
    return read_all(path)


def read_all(path: Path) -> list[list[tuple[object, ...]]]:
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as db:
        return [db.execute(f"SELECT * FROM {name}").fetchall() for name in ("trajectories", "trainings")]


@pytest.mark.slow
def test_no_flipped_byte_changes_what_a_ledger_says_unseen(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    before = whole_ledger(path)
    assert read_balance(path).balanced and read_balance(path).damaged == []
    content, chance, seen = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            found = not read_balance(path).balanced
        except ValueError:
            found = True
        seen += found
        assert found or read_all(path) == before
    assert seen > 100


@pytest.mark.parametrize(
    ("flip", "named"),
    [
        ("UPDATE trajectories SET reason = 'too_ole' WHERE problem = 'p5' AND sample = 2", "trajectory p5/5/2/0"),
        ("UPDATE trajectories SET sample = 7 WHERE problem = 'p5' AND sample = 2", "trajectory p5/5/7/0"),
        ("UPDATE trainings SET trained_in = 9 WHERE problem = 'p3' AND sample = 1", "training of p3/3/1/0 in update 9"),
    ],
)
def test_a_row_changed_so_that_the_account_still_balances_is_named_and_never_resumed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flip: str, named: str
) -> None:
    whole_ledger(tmp_path / LEDGER_FILE)
    with sqlite3.connect(tmp_path / LEDGER_FILE) as db:
        assert db.execute(flip).rowcount == 1
    assert run_cli(str(tmp_path)) == 1
    shown = capsys.readouterr().out
    assert "rows are not as they were written" in shown and f"\n  {named}\n" in f"{shown}\n"
    with pytest.raises(LedgerLost, match=rf"ledger\.sqlite is damaged \(.*{named}"):
        SqliteLedger(tmp_path / LEDGER_FILE, "run").rewind(2)


def test_every_way_to_move_a_row_seals_it_anew(ledger: SqliteLedger, tmp_path: Path) -> None:
    for group in range(3):
        credit(ledger, siblings(group))
        ledger.record(siblings(group), "trained", update=group)
    ledger.record(siblings(3), "generated")
    ledger.rewind(1)
    ledger.record(siblings(4), "generated")
    ledger.close_open("run_ended")
    assert read_balance(tmp_path / LEDGER_FILE).damaged == []


def test_a_ledger_of_before_there_were_digests_is_read_and_said_so_and_sealed_when_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / LEDGER_FILE
    whole_ledger(path)
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE trajectories DROP COLUMN digest")
    assert run_cli(str(tmp_path)) == 0
    assert "no row has a digest" in capsys.readouterr().out
    SqliteLedger(path, "run").rewind(2)
    assert run_cli(str(tmp_path)) == 0
    assert read_balance(path).damaged == []
