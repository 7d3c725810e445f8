"""A guest that tries to change what its base is linked to: nothing in the cache ever moves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guestctl import Guest, stage
from guestctl.mounting import MOUNT_OPTIONS
from tests.corpus import write_every_type
from tests.test_translate_link import frozen

# Each is tried on every name; where it is refused says the errno, for people.
ATTACK = r"""
mount -t 9p -o trans=virtio,$OPTIONS base /mnt || exit 90
cat >/tmp/attack.c <<'END'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>
#define TRY(call) do { errno = 0; if ((call) >= 0) printf("DONE %s %s\n", #call, path); \
    else printf("%d %s %s\n", errno, #call, path); } while (0)
int main(int argc, char **argv)
{
	struct timespec times[2] = {{1, 0}, {1, 0}};
	char other[512];

	for (int i = 1; i < argc; i++) {
		const char *path = argv[i];
		int fd;

		snprintf(other, sizeof(other), "%s.other", path);
		TRY(open(path, O_WRONLY | O_NONBLOCK));
		TRY(open(path, O_RDWR | O_NONBLOCK));
		TRY(open(path, O_WRONLY | O_TRUNC | O_NONBLOCK));
		TRY(open(path, O_RDONLY | O_TRUNC | O_NONBLOCK));
		TRY(open(path, O_WRONLY | O_APPEND | O_NONBLOCK));
		TRY(open(other, O_WRONLY | O_CREAT | O_EXCL, 0666));
		TRY(truncate(path, 0));
		TRY(chmod(path, 0777));
		TRY(lchown(path, 12, 34));
		TRY(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW));
		TRY(setxattr(path, "user.evil", "x", 1, 0));
		TRY(setxattr(path, "user.virtfs.mode", "xxxx", 4, 0));
		TRY(removexattr(path, "user.colour"));
		TRY(link(path, other));
		TRY(rename(path, other));
		TRY(rename(other, path));
		TRY(symlink("x", other));
		TRY(mknod(other, S_IFCHR | 0666, makedev(1, 3)));
		TRY(mkdir(other, 0777));
		TRY(unlink(path));
		TRY(rmdir(path));
		if ((fd = open(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW)) >= 0) {
			TRY(fchmod(fd, 0777));
			TRY(fchown(fd, 12, 34));
			TRY(futimens(fd, times));
			TRY(ftruncate(fd, 0));
			close(fd);
		}
	}
	return 0;
}
END
gcc -w -o /tmp/attack /tmp/attack.c || exit 91
cd /mnt
find . -mindepth 1 ! -name s-absolute -print0 | xargs -0 /tmp/attack
echo reserved names
/tmp/attack .virtfs_metadata .virtfs_metadata/dir .virtfs_metadata_root dir/.virtfs_metadata/file
"""

# What the guest may do: everything, in an overlay whose upper layer is its own.
OVERLAY = r"""
set -e
mount -t 9p -o trans=virtio,$OPTIONS base /mnt
mkdir -p /tmp/upper /tmp/scratch /tmp/over
mount -t tmpfs none /tmp/scratch
mkdir /tmp/scratch/upper /tmp/scratch/work
cd /tmp/scratch
mount -t overlay -o lowerdir=/mnt,upperdir=upper,workdir=work none /tmp/over
cd /tmp/over
cat dir/file
echo changed >dir/file
chmod 777 dir/old
chown 5:6 dir/old
touch -d @7 dir/old
ln dir/old dir/another
mv u-ünïcödé moved
rm -r shut
mknod node c 1 3
cat dir/file
test "$(cat /mnt/dir/file)" = hello
"""

NODE = re.compile(rb"DONE open\(.* \./(t|z-link)-(blk|chr|fifo)[a-z-]*$")


@pytest.fixture
def based_guest(shared_guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """A guest whose base is links into a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    source = write_every_type(tmp_path / "every.tar")
    report = stage(source, shared_guest.base, link=True)
    assert not report.warnings
    return shared_guest


def test_no_guest_changes_the_cache(based_guest: Guest, tmp_path: Path) -> None:
    cache = tmp_path / "xdg" / "guestctl" / "trees"
    before, tree = frozen(cache), frozen_tree(based_guest.base.path)
    argv = ["bash", "-c", ATTACK]
    result = based_guest.run(argv, env={"OPTIONS": MOUNT_OPTIONS}, timeout=120)
    lines = result.stdout.splitlines()
    assert result.status == 0, result
    assert len(lines) > 400
    # What is opened as a device or a fifo is the guest's own.
    done = [line for line in lines if line.startswith(b"DONE")]
    assert not [line for line in done if not NODE.match(line)]
    # It was QEMU, not the guest's kernel, that refused.
    assert len([line for line in lines if line.startswith(b"30 ")]) > 200
    assert frozen(cache) == before
    assert frozen_tree(based_guest.base.path) == tree


def frozen_tree(root: Path) -> set[tuple[str, int, int]]:
    """The names that a tree has, and what they stand for."""
    infos = {path: path.stat() for path in root.rglob("*")}
    return {(str(path), info.st_ino, info.st_mtime_ns) for path, info in infos.items()}


def test_an_overlay_on_links_is_writable(based_guest: Guest, tmp_path: Path) -> None:
    cache = tmp_path / "xdg" / "guestctl" / "trees"
    before, tree = frozen(cache), frozen_tree(based_guest.base.path)
    argv = ["bash", "-c", OVERLAY]
    result = based_guest.run(argv, env={"OPTIONS": MOUNT_OPTIONS}, timeout=120)
    assert (result.status, result.stdout) == (0, b"hello\nchanged\n"), result
    assert frozen(cache) == before
    assert frozen_tree(based_guest.base.path) == tree
