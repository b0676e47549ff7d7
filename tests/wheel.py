"""The wheel, built and installed once for all processes of the tests, without network and away from the checkout."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("capo_ray", "conf", "pyproject.toml", "README.md", "LICENSE")


def shared_wheel(folder: Path) -> Path:
    """The wheel in `folder`/dist, beside which `folder`/site has it installed; whoever comes first makes both."""
    if int(version("setuptools").split(".")[0]) < 78:
        pytest.skip("the build backend is older than pyproject.toml asks for: pip install 'setuptools>=78'")
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "site" / "bin" / "capo-ray").is_file():
            _make(folder)
    (path,) = (folder / "dist").glob("capo_ray-*.whl")
    return path


def outside(site: Path) -> dict[str, str]:
    """What a program's environment must say for it to find this installation, and nothing of the checkout."""
    return {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": ""}


def _make(folder: Path) -> None:
    """Of a copy, since a build leaves its own folders beside the sources."""
    copy = folder / "sources"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    offline = ["-q", "--no-deps", "--no-index"]
    _pip("wheel", *offline, "--no-build-isolation", "-w", str(folder / "dist"), str(copy))
    (path,) = (folder / "dist").glob("capo_ray-*.whl")
    _pip("install", *offline, "--no-compile", "--target", str(folder / "site"), str(path))


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True, timeout=200)
