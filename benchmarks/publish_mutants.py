"""Wrong weights that must not serve, and right ones that must: every mutant, in fp32 and bf16, on the shipped policy.

    make bench NAME=publish_mutants [ARGS="--clean 1000 --repeats 5"]

A chain of versions is made by random steps of an update's size (every weight by learning rate x moves, up or down). A
mutant goes wrong in one of three places:
    transit   after the sender sealed the manifest and told the driver its fingerprint
    sender    before: names or tensors are mixed up in all that the sender sees, so that checksums fit; or what it
              gathered is older than what the model holds, and scores a canary with
    engine    whole weights arrive, the engine does not load them all
What a sender's mutant does to the logprobs is measured in fp32 by transformers (`effect_nats`, the mean over the
canary); `at_start`: the learner's own check of its names against the model's files ends the run before an update.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from capo_ray.engines import EngineSpec, VllmEngine
from capo_ray.learners.file_names import Files, require_files_weights
from capo_ray.learners.microbatch import to_inputs
from capo_ray.learners.policy import load_policy
from capo_ray.place.agreement import CANARY_TOKENS, START_TOKENS
from capo_ray.protocols import PartLost, RunFailed, WeightsHandle
from capo_ray.weights import (
    Apart,
    Canary,
    WeightsRefused,
    WireLost,
    allowance,
    apart,
    build_handle,
    read_manifest,
)

sys.path.insert(0, str(Path(__file__).parent))
from publish_mutants_parts import State, engine_mutants, sender_mutants, transit_mutants
from records import record
from wire import Mutant, Wire, wire_mutants

STEP = 4e-4  # learning rate 1e-4 x four moves


class World:
    """An engine and a learner's forward pass over the same model, in one dtype."""

    def __init__(self, path: str, dtype: str) -> None:
        self.path, self.dtype = path, dtype
        spec = EngineSpec(model_path=path, dtype=dtype, max_model_len=256, kv_cache_gib=0.1, deadline_s=60)  # type: ignore[arg-type]
        self.engine = VllmEngine(spec)
        self.engine.start()
        self.policy = load_policy(path, dtype)
        self.exact = load_policy(path, "float32")
        generator = torch.Generator().manual_seed(7)
        digits = self.engine.tokenizer.encode("0123456789+-=\n")
        picks = torch.randint(len(digits), (START_TOKENS,), generator=generator)
        ids = tuple(digits[i] for i in picks)
        self.ids = ids[:CANARY_TOKENS]
        self.files = Files(path)
        first = {n.removeprefix("model."): p.detach().clone() for n, p in self.policy.named_parameters()}
        (scores,) = asyncio.run(self.engine.score([ids], [1]))
        self.noise = apart(scores, self.logprobs(first, ids=ids))
        self.allowed = allowance(dtype, self.noise)
        self.versions = {0: first}
        masters = {n: t.float() for n, t in first.items()}
        for version in range(1, 10):
            masters = {n: t + STEP * torch.randn(t.shape, generator=generator).sign() for n, t in masters.items()}
            self.versions[version] = {n: t.to(first[n].dtype) for n, t in masters.items()}

    def logprobs(
        self, state: Mapping[str, torch.Tensor], exact: bool = False, ids: tuple[int, ...] = ()
    ) -> tuple[float, ...]:
        """The logprobs of `ids`, or of the canary, by transformers, in the world's dtype or in fp32."""
        policy = self.exact if exact else self.policy
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                parameter.copy_(state[name.removeprefix("model.")])
            inputs = to_inputs([ids or self.ids], [1], torch.device("cpu"))
            return tuple(policy(inputs, 1.0)[0].tolist())

    def canary(self, state: State) -> Canary:
        """What a learner of weights `state` sends."""
        return Canary(self.ids, self.logprobs(state), self.allowed)

    def verdict(self, handle: WeightsHandle) -> str:
        """Why the engine refuses the handle, or nothing."""
        try:
            asyncio.run(self.engine.load_weights(handle))
        except WeightsRefused as error:
            return str(error)
        return ""

    wire: Wire
    """To the engine that there is when the mutants of the wire begin."""

    def verdict_of(self, mutant: Mutant) -> str:
        """Why the engine does not hold what came in buckets in place of version 9, or nothing."""
        right, way, announced = self.versions[9], mutant.on_the_way, mutant.announced
        try:
            self.wire.publish(mutant.sent, 9, self.canary(right), right, on_the_way=way, announced=announced)
        except WireLost as error:
            self.wire = Wire(self.engine)  # a member left the group
            return str(error)
        except WeightsRefused as error:
            return str(error)
        return ""

    def effect(self, state: State) -> float:
        """How far `state` lies from version 9, in nats of the mean canary token."""
        return apart(self.logprobs(state, exact=True), self.logprobs(self.versions[9], exact=True)).mean


def refused_by_files(world: World, state: State) -> str:
    """What the learner's own check at its start says to the mapping that made `state` of version 9.

    A mapping that mixes names up does so at version 0 as well, where the files are at hand.
    """
    try:
        require_files_weights(state, world.files, world.path)
    except RunFailed as error:
        return str(error)
    return ""


