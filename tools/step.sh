#!/bin/sh
# Runs one step of the tests quietly: its output is shown when it fails.
set -eu
name=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if "$@" >"$log" 2>&1; then
    echo "ok: $name"
else
    status=$?
    cat "$log"
    echo "FAILED: $name"
    exit $status
fi
