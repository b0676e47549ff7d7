#!/usr/bin/env bash
# Ask the run that train_or_resume.sh began here to save a checkpoint and end, and wait for that: what a pod calls before its
# end (preStop). Kubernetes itself signals a container's first process alone, which is Ray's, and Ray ends a run by SIGKILL.
# usage: end_run.sh PID_FILE SECONDS     e.g. end_run.sh /tmp/capo-ray.pid 240     (CAPO_RAY_PID_FILE of train_or_resume.sh)
# Exit code 0 once the run has ended, where there is none, and after SECONDS, for the pod ends in any case.
set -euo pipefail
if (( $# != 2 )); then
  echo "expected PID_FILE SECONDS, got $# words" >&2
  exit 2
fi
pid=$(cat "$1" 2>/dev/null) || exit 0
# The run may have ended long ago, and its number stand for another process, which is left alone.
words=$(tr '\0' ' ' 2>/dev/null < "/proc/$pid/cmdline") || exit 0
[[ $words == *" -m capo_ray train "* ]] || exit 0
kill -TERM "$pid" 2>/dev/null || exit 0
timeout "$2" tail --pid="$pid" --sleep-interval=0.2 --follow /dev/null || true