def run(path: str, dtype: str, repeats: int, clean: int) -> dict[str, Any]:
    """The rows of one dtype, and how many clean publishes were refused."""
    world = World(path, dtype)
    good, old = (build_handle(world.versions[v], v, world.canary(world.versions[v])) for v in (9, 8))
    rows = []

    def note(place: str, name: str, verdicts: list[str], effect: float | None, at_start: str = "") -> None:
        by = sorted({reason_of(v) for v in verdicts})
        refused = sum(map(bool, verdicts))
        rows.append(
            {
                "place": place,
                "mutant": name,
                "refused": refused,
                "of": len(verdicts),
                "by": by,
                "at_start": bool(at_start),
                "effect_nats": effect,
            }
        )
        print(
            f"{dtype:9} {place:8} {name:45} {refused}/{len(verdicts)} {by} start={bool(at_start)} {effect}", flush=True
        )

    for name, handle in transit_mutants(good, old):
        note("transit", name, [world.verdict(handle) for _ in range(repeats)], None)
    older = {back: world.versions[9 - back] for back in (1, 8)}
    right = world.versions[9]
    mixed_at_start = {name: state for name, state, _ in sender_mutants(world.versions[0], {})}
    for name, state, mistaken in sender_mutants(right, older):
        sealed = build_handle(state, 9, world.canary(right), held=state if mistaken else right)
        whole = state.keys() == right.keys()
        effect = world.effect(state) if whole else None
        at_start = refused_by_files(world, mixed_at_start[name]) if name in mixed_at_start and whole else ""
        note("sender", name, [world.verdict(sealed) for _ in range(repeats)], effect, at_start)
    for name, going in engine_mutants():
        verdicts = []
        for _ in range(repeats):
            before = world.versions[8]
            world.engine._stepper.held = None
            assert not world.verdict(build_handle(before, 8, world.canary(before)))
            try:
                with going(world.engine):
                    verdicts.append(world.verdict(good))
            except PartLost as error:  # half-loaded weights cannot be mended: the pool would start another engine
                verdicts.append(str(error))
                world.engine.close()
                world.engine = VllmEngine(world.engine.spec)
                world.engine.start()
        note("engine", name, verdicts, None)
    world.wire = Wire(world.engine)
    for mutant in wire_mutants(right, world.versions[8], read_manifest(old.manifest)):
        note("wire", mutant.name, [world.verdict_of(mutant) for _ in range(repeats)], None)
    alarms, distances = clean_publishes(world, clean)
    world.engine.close()
    return {
        "dtype": dtype,
        "noise_at_version_0": dataclasses.asdict(world.noise),
        "allowed": dataclasses.asdict(world.allowed),
        "clean_publishes": clean,
        "clean_refused": alarms,
        "clean_mean_nats_max": max((d.mean for d in distances), default=0.0),
        "clean_worst_nats_max": max((d.worst for d in distances), default=0.0),
        "mutants": rows,
    }


def clean_publishes(world: World, count: int) -> tuple[int, list[Apart]]:
    """How many right versions were refused, and how far engine and learner lay apart at each."""
    generator = torch.Generator().manual_seed(11)
    masters = {n: t.float() for n, t in world.versions[9].items()}
    alarms, distances = 0, []
    for version in range(10, 10 + count):
        masters = {n: t + STEP / 8 * torch.randn(t.shape, generator=generator).sign() for n, t in masters.items()}
        state = {n: t.to(world.versions[0][n].dtype) for n, t in masters.items()}
        canary = world.canary(state)
        if version % 2:
            alarms += bool(world.verdict(build_handle(state, version, canary)))
        else:
            try:
                world.wire.publish(state, version, canary)
            except WeightsRefused:
                alarms += 1
        held = world.engine._stepper.held
        if held is not None and held.version == version:
            distances.append(apart(held.engine, held.learner))
        if (version - 9) % 100 == 0:
            far = max((d.mean for d in distances), default=0.0)
            print(
                f"{world.dtype:9} {version - 9} clean publishes, {alarms} refused, mean at most {far:.4f}", flush=True
            )
    return alarms, distances


def reason_of(verdict: str) -> str:
    """Which check refused."""
    words = {
        "come with the tensors": "places",
        "announced": "fingerprint",
        "is damaged": "checksum",
        "bytes, expected": "size",
        "cannot be read": "manifest",
        "its manifest": "version",
        "differ from": "canary",
        "exactly as under": "stale scores",
        "does not hold": "names",
        "was sent no weights": "layers",
        "not sent all": "layers",
        "did not come whole": "wire",
        "ended within": "wire",
    }
    return next((name for word, name in words.items() if word in verdict), verdict[:60] or "not refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--out", type=Path, default=record("publish_mutants.json"))
    args = parser.parse_args()
    from capo_ray.problems import asset_path

    started = time.perf_counter()
    path = str(asset_path("laptop", "policy"))
    results = [run(path, dtype, args.repeats, args.clean) for dtype in args.dtypes.split(",")]
    for result in results:
        print({key: value for key, value in result.items() if key != "mutants"})
    args.out.write_text(json.dumps({"seconds": time.perf_counter() - started, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
