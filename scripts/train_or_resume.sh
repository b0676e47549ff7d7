#!/usr/bin/env bash
# Train into RUNS/NAME, or go on with it where it already holds a run: what a job that may be started again calls.
# usage: train_or_resume.sh RUNS NAME [override …]     e.g. train_or_resume.sh /shared/runs capo-1 credit=capo
set -euo pipefail
if (( $# < 2 )); then
  echo "expected RUNS NAME [override …], got $# words" >&2
  exit 2
fi
runs=$1 name=$2
shift 2
if [[ -f "$runs/$name/config.yaml" ]]; then
  # The run's own configuration stands; choices cannot change under it, so the overrides are not given again.
  if compgen -G "$runs/$name/checkpoints/v*" >/dev/null; then
    exec python -m capo_ray train "resume=$runs/$name"
  fi
  # It ended before its first checkpoint: nothing is given up by beginning again.
  exec python -m capo_ray train "resume=$runs/$name" run.from_zero=true
fi
exec python -m capo_ray train "run.dir=$runs" "run.name=$name" "$@"
