#!/usr/bin/env bash
# The entrypoint of the image: runs a job's command as process 1's own, so that it gets SIGTERM.
set -euo pipefail
# A run keeps many files of its text and checkpoints open at a time.
ulimit -n "$(ulimit -H -n)"
export PYTHONUNBUFFERED=1
exec "$@"
