"""`capo-ray train --dry-run --check`: what a plan names is tried out here, and what the run would cost.

    models      every weights file read (the first part of each), the tokenizer used
    judge       two steps, one of them wrong, sent to a critic behind an API
    disks       room for the checkpoints that are kept, and for published weights in /dev/shm
    ports       somebody can listen on this machine
    cost        GPU-hours of 100 updates, by the plan's assumed rates or the resumed run's own seconds

Invariant: nothing of a run is started and nothing is left behind; a probe that fails is told, and others still go on.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capo_ray.cli.critique_judging import Setting, judge_settings
from capo_ray.cli.memory import policy_of
from capo_ray.cli.memory_ranks import DTYPE_BYTES
from capo_ray.cli.models import find_model
from capo_ray.cli.pace import estimate_pace
from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques
from capo_ray.critics.layouts import Solution
from capo_ray.demand import in_all, models
from capo_ray.protocols import RunFailed
from capo_ray.runs.reading import Run
from capo_ray.types import Problem

READ_BYTES = 64 << 20
"""Of each weights file."""
GIB = 1 << 30
STATE_BYTES = 12
"""Of a checkpoint per parameter, beside the policy's own weights: fp32 masters and Adam's two."""
UPDATES = 100
RECENT = 20
"""Updates of a resumed run whose seconds are taken."""
QUESTION = Solution(1, "", Problem("probe", "What is 2+3+1?", "6"), ("2+3 = 5", "5+1 = 7"), frozenset({1}), False)


@dataclass(frozen=True, slots=True)
class Probe:
    """What one probe found, in words; `bad`: a run would fail by it."""

    what: str
    state: Literal["ok", "note", "bad"]
    words: str


def probe(config: TrainConfig, price: float | None) -> list[Probe]:
    """All probes; `price` is that of one GPU for an hour."""
    found: list[Probe] = []
    for what, one in (
        ("models", lambda: _models(config)),
        ("judge", lambda: _judge(config)),
        ("disk", lambda: _disk(config)),
        ("/dev/shm", lambda: _shm(config)),
        ("ports", _ports),
        ("cost", lambda: _cost(config, price)),
    ):
        found += _tried(what, one)
    return found


def to_text(probes: Sequence[Probe]) -> str:
    """A line each."""
    return "\n".join(["# tried out", *(f"{one.state:<5}{one.what:<10}{one.words}" for one in probes)])


def _tried(what: str, one: Callable[[], Iterator[Probe]]) -> list[Probe]:
    found: list[Probe] = []
    try:
        found.extend(one())
    except (RunFailed, OSError, ValueError) as error:
        found.append(Probe(what, "bad", " ".join(str(error).split())))
    return found


def _models(config: TrainConfig) -> Iterator[Probe]:
    for model in models(config):
        folder = find_model(model.name, model.shipped)
        if folder is None:
            yield Probe("models", "note", f"{model.key}={model.name} is not here; the run fetches it when it starts")
            continue
        files = sorted(folder.glob("*.safetensors"))
        size, began = sum(path.stat().st_size for path in files), time.monotonic()
        read = sum(_read(path) for path in files)
        rate = read / max(time.monotonic() - began, 1e-6)
        words = f"{model.key}={model.name}: {len(files)} file(s), {size / GIB:.2f} GiB, read at {rate / GIB:.1f} GiB/s"
        yield Probe("models", "ok", words)
        yield _tokenizer(folder, model.key)


def _read(path: Path) -> int:
    """The bytes that were read of a file, as far as they are looked at."""
    count = 0
    with path.open("rb") as file:
        while count < READ_BYTES and (part := file.read(8 << 20)):
            count += len(part)
    return count


def _tokenizer(folder: Path, key: str) -> Probe:
    from capo_ray.engines import HfTokenizer

    text = "2+3 = 5"
    try:
        tokenizer = HfTokenizer(folder)
        back = tokenizer.decode(tokenizer.encode(text))
    except Exception as error:  # noqa: BLE001 the libraries raise what they like, bare `Exception` too; told as bad
        return Probe(
            "models", "bad", f"{key}: the tokenizer in {folder} cannot be used: {' '.join(str(error).split())}"
        )
    if back != text:
        words = f"{key}: the tokenizer gives {back!r} back for {text!r}; critics and verifiers read what it gives"
        return Probe("models", "note", words)
    return Probe(
        "models", "ok", f"{key}: the tokenizer has {tokenizer.vocab_size:,} ids and gives a text back as it was"
    )


def _judge(config: TrainConfig) -> Iterator[Probe]:
    asked = config.credit.asked(Critiques)
    if asked is None or config.critic.backend != "endpoint":
        return
    critic = config.critic.model_copy(update={"early_stop": False, "canary_every": 0, "store": ""})
    began = time.monotonic()
    (((judgement,), _),) = asyncio.run(judge_settings([Setting("", config, critic, asked.vote)], [QUESTION]))
    seconds, votes = time.monotonic() - began, judgement.critiques
    valid = [vote for vote in votes if vote.flagged is not None]
    where = f"{critic.endpoint.model} at {critic.endpoint.base_url}"
    if not valid:
        reason = votes[0].reason if votes else "no answer"
        yield Probe("judge", "bad", f"{where}: none of {len(votes)} critiques could be read ({reason})")
        return
    right = sum(vote.flagged == QUESTION.wrong for vote in valid)
    tokens = sum(vote.provenance.output_tokens for vote in votes)
    yield Probe(
        "judge",
        "ok" if right else "note",
        f"{where}: {len(valid)} of {len(votes)} critiques read after {seconds:.1f} s, {tokens} tokens; "
        f"{right} of them found the wrong step of a sum",
    )


def _disk(config: TrainConfig) -> Iterator[Probe]:
    folder = Path(config.run.dir).expanduser().absolute()
    while not folder.is_dir():
        folder = folder.parent
    free, size = shutil.disk_usage(folder).free, policy_of(config).num_params
    if not size:
        yield Probe("disk", "note", f"{free / GIB:.1f} GiB free in {folder}; the policy's size is not known here")
        return
    needed = size * (STATE_BYTES + DTYPE_BYTES[config.model.dtype]) * (config.run.keep_checkpoints + 1)
    words = (
        f"{free / GIB:.1f} GiB free in {folder}; run.keep_checkpoints={config.run.keep_checkpoints} and the one being "
        f"written take {needed / GIB:.1f}"
    )
    yield Probe("disk", "ok" if free > needed else "bad", words)


def _shm(config: TrainConfig) -> Iterator[Probe]:
    from capo_ray.place.cluster import object_store_bytes

    if config.cluster.joined:
        return
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        yield Probe("/dev/shm", "note", "there is none; Ray's objects then lie on the disk")
        return
    needed = object_store_bytes(config)
    words = f"{free / GIB:.1f} GiB free; Ray's object store takes {needed / GIB:.1f}"
    yield Probe("/dev/shm", "ok" if free >= needed else "note", words)


def _ports() -> Iterator[Probe]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with socket.create_connection(listening.getsockname(), timeout=5):
            yield Probe("ports", "ok", "one was opened on loopback, and reached")


def _cost(config: TrainConfig, price: float | None) -> Iterator[Probe]:
    """Of all GPUs that the run holds, busy or idle."""
    cluster = config.cluster
    gpus = max(in_all(config)[1], cluster.num_nodes * cluster.gpus_per_node)
    seconds, how = _seconds(config)
    if seconds is None:
        yield Probe("cost", "note", f"{how}; resume a run of a few updates with --check to have its own seconds")
        return
    words = f"{UPDATES} updates take {UPDATES * seconds / 3600:.2f} h {how}"
    if gpus:
        hours = gpus * UPDATES * seconds / 3600
        words += f", {hours:,.1f} GPU-hours on {gpus:g} GPUs"
        words += f", {hours * price:,.2f} at {price:g} an hour" if price else "; --price X tells the money"
    yield Probe("cost", "ok", words)


def _seconds(config: TrainConfig) -> tuple[float | None, str]:
    """The seconds of an update, and where they are from."""
    if config.resume:
        parts = ("time/wait_for_batch_s", "time/update_s", "time/publish_s")
        run = Run(Path(config.resume).expanduser())
        rows = [row for row in run.rows() if all(part in row for part in parts)][-RECENT:]
        if rows:
            each = [sum(float(row[part]) for part in parts) for row in rows]
            return sum(each) / len(each), f"by the last {len(rows)} of the run (without evaluations)"
    if pace := estimate_pace(config):
        return max(tier.seconds for tier in pace), "by assumed rates"
    return None, "no estimate: it needs all tiers on GPUs, models of known shape and cluster.gpu_memory_gib"
