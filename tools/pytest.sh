#!/bin/sh
# Runs the tests. A few that failed beside the others run once more, alone: on a shared machine a test may fail for want
# of a processor. What failed, and why, stays on the screen; what fails twice fails the run, and so do many.
#   tools/pytest.sh [PYTEST'S OPTIONS]
set -u
cd "$(dirname "$0")/.."
python=.venv/bin/python
few=6

$python -m pytest "$@" && exit 0
status=$?
[ $status = 1 ] || exit $status
failed=$($python -c 'import json; print(len(json.load(open(".pytest_cache/v/cache/lastfailed"))))') || exit $status
[ "$failed" -le $few ] || exit $status
echo "tests: $failed failed, see above; once more, alone:"
exec $python -m pytest --last-failed --last-failed-no-failures none --numprocesses 0 --durations 0 --durations-min 30
