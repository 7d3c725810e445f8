#!/bin/sh
# Runs a command in the checkout as a user that is not root. Root's own checkout may be unreadable to others,
# so for root the command runs in a copy that belongs to the user guestctl-test, made when it is missing.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || exec "$@"

user=guestctl-test
id $user >/dev/null 2>&1 || useradd --create-home --shell /bin/sh $user
home=$(getent passwd $user | cut -d: -f6)
copy=$home/checkout
mkdir -p "$copy"
echo "as-user: running as $user, in a copy of the checkout: this must work without root"

# The environment and what was compiled stay; everything else is the checkout's.
find "$copy" -mindepth 1 -maxdepth 1 ! -name .venv ! -name .hypothesis -exec rm -rf {} +
git -c safe.directory='*' ls-files --cached --others --exclude-standard |
    while IFS= read -r path; do [ ! -e "$path" ] || printf '%s\n' "$path"; done |
    tar --create --file - --files-from - | tar --extract --file - --directory "$copy"
chown -R $user: "$copy"

cd "$copy"
exec runuser -u $user -- env -i HOME="$home" USER=$user LOGNAME=$user LANG=C.UTF-8 \
    PATH=/usr/local/bin:/usr/bin:/bin CI="${CI:-}" PYTEST="${PYTEST:-}" WORKERS="${WORKERS:-}" "$@"
