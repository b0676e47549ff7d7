#!/usr/bin/env bash
# Start a Ray head of its own with token authentication (its dashboard on loopback), submit a training job to it, and
# stop that head.
# usage: scripts/submit_local.sh [override …]     e.g. scripts/submit_local.sh credit=grpo run.num_updates=4
# Exit code: the job's. Other Ray instances of this machine are left alone: only processes of this head are ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin=${CAPO_RAY_BIN:-$PWD/.venv/bin}
deadline_s=${DEADLINE_S:-120}
if [[ ! -x $bin/ray ]]; then
  echo "expected Ray in $bin, found none; run make install, or set CAPO_RAY_BIN" >&2
  exit 1
fi

# Unix sockets hold about 100 characters, so the folder has a short name of its own.
folder=$(mktemp -d /tmp/cr.XXXXXX)
umask 077
"$bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$folder/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token" RAY_USAGE_STATS_ENABLED=0
export PATH="$bin:$PATH"
unset RAY_ADDRESS RAY_AUTH_TOKEN

read -r gcs dashboard agent client < <("$bin/python" - <<'PY'
import socket
held = [socket.socket() for _ in range(4)]
for s in held:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))
PY
)

head=""
job="capo-ray-$$"
submitted=""
finish() {
  if [[ -n $submitted ]]; then # interrupted: let the run end well before its cluster goes; Ray itself cuts it off in the end
    timeout 600 "$bin/ray" job stop --address "http://127.0.0.1:$dashboard" "$job" >/dev/null 2>&1 || true
  fi
  if [[ -n $head ]] && kill -0 "$head" 2>/dev/null; then
    kill -TERM "$head" 2>/dev/null || true
    for _ in $(seq 200); do
      kill -0 "$head" 2>/dev/null || break
      sleep 0.1
    done
  fi
  # What survives of this head's own session, and nothing else.
  if [[ -n $head ]] && ps -o pid= -s "$head" >/dev/null; then
    ps -o pid= -s "$head" | xargs -r kill -KILL 2>/dev/null || true
  fi
  rm -rf "$folder"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# nproc gives OMP_NUM_THREADS where that is set, which says nothing of the CPUs that there are.
setsid "$bin/ray" start --head --block --node-ip-address=127.0.0.1 --port="$gcs" --num-cpus="${NUM_CPUS:-$(env -u OMP_NUM_THREADS nproc)}" \
  --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --dashboard-agent-listen-port="$agent" \
  --ray-client-server-port="$client" \
  --object-store-memory=$((256 << 20)) --temp-dir="$folder/ray" >"$folder/head.log" 2>&1 &
head=$!

until curl -sf -o /dev/null -H "Authorization: Bearer $(<"$folder/token")" "http://127.0.0.1:$dashboard/api/version"; do
  if ! kill -0 "$head" 2>/dev/null || (( SECONDS > deadline_s )); then
    echo "expected a Ray head on port $gcs within $deadline_s s, got:" >&2
    tail -n 20 "$folder/head.log" >&2
    exit 1
  fi
  sleep 0.5
done
if curl -sf -o /dev/null "http://127.0.0.1:$dashboard/api/version"; then
  echo "expected the head to refuse a request without a token, but it answered; check RAY_AUTH_MODE" >&2
  exit 1
fi
submitted=yes
code=0
"$bin/python" -m capo_ray submit --follow --address "http://127.0.0.1:$dashboard" --submission-id "$job" --python "$bin/python" \
  "run.dir=$PWD/runs" "$@" || code=$?
submitted=""
exit "$code"
