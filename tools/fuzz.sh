#!/bin/sh
# Fuzzes the frame decoders of both sides at once, with what is left of the processors' time.
#   tools/fuzz.sh [SECONDS]
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
python=.venv/bin/python
[ -x $python ] || python=python
# A copy of its own, so that what it builds is in nobody's way.
out=build/guest-init/fuzz
corpus=$out/corpus

rm -rf "$corpus"
$python -m tests.fuzz.fuzz_wire --corpus "$corpus"
ASAN_OPTIONS=quarantine_size_mb=16 nice -n 10 make --no-print-directory -C guest-init fuzz \
    OUT="$PWD/$out" CORPUS="$PWD/$corpus" SECONDS="$seconds" &
guest=$!
status=0
nice -n 10 $python -m tests.fuzz.fuzz_wire --seconds "$seconds" || status=$?
wait $guest || status=$?
exit $status
