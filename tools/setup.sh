#!/bin/sh
# Installs what the project needs: Debian packages (this needs root, and is skipped when all are there),
# then the Python environment .venv in the checkout, made with Debian's Python, which any user can read.
set -eu
cd "$(dirname "$0")/.."

missing=""
for package in $(sed 's/#.*//' tools/packages.txt); do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "setup: needs root to install these Debian packages:$missing"
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || {
            echo "setup: there is no sudo; as root: apt-get install$missing" >&2
            exit 3
        }
        as_root="sudo"
    fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
[ "${1:-}" = --packages-only ] && exit 0

# The environment is made anew when what it is made from has changed.
stamp=.venv/made-from
want=$(cat pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat $stamp 2>/dev/null || true)" != "$want" ]; then
    echo "setup: making .venv"
    rm -rf .venv
    /usr/bin/python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
    echo "$want" >$stamp
fi
