"""The wheel is the whole program: built without network, unpacked elsewhere, it works where there is no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("capo_ray", "conf", "pyproject.toml", "README.md", "LICENSE")
WORK = """
import sys, pathlib, capo_ray, capo_ray.cli as cli, capo_ray.view.server
assert pathlib.Path(capo_ray.__file__).is_relative_to(sys.argv[1]), capo_ray.__file__
assert cli.main(["train", "credit=grpo", "experiment=novice", "--dry-run", "--json"]) == 0
print("--", flush=True)
assert cli.main(["credit", "capo", "--input", "groups.jsonl", "--json"]) == 0
print("--", flush=True)
assert cli.main(["verify", "--input", "pairs.jsonl", "--processes", "1"]) == 0
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, since a build leaves its own folders beside the sources."""
    if int(version("setuptools").split(".")[0]) < 78:
        pytest.skip("the build backend is older than pyproject.toml asks for: pip install 'setuptools>=78'")
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    words = [
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(copy / "dist"),
        str(copy),
    ]
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, timeout=200)
    (path,) = (copy / "dist").glob("capo_ray-*.whl")
    return path


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
def test_the_installed_wheel_plans_credits_and_verifies_far_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    words = ["pip", "install", "-q", "--no-deps", "--no-index", "--no-compile", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, timeout=100)
    shutil.copy(ROOT / "examples" / "saved_rollouts.jsonl", tmp_path / "groups.jsonl")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"answer": "3", "response": "The answer is 3."}) + "\n")
    env = {**os.environ, "PYTHONPATH": str(site)}

    def printed(*line: str) -> str:
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    plan, credited, verdict = printed(sys.executable, "-c", WORK, str(site)).split("--\n")
    assert json.loads(plan)["config"]["credit"]["method"] == "grpo"
    assert len(json.loads(credited)["responses"]) == 2
    assert json.loads(verdict) == {"reward": 1, "reason": "right", "extracted": "3"}
    assert "capo-ray COMMAND" in printed(str(site / "bin" / "capo-ray"), "--help")
    assert not [*site.rglob("_conf/*.pyc")] and (site / "capo_ray" / "view" / "static").is_dir()
