"""Packed systems boot, and the kernel of the target finds in them what the archive held."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from guestctl.image import Image
from guestctl.system.pack import pack

BOOT = [sys.executable, "-m", "guestctl", "system", "boot", "--arch", "armv5l"]
INIT = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void show(const char *path)
{
	struct stat st;
	char target[64] = "";

	if (lstat(path, &st) < 0)
		printf("%s: %s\n", path, strerror(errno));
	else if (S_ISLNK(st.st_mode))
		printf("%s -> %.*s\n", path, (int)readlink(path, target, sizeof(target)), target);
	else
		printf("%s %o %u:%u %u links %llu %u:%u\n", path, st.st_mode, st.st_uid, st.st_gid,
			(unsigned)st.st_nlink, (unsigned long long)st.st_size,
			major(st.st_rdev), minor(st.st_rdev));
}

int main(void)
{
	puts("it boots");
	show("/bin/su");
	show("/bin/again");
	show("/etc/disk");
	show("/etc/link");
	printf("write: %s\n", open("/etc/new", O_WRONLY | O_CREAT, 0644) < 0 ? strerror(errno) : "ok");
	fflush(stdout);
	sync();
	reboot(RB_AUTOBOOT);
	return 1;
}
"""


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boot")
    (folder / "init.c").write_text(INIT)
    compiler = ["arm-linux-gnueabi-gcc", "-static", "-Os", "-Wall", "-Werror"]
    subprocess.run([*compiler, "-o", folder / "init", folder / "init.c"], check=True)
    members = (
        ("sbin", tarfile.DIRTYPE, 0o755, b"", (0, 0)),
        ("sbin/init", tarfile.REGTYPE, 0o755, (folder / "init").read_bytes(), (0, 0)),
        ("bin", tarfile.DIRTYPE, 0o755, b"", (0, 0)),
        ("bin/su", tarfile.REGTYPE, 0o4755, b"text", (7, 0)),
        ("dev", tarfile.DIRTYPE, 0o755, b"", (0, 0)),
        ("dev/console", tarfile.CHRTYPE, 0o600, (5, 1), (0, 0)),
        ("etc", tarfile.DIRTYPE, 0o755, b"", (0, 0)),
        ("etc/disk", tarfile.BLKTYPE, 0o660, (259, 70_000), (0, 6)),
    )
    with tarfile.open(folder / "rootfs.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, mode, what, owner in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, (entry.uid, entry.gid) = kind, mode, owner
            if isinstance(what, tuple):
                entry.devmajor, entry.devminor = what
            entry.size = len(what) if isinstance(what, bytes) else 0
            tar.addfile(entry, io.BytesIO(what if isinstance(what, bytes) else b""))
        for name, kind, target in (
            ("bin/again", tarfile.LNKTYPE, "bin/su"),
            ("etc/link", tarfile.SYMTYPE, "../bin/su"),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
    return folder / "rootfs.tar"


@pytest.mark.parametrize(
    ("kind", "options", "write"),
    [
        ("ext4", (), "Read-only file system"),
        ("ext4", ("--writable",), "ok"),
        ("squashfs", (), "Read-only file system"),
        ("cpio", (), "ok"),
    ],
)
def test_what_was_packed_boots(
    rootfs: Path,
    tmp_path: Path,
    armv5l_image: Image,
    kind: str,
    options: tuple[str, ...],
    write: str,
) -> None:
    out = tmp_path / f"rootfs.{kind}"
    assert pack(rootfs, out, kind) == ()
    before = out.read_bytes()
    done = subprocess.run(
        [*BOOT, str(out), *options],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    begin = lines.index("it boots")
    assert lines[begin + 1 : begin + 6] == [
        "/bin/su 104755 7:0 2 links 4 0:0",
        "/bin/again 104755 7:0 2 links 4 0:0",
        "/etc/disk 60660 0:6 1 links 0 259:70000",
        "/etc/link -> ../bin/su",
        f"write: {write}",
    ]
    assert done.returncode == 0, done.stderr
    assert (out.read_bytes() == before) == (not options)


def test_what_is_no_system_is_refused(tmp_path: Path, armv5l_image: Image) -> None:
    (tmp_path / "note").write_text("hello")
    done = subprocess.run(
        [*BOOT, str(tmp_path / "note")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "neither ext4, squashfs nor cpio" in done.stderr
