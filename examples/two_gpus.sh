#!/usr/bin/env bash
# One GPU for the learner, one shared by the rollout engine and the critic: a 1.5B policy and a 1.5B critic.
#   examples/two_gpus.sh data.path=train.jsonl --dry-run     the plan: placement, batches, memory; starts nothing
#   examples/two_gpus.sh data.path=train.jsonl               the run
set -euo pipefail
exec "${CAPO_RAY:-.venv/bin/capo-ray}" train \
    engine=gpu engine.num_gpus=0.5 engine.gpu_memory_frac=0.45 \
    critic=qwen2_5_7b critic.model=Qwen/Qwen2.5-1.5B-Instruct \
    critic.placement=colocated critic.num_gpus=0.5 critic.gpu_memory_frac=0.45 \
    learner=gpu learner.num_ranks=1 \
    model=qwen2_5_1_5b data=gsm8k \
    "$@"
