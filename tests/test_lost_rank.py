"""A rank is killed in mid-update, then the node that holds the ranks: each time the run ends, and goes on elsewhere.

Supervised training on Ray's own cluster of two nodes (`ray.cluster_utils`), with DeepSpeed's ranks, checkpoints and
ends as `capo-ray train` has them: what trains is the same group of actors.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from capo_ray.checkpoint import CheckpointStore
from capo_ray.cli.sft import read_config
from capo_ray.runs.layout import WORKERS_FILE
from tests.test_supervised_runs import QUICK, losses, run, weights
from tests.test_two_nodes import actors, lose_node

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

LIMIT_S = 60.0
NUM_UPDATES = 12
KEYS = (*QUICK, "batch_size=24", "learner.microbatch_tokens=256", "prompt_loss_weight=0.5", "learner.lr=1e-3")
KEYS = (*KEYS, f"run.num_updates={NUM_UPDATES}")
GROUP = ("learner.backend=zero", "learner.num_ranks=2", "learner.zero_stage=2", "run.checkpoint_every=2")
GROUP = (*GROUP, "learner.gradient_checkpointing=true", "learner.num_cpus=0.5", "learner.node_resource=work")
RUN = Path("runs/two")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head, which the driver joins, and a node for the ranks; either has room for both."""
    monkeypatch.chdir(tmp_path)
    cluster = Cluster()
    for name in ("spare", "work"):
        cluster.add_node(num_cpus=1, resources={name: 1}, include_dashboard=False)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def ranks() -> list[int]:
    """The process ids of the run's ranks."""
    return list(json.loads((RUN / WORKERS_FILE).read_text())["learner"])


def kill_in_mid_update() -> None:
    """A rank stands still, and with it the update under way; then it is gone."""
    rank = ranks()[1]
    os.kill(rank, signal.SIGSTOP)
    done = len(losses(str(RUN)))
    time.sleep(1)
    assert len(losses(str(RUN))) <= done + 1 < NUM_UPDATES, "the other rank waits"
    os.kill(rank, signal.SIGKILL)


def lose_node_in_mid_update(cluster: Cluster) -> None:
    """As above, lest the run end before the node does."""
    rank = ranks()[0]
    os.kill(rank, signal.SIGSTOP)
    lose_node(cluster, actors()[rank])
    with contextlib.suppress(ProcessLookupError):
        os.kill(rank, signal.SIGKILL)  # a process that stands still does not see its node go


def run_until(event: Callable[[], None], num_updates: int, *overrides: str) -> tuple[int, float]:
    """The exit code of a run to which `event` happens after so many updates and a checkpoint, and the seconds since."""
    happened: list[float] = []

    def watch() -> None:
        while len(losses(str(RUN))) < num_updates or not (RUN / f"checkpoints/v{num_updates - 1:06d}").is_dir():
            time.sleep(0.01)
        event()
        happened.append(time.monotonic())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    code = run(*overrides)
    return code, time.monotonic() - happened[0]


def test_two_ranks_through_the_death_of_one_and_of_their_node_make_the_weights_of_one_rank(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*KEYS, "out=one") == 0
    began = (*KEYS, *GROUP, f"cluster.address={cluster.address}", "out=two", "run.name=two")
    lost = r"capo-ray sft: learner rank 1 \((update|snapshot|ping)\) was lost: .*"
    go_on = f"; go on with capo-ray sft resume={RUN.resolve()}\n$"

    code, seconds = run_until(kill_in_mid_update, 3, *began)
    said = capsys.readouterr().err
    assert code == 1 and seconds < LIMIT_S
    assert re.search(lost + go_on, said), said

    code, seconds = run_until(lambda: lose_node_in_mid_update(cluster), 7, f"resume={RUN}")
    said = capsys.readouterr().err
    assert code == 1 and seconds < LIMIT_S
    assert re.search(lost.replace("rank 1", "rank [01]") + go_on, said), said

    assert run(f"resume={RUN}", "learner.node_resource=spare") == 0
    first = json.loads(Path("one/recipe.json").read_text())["first_losses"]
    assert losses(str(RUN))[: len(first)] == pytest.approx(first, abs=1e-5)
    one, two = weights("one"), weights("two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert CheckpointStore(RUN / "checkpoints", keep=2).versions() == [10, 12]
    assert read_config([f"resume={RUN}"]).learner.num_ranks == 2
