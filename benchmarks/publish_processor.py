"""Processor seconds of a publish, its two ends without what is between: no Ray, no engine, nothing waits.

    make bench NAME=publish_processor [ARGS="--models laptop,135M --lora-rank 16 --adapters merged,alone --repeats 5"]

Of the learner: gather and seal. Of an engine, what it does until vLLM's loaders: bytes hashed and compared, and made
whole, each tensor read once. A busy machine gives the same figures.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from publish import write_model
from records import record

from capo_ray.config.lora import LoraConfig
from capo_ray.config.loss import LossConfig
from capo_ray.config.sections import LearnerConfig
from capo_ray.engines import EngineSpec
from capo_ray.engines.swap import contents_of, verify_for
from capo_ray.learners import Learner, LearnerSpec
from capo_ray.weights import PayloadWriter, Witness, iterate_tensors


def measure(size: str, dtype: str, adapters: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model in one dtype."""
    lora = LoraConfig(rank=args.lora_rank)
    alone = bool(lora.rank) and adapters == "alone"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        params = write_model(Path(folder), size)
        learner = Learner(
            LearnerSpec(
                model_path=folder,
                dtype=dtype,
                learner=LearnerConfig(num_threads=args.threads, backend="torch", lora=lora),
                loss=LossConfig(kl_coef=0.0),
                temperature=1.0,
                total_updates=1,
                device="cpu",
                adapters_alone=alone,
            )
        )
        spec = EngineSpec(model_path=folder, dtype=dtype, adapters=lora if alone else None)  # type: ignore[arg-type]
        contents = contents_of(spec, True)
        writer, witness = PayloadWriter(args.threads), Witness(args.threads, learner.require_files_weights())
        for version in range(args.repeats + 1):
            start = time.process_time()
            writer.begin(version, learner.sent_bytes)
            learner.visit_weights(writer.add)
            witness.begin(version)
            learner.visit_weights(witness.add)
            handle = writer.seal(witness, None)
            sent = time.process_time()
            manifest = verify_for(handle, contents)
            total = sum(float(t.sum()) for _, t in contents.whole(iterate_tensors(manifest, handle.payload)))
            assert math.isfinite(total)
            rows.append((sent - start, time.process_time() - sent, float(manifest.payload_bytes)))
    first, rows = rows[0], rows[1:]
    names = ("learner_cpu_s", "engine_cpu_s", "sent_bytes")
    return {
        "model": size,
        "parameters": params,
        "dtype": dtype,
        "lora_rank": lora.rank,
        "adapters": adapters if lora.rank else "",
        "first_engine_cpu_s": first[1],
        **{name: statistics.median(row[i] for row in rows) for i, name in enumerate(names)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="laptop,135M")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--lora-rank", type=int, default=16, help="0: the model itself is trained")
    parser.add_argument("--adapters", default="merged,alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the learner, as learner.num_threads")
    parser.add_argument("--out", type=Path, default=record("publish_processor.json"))
    args = parser.parse_args()
    rows = []
    for kind in product(args.models.split(","), args.dtypes.split(","), args.adapters.split(",")):
        rows.append(measure(*kind, args))
        print(json.dumps(rows[-1]), flush=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
