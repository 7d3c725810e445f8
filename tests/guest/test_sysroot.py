"""A sysroot in a real guest: links below, a layer of the guest's own above, and what offload makes
of what is in that layer.
"""

from __future__ import annotations

import errno
import io
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestctl import Guest, Pool, ShareError, collect, image, stage
from guestctl.errors import RequestFailed
from guestctl.offload import Entry, read_ledger
from guestctl.places import Places
from guestctl.toolchain import install
from guestctl.wire import Op, Tag

from .conftest import ARCH

FOLDERS = ("build", "var/tmp")
SYSROOT = {
    "usr/include/mine.h": "#define MINE 1\n",
    "usr/include/other.h": "#define OTHER 1\n",
    "usr/lib/script.py": "print()\n",
    "etc/name": "old\n",
}
# What stands before a compiler in a sysroot is a compiler that no toolchain stands for.
OWN_COMPILER = {"usr/bin/gcc": '#!/tools/bin/sh\nexec /tools/bin/gcc -DOWN "$@"\n'}
COMPILE = "cd /build && gcc -O2 -ffreestanding -c a.c && nm a.o"


def archive(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o755 if "bin/" in name else 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.fixture(scope="module", params=["mapped-file", "mapped-xattr"])
def guest(
    request: pytest.FixtureRequest, armv5l_image: image.Image, places: Places
) -> Iterator[Guest]:
    install(ARCH, cache_dir=places.cache)
    with (
        Pool(ARCH, 1, places=places, security_model=request.param) as pool,
        pool.lease(timeout=60) as leased,
    ):
        yield leased


@pytest.fixture
def based(guest: Guest, tmp_path: Path) -> Guest:
    stage(archive(tmp_path / "base.tar", SYSROOT), guest.base, link=True)
    source = "#include <mine.h>\n#include <other.h>\nint mine_##MINE;\n"
    text = source.replace("mine_##MINE", "v[MINE == 1 ? 1 : 9]")
    stage(archive(tmp_path / "source.tar", {"a.c": text}), guest.work, into="build")
    return guest


def sh(guest: Guest, script: str) -> tuple[str, list[Entry]]:
    """What a script in the sysroot prints, and the calls that it made."""
    assert guest.offload is not None
    path = guest.offload.ledger.path
    before = len(read_ledger(path))
    result = guest.run(["/tools/bin/sh", "-ec", script], root="/sysroot", timeout=120)
    assert result.status == 0, result
    deadline = time.monotonic() + 30
    while guest.offload.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    return result.stdout.decode(), read_ledger(path)[before:]


def test_the_host_compiles_until_the_layer_holds_what_it_cannot_see(based: Guest) -> None:
    header = based.base.path / "usr/include/mine.h"
    linked = os.stat(header)
    assert linked.st_nlink > 1
    with based.mounted(sysroot=FOLDERS):
        harmless = "mkdir -p /usr/lib/__pycache__ /usr/share/info /var/cache; \
            : > /usr/lib/__pycache__/script.pyc; : > /usr/share/info/dir; echo new > /etc/name; \
            : > /usr/lib/came; rm /usr/lib/came; : > /usr/include/went; rm /usr/include/went; "
        _, calls = sh(based, harmless + COMPILE)
        assert [call.where for call in calls] == ["offload", "offload"], calls
        # Removed, and again replaced, below: the host has the old one still.
        for change in ("rm /usr/include/other.h", "echo '#define OTHER 2' >/usr/include/other.h"):
            answer, calls = sh(based, f"{change}; cd /build; gcc -E -dM a.c | grep OTHER || :")
            assert [call.reason for call in calls] == [
                "the guest has changed its sysroot: /usr/include/other.h"
            ]
            assert answer == ("#define OTHER 2\n" if "echo" in change else "")
        assert sh(based, "cat /etc/name")[0] == "new\n"
        with pytest.raises(ShareError, match="is mounted"):
            os.fspath(based.base)
    assert os.stat(header) == linked
    # The layer was forgotten, the share was not.
    with based.mounted(sysroot=FOLDERS):
        answer, calls = sh(based, f"cat /etc/name; ls /build; {COMPILE}")
        assert answer.startswith("old\na.c\na.o\n")
        assert [call.where for call in calls] == ["offload", "offload"]


def test_a_compiler_of_the_sysroots_own_runs_in_the_guest(based: Guest, tmp_path: Path) -> None:
    stage(archive(tmp_path / "own.tar", OWN_COMPILER), based.base, link=True)
    with based.mounted(sysroot=FOLDERS):
        answer, calls = sh(based, "cd /build; gcc -E -dM a.c | grep OWN")
    assert answer == "#define OWN 1\n"
    assert [call.where for call in calls] == ["guest"]
    assert "/usr/bin/gcc" in calls[0].reason or "compiler" in calls[0].reason


def test_only_the_named_folders_come_back(based: Guest, tmp_path: Path) -> None:
    with based.mounted(sysroot=FOLDERS):
        sh(based, "echo here >/build/here; echo gone >/gone; echo t >/var/tmp/t")
    collect(based.work, tmp_path / "out.tar", mtime=0)
    with tarfile.open(tmp_path / "out.tar") as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    assert {"build/here", "var/tmp/t"} <= names
    assert not any("gone" in name or "proc" in name for name in names)


@pytest.mark.parametrize(
    ("source", "kind", "number"),
    [
        ("/base", "layer", errno.EBUSY),  # there is one already
        ("/nowhere", "layer", errno.ENOENT),
        ("/work", "nonsense", errno.EINVAL),
        ("/etc/passwd", "folder", errno.ENOTDIR),
    ],
)
def test_what_cannot_be_mounted_is_refused(
    guest: Guest, source: str, kind: str, number: int
) -> None:
    with guest.mounted(sysroot=()):
        with pytest.raises(RequestFailed) as caught:
            guest._request(
                Op.MOUNT,
                (Tag.TAG, source.encode()),
                (Tag.TARGET, b"/other"),
                (Tag.KIND, kind.encode()),
            )
        assert caught.value.errno == number
        assert guest.run(["ls", "/sysroot"], timeout=60).status == 0


def test_a_holder_that_dies_leaves_a_guest_that_can_be_used(
    armv5l_image: image.Image, places: Places
) -> None:
    with Pool(ARCH, 1, places=places, offload="off") as pool:
        with pool.lease(timeout=60) as guest:
            guest._mounting.mount(FOLDERS)
            guest.run(["touch", "/sysroot/left"]).check()
            # As if this process had been killed: nothing is unmounted.
            guest._mounting.unlock()
        with pool.lease(timeout=60) as guest, guest.mounted(sysroot=FOLDERS):
            listed = guest.run(["ls", "/sysroot"], timeout=60).check().stdout.split()
            assert listed == [b"build", b"var"]
