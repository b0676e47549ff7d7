"""How clusters ask a run to end, and that it hears of it in time: pods of KubeRay, Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import capo_ray
from capo_ray.cli.compose import compose_train
from capo_ray.place.ending import END_S
from tests.kustomize import render
from tests.test_deploy import KUBERAY, OVERLAYS, overrides_of

ROOT = Path(capo_ray.__file__).parent.parent
END_RUN = str(ROOT / "scripts" / "end_run.sh")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Begins a run as the entrypoint of a RayJob does, its python a program that answers SIGTERM as it is told."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(on_term: str) -> subprocess.Popen[bytes]:
        (tmp_path / "python").write_text(f"#!/bin/bash\ntrap '{on_term}' TERM; touch up; while :; do sleep 0.05; done")
        (tmp_path / "python").chmod(0o755)
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CAPO_RAY_PID_FILE": str(tmp_path / "pid")}
        line = [str(ROOT / "scripts" / "train_or_resume.sh"), str(tmp_path), "one"]
        begun.append(subprocess.Popen(line, cwd=tmp_path, env=env))
        deadline = time.monotonic() + 30
        while not (tmp_path / "up").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def test_a_pod_waits_before_its_end_for_the_checkpoint_of_its_run(
    tmp_path: Path, run: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    driver = run("sleep 0.5; touch saved; exit 143")
    with subprocess.Popen([END_RUN, str(tmp_path / "pid"), "30"]) as stopping:
        assert driver.wait(timeout=30) == 143
        assert (tmp_path / "saved").exists() and stopping.poll() is None, "it waited"
        assert stopping.wait(timeout=30) == 0


def test_a_pod_with_a_run_that_hangs_ends_all_the_same(
    tmp_path: Path, run: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    driver = run(":")
    assert subprocess.run([END_RUN, str(tmp_path / "pid"), "0.3"], timeout=30).returncode == 0
    assert driver.poll() is None


def test_a_pod_without_a_run_ends_at_once_and_signals_nobody_else(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        for number in (None, other.pid, "no number", max(psutil.pids()) + 1_000_000):
            if number is not None:
                (tmp_path / "pid").write_text(f"{number}\n")
            done = subprocess.run([END_RUN, str(tmp_path / "pid"), "30"], capture_output=True, text=True, timeout=20)
            assert (done.returncode, done.stdout + done.stderr) == (0, ""), number
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_on_the_head_of_every_rayjob_has_time_for_a_checkpoint(overlay: str) -> None:
    job = render(KUBERAY / overlay)
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (head,) = pod["containers"]
    script, file, seconds = head["lifecycle"]["preStop"]["exec"]["command"]
    assert script == f"/opt/capo-ray/scripts/{Path(END_RUN).name}", "where the image has it"
    environ = {one["name"]: one.get("value") for one in head["env"]}
    assert environ["CAPO_RAY_PID_FILE"] == file
    assert job["spec"]["entrypoint"].split()[0] == "/opt/capo-ray/scripts/train_or_resume.sh"
    grace_s = compose_train(overrides_of(job)).run.stop_grace_s
    assert int(environ["RAY_JOB_STOP_WAIT_TIME_S"]) >= grace_s + END_S, "`ray job stop` waits as long, too"
    assert grace_s + END_S <= int(seconds) <= pod["terminationGracePeriodSeconds"] - 60, "Ray's own end takes 30 s"


def slurm_job(tmp_path: Path, driver: str) -> tuple[list[str], dict[str, str], Path]:
    """The batch script's line and environment among programs that only say how they were called.

    As on real nodes, `srun` passes no SIGTERM on but kills its task with SIGKILL, and the node's own name stands for
    127.0.1.1, by Debian's /etc/hosts.
    """
    (tmp_path / "debian").mkdir()
    hosts = "import socket; socket.gethostbyname = lambda _: '127.0.1.1'"
    (tmp_path / "debian" / "sitecustomize.py").write_text(hosts)
    srun = """while [ "${1#--}" != "$1" ]; do shift; done
        trap 'kill -KILL "$task"' TERM
        "$@" & task=$!; wait "$task" """
    python = f"""if [ "$1" = -c ]; then PYTHONPATH={tmp_path}/debian exec {sys.executable} "$@"; fi
        echo "$RAY_AUTH_MODE python $*" >> calls
        {driver}"""
    programs = {
        "scontrol": 'if [ "$1" = show ]; then printf "n1\\n127.0.0.2\\n"; else echo "scontrol $*" >> calls; fi',
        "srun": srun,
        "ray": 'echo "ray $*" >> calls',
        "python": python,
    }
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = {**os.environ, "CAPO_RAY_BIN": str(tmp_path / "bin"), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}
    line = ["bash", str(ROOT / "deploy" / "slurm" / "train.sbatch"), "/shared/runs", "one", "experiment=paper_7b"]
    return [*line, "data=math", "data.path=/shared/math.jsonl"], {**env, "SLURM_GPUS_ON_NODE": "8"}, tmp_path / "calls"


def test_the_slurm_job_starts_ray_on_every_node_and_a_driver_that_goes_on(tmp_path: Path) -> None:
    line, env, calls = slurm_job(tmp_path, "exit 3")
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    told = sorted(calls.read_text().splitlines())
    assert told[:2] == [
        "ray start --block --address=127.0.0.1:6379",
        "ray start --head --block --node-ip-address=127.0.0.1 --port=6379 --include-dashboard=false",
    ]
    (driver,) = (text for text in told if text.startswith("token python -m capo_ray train "))
    config = compose_train(driver.split()[5:])
    assert config.run.name == "one" and config.cluster.joined == "127.0.0.1:6379" and not config.resume
    assert config.cluster.num_nodes * config.cluster.gpus_per_node == 16 and config.cluster.wait_s > 0
    assert len(told) == 3, "nothing is queued again"
    asked = subprocess.run([*line[:2], "/shared/runs"], env=env, capture_output=True, text=True, timeout=20)
    assert asked.returncode == 2 and "expected RUNS NAME" in asked.stderr


def test_a_slurm_job_that_is_asked_to_end_waits_for_its_checkpoint_and_is_queued_again(tmp_path: Path) -> None:
    driver = 'trap "sleep 0.3; echo saved >> calls; exit 143" TERM; touch up; while :; do sleep 0.05; done'
    line, env, calls = slurm_job(tmp_path, driver)
    with subprocess.Popen(line, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 30
        while not (tmp_path / "up").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        job.terminate()
        assert job.wait(timeout=30) == 143
    assert [text for text in calls.read_text().splitlines() if "ray" not in text] == ["saved", "scontrol requeue 7"]
