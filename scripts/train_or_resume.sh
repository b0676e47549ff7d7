#!/usr/bin/env bash
# Train into RUNS/NAME, or go on with it where it already holds a run: what a job that may be started again calls.
# usage: train_or_resume.sh RUNS NAME [override …]     e.g. train_or_resume.sh /shared/runs capo-1 credit=capo
# CAPO_RAY_PID_FILE, where it is set, is told the run's process id, by which end_run.sh finds it.
set -euo pipefail
if (( $# < 2 )); then
  echo "expected RUNS NAME [override …], got $# words" >&2
  exit 2
fi
runs=$1 name=$2
shift 2
[[ -z "${CAPO_RAY_PID_FILE:-}" ]] || echo $$ > "$CAPO_RAY_PID_FILE" # exec keeps it
# What the line has changed since the run began is taken, or refused in a sentence (docs/runs.md).
exec python -m capo_ray train resume=auto "run.dir=$runs" "run.name=$name" "$@"
