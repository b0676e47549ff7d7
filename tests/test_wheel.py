"""The wheel is the whole program: built without network, unpacked elsewhere, it works where there is no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.wheel import ROOT, outside

WORK = """
import sys, pathlib, capo_ray, capo_ray.cli as cli, capo_ray.view.server
assert pathlib.Path(capo_ray.__file__).is_relative_to(sys.argv[1]), capo_ray.__file__
assert cli.main(["train", "credit=grpo", "experiment=novice", "--dry-run", "--json"]) == 0
print("--", flush=True)
assert cli.main(["credit", "capo", "--input", "groups.jsonl", "--json"]) == 0
print("--", flush=True)
assert cli.main(["verify", "--input", "pairs.jsonl", "--processes", "1"]) == 0
"""


@pytest.mark.slow
def test_the_wheel_carries_what_the_package_reads(wheel: Path) -> None:
    """Every tracked file of the package, and what `_conf` links to."""
    listed = subprocess.run(["git", "ls-files", "capo_ray", "conf"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the sources are no clone, so which files belong to the package is not known")
    tracked = {re.sub(r"^conf/", "capo_ray/_conf/", line) for line in listed.stdout.splitlines()} - {"capo_ray/_conf"}
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    tracked = {name for name in tracked if (ROOT / name.replace("capo_ray/_conf/", "conf/")).is_file()}
    missing = sorted(name for name in tracked - names if not name.endswith(".md"))
    assert missing == [] and len(tracked) > 300
    extras = set(re.findall(r"^Provides-Extra: (.+)$", metadata, flags=re.MULTILINE))
    assert {"cpu", "gpu", "view", "parity"} <= extras


@pytest.mark.slow
def test_the_installed_wheel_plans_credits_and_verifies_far_from_the_checkout(site: Path, tmp_path: Path) -> None:
    """It trains in the main job's tests."""
    shutil.copy(ROOT / "examples" / "saved_rollouts.jsonl", tmp_path / "groups.jsonl")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"answer": "3", "response": "The answer is 3."}) + "\n")

    def printed(*line: str) -> str:
        done = subprocess.run(
            line, cwd=tmp_path, env=os.environ | outside(site), capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    plan, credited, verdict = printed(sys.executable, "-c", WORK, str(site)).split("--\n")
    assert json.loads(plan)["config"]["credit"]["method"] == "grpo"
    assert len(json.loads(credited)["responses"]) == 2
    assert json.loads(verdict) == {"reward": 1, "reason": "right", "extracted": "3"}
    assert "capo-ray COMMAND" in printed(str(site / "bin" / "capo-ray"), "--help")
    assert not [*site.rglob("_conf/*.pyc")] and (site / "capo_ray" / "view" / "static").is_dir()
