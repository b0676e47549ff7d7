"""How clusters ask a run to end, and that it hears of it in time: Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import capo_ray
from capo_ray.cli.compose import compose_train

ROOT = Path(capo_ray.__file__).parent.parent


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
