#!/bin/sh
# Runs a step quietly beside a command: `beside.sh NAME STEP... -- COMMAND...`. Both must succeed.
# What the command says last is the last line, unless the step has failed.
set -eu
name=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
step=""
while [ "$1" != -- ]; do
    step="$step $1"
    shift
done
shift
echo "beside what follows: $name"
# shellcheck disable=SC2086
tools/step.sh "$name" $step >"$log" 2>&1 &
beside=$!
status=0
"$@" || status=$?
wait $beside || {
    status=$?
    cat "$log"
}
exit $status
