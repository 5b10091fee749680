#!/usr/bin/env bash
# Start llama-server with settings optimised for streaming, and keep it in the foreground.
#
#   scripts/start_llama_optimized.sh [further flags of `llamastream serve` or of llama-server]
#
# Variables (all optional):
#   MODEL         GGUF file to serve; without it the bundled demo model
#   BACKUP_MODEL  GGUF file to serve when MODEL is not there
#   HOST, PORT    where to listen (127.0.0.1, 8080)
#   THREADS       CPU threads for decode (the usable physical cores)
#   PARALLEL      slots: requests generated at the same time (4)
#   CTX_SIZE      context of each slot, in tokens (the model's, at most 8192)
#
# On its first run it sets up .venv beside this directory; that needs Python 3.11 or newer and a package index.
set -eu

case "${1:-}" in
  -h | --help)
    sed -n '2,/^set -eu/p' "$0" | sed -e '/^set -eu/d' -e 's/^# \{0,1\}//'
    exit 0
    ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
llamastream=$root/.venv/bin/llamastream
if [ ! -x "$llamastream" ] || [ ! -e "$root/.venv/.ready" ]; then
  echo "first run: setting up $root/.venv" >&2
  make -C "$root" --no-print-directory setup >&2
fi

model=${MODEL:-}
if [ -n "$model" ] && [ ! -f "$model" ] && [ -n "${BACKUP_MODEL:-}" ]; then
  echo "MODEL=$model is not there; using BACKUP_MODEL=$BACKUP_MODEL" >&2
  model=$BACKUP_MODEL
fi
model=${model:-${BACKUP_MODEL:-}}

# One option for each variable that is set. `set --` rather than an array: bash 3.2, as on macOS, has no empty arrays.
[ -z "${CTX_SIZE:-}" ] || set -- --ctx-size "$CTX_SIZE" "$@"
[ -z "${PARALLEL:-}" ] || set -- --parallel "$PARALLEL" "$@"
[ -z "${THREADS:-}" ] || set -- --threads "$THREADS" "$@"
[ -z "${PORT:-}" ] || set -- --port "$PORT" "$@"
[ -z "${HOST:-}" ] || set -- --host "$HOST" "$@"
[ -z "$model" ] || set -- --model "$model" "$@"
exec "$llamastream" serve "$@"
