#!/usr/bin/env bash
# Runs a command with its output in a log, and says every 5 s how far it is.
# Guarantee: never silent for more than 6 s; on failure the end of the log and its path are shown,
# and the exit status is the command's own.
# Usage: scripts/progress.sh WHAT LOG COMMAND...
set -euo pipefail

last_line() { # short, and rather news than a warning
  tail -n 20 "$log" | tr '\r' '\n' | sed -E '/^ *WARNING/d; s/^ +//' | tail -n 1 | cut -c -70
}

what=$1 log=$2
shift 2
mkdir -p "$(dirname "$log")"
"$@" >"$log" 2>&1 </dev/null &
job=$!
trap 'kill "$job" 2>/dev/null; exit 130' INT TERM

echo "$what"
began=$SECONDS
while kill -0 "$job" 2>/dev/null; do
  for _ in 1 2 3 4 5; do
    sleep 1
    kill -0 "$job" 2>/dev/null || break 2
  done
  printf '  [%3d s] %s\n' $((SECONDS - began)) "$(last_line)"
done

status=0
wait "$job" || status=$?
if ((status)); then
  printf '%s: failed with status %d; the end of %s:\n' "$what" "$status" "$log" >&2
  tail -n 20 "$log" | sed 's/^/  | /' >&2
fi
exit "$status"
