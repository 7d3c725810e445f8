"""What one QEMU may take: rlimits of real processes, and control groups on a tree like cgroupfs.

A host where an ordinary user really has a delegated group is not at hand for every run; what is
read and written is what Documentation/admin-guide/cgroup-v2.rst says.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guestctl.qemu.bounds import Group, delegated, group_for

PROGRAM = """
import resource, subprocess
from guestctl.qemu.bounds import limit_resources
limit_resources(256)
print(subprocess.run(["sh", "-c", "ulimit -v"], capture_output=True, text=True).stdout.strip())
limit_resources(1024)
print(resource.getrlimit(resource.RLIMIT_AS)[1] >> 10)
"""


def test_the_address_space_is_bounded_for_what_is_started() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    # A bound that there is already is only made narrower.
    assert done.stdout.split() == [b"6553600"] * 2


class Host:
    """Files as a systemd user session has them: delegated from user@.service down."""

    def __init__(self, folder: Path, controllers: str = "cpu memory pids") -> None:
        self.root = folder / "cgroup"
        self.slice = self.root / "user.slice" / "user@1.service" / "app.slice"
        self.own = self.slice / "shell.scope"
        self.own.mkdir(parents=True)
        for path in (self.own, *self.own.parents[:4]):
            (path / "cgroup.procs").touch()
            (path / "cgroup.subtree_control").write_text(
                controllers if path in self.slice.parents or path == self.slice else ""
            )
        self.mounts = folder / "mounts"
        self.mounts.write_text(f"proc /proc proc rw 0 0\ncgroup2 {self.root} cgroup2 rw 0 0\n")
        self.lines = folder / "lines"
        self.lines.write_text(f"1:name=x:/\n0::/{self.own.relative_to(self.root)}\n")

    def found(self) -> Path | None:
        return delegated(self.lines, self.mounts)


def test_the_nearest_group_that_is_ours_and_bounds_memory(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.found() == host.slice
    (host.slice / "cgroup.subtree_control").write_text("cpu\n")
    assert host.found() == host.slice.parent


def test_none_where_nothing_is_delegated(tmp_path: Path) -> None:
    assert Host(tmp_path / "a", controllers="").found() is None
    host = Host(tmp_path / "b")
    for path in (host.own, *host.own.parents[:4]):
        (path / "cgroup.procs").chmod(0o444)
    assert host.found() is None
    host.mounts.write_text("proc /proc proc rw 0 0\n")
    assert host.found() is None


def test_a_group_is_bounded_taken_and_removed(tmp_path: Path) -> None:
    (tmp_path / "guestctl-left").mkdir()
    made = Group.of(tmp_path, "p-g0", 256)
    assert [path.name for path in tmp_path.iterdir()] == ["guestctl-p-g0"]
    made.remove()
    made.remove()
    assert not list(tmp_path.iterdir())


def test_what_a_group_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def mkdir(self: Path, *args: object, **options: object) -> None:
        real(self, *args, **options)  # type: ignore[arg-type]
        for name in ("memory.max", "pids.max", "cgroup.procs"):  # cpu is not delegated here
            (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr("guestctl.qemu.bounds.delegated", lambda: tmp_path)
    made = group_for([17], "p-g0", 256)
    assert made is not None
    told = {path.name: path.read_text() for path in made.folder.iterdir()}
    assert told == {"memory.max": str(1280 << 20), "pids.max": "256", "cgroup.procs": "17"}
