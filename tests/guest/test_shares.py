"""Shares: whose the files on the host are; roots and /tools. What is in them: test_oracle.py."""

from __future__ import annotations

import io
import os
import stat

import pytest

from guestctl import Guest, stage
from guestctl.errors import ArchiveError, ShareError
from tests.corpus import Member, tar_bytes
from tests.fairness import until


def test_the_hosts_files_stay_the_users_own(shared_guest: Guest) -> None:
    with shared_guest.mounted():
        shared_guest.run(["sh", "-c", "echo x >f; chown 0:0 f; chmod 777 f"], timeout=60).check()
    facts = (shared_guest.work.path / "f").stat()
    assert facts.st_uid == os.getuid()
    assert stat.S_IMODE(facts.st_mode) == 0o600


def test_native_tools_run_in_an_empty_root(shared_guest: Guest) -> None:
    """/tools lends gcc, as, ld, make, sh and meson to a root that has nothing at all."""
    with shared_guest.mounted():
        program = 'void _start(void) { for (;;) __asm__("mov r7, #1; mov r0, #42; swi 0"); }'
        script = f"""
            set -e
            echo '{program}' >x.c
            printf 'x: x.o\\n\\tld -o x x.o\\nx.o: x.c\\n\\tgcc -ffreestanding -c x.c\\n' >Makefile
            make 1>&2
            ./x || echo status $?
            as --version | sed -n 1p
            ninja --version
            sed -n 1p /tools/bin/meson
            python3 -v -c 'import mesonbuild; print(mesonbuild.__file__)' 2>loads
            grep -q 'pyc matches ' loads
            if grep '^# wrote ' loads; then exit 1; fi
            rm loads
        """
        result = shared_guest.run(["sh", "-c", script], root="/work", timeout=240)
        assert result.status == 0, result
        assert result.stdout.startswith(b"status 42\nGNU assembler")
        modules = b"/tools/lib/python3/dist-packages/mesonbuild/__init__.py"
        assert result.stdout.endswith(b"\n1.11.1\n#!/tools/bin/python3\n" + modules + b"\n")
    # What was lent is not left.
    left = set(os.listdir(shared_guest.work.path)) - {".virtfs_metadata"}
    assert left == {"Makefile", "x", "x.c", "x.o"}


def test_a_root_is_a_root(guest: Guest) -> None:
    with guest.mounted():
        guest.run(["sh", "-c", "rm -rf /work/* && mkdir -p /work/r/sub"], timeout=60).check()
        result = guest.run(["pwd"], root="/work/r", cwd="/sub", timeout=60)
        assert result.stdout == b"/sub\n"
        result = guest.run(["ls", "/"], root="/work/r", timeout=60)
        assert set(result.stdout.split()) == {b"dev", b"proc", b"sub", b"sys", b"tools"}
        outside = guest.run(["cat", "/../../etc/passwd"], root="/work/r", timeout=60)
        assert outside.status != 0
    assert set(os.listdir(guest.work.path / "r")) - {".virtfs_metadata"} == {"sub"}


def test_what_went_wrong_first_is_what_is_heard_of(guest: Guest) -> None:
    """Also where a command still uses the share, which then is unmounted the next time."""
    with pytest.raises(ZeroDivisionError), guest.mounted():
        running = guest.start(["sh", "-c", ": >x; exec sleep 1000"], cwd="/work", timeout=300)
        until((guest.work.path / "x").exists)
        raise ZeroDivisionError
    with pytest.raises(ShareError, match="still in use"), guest.mounted():
        pass
    running.cancel()
    running.wait()
    with guest.mounted():
        guest.run(["true"], timeout=60).check()


@pytest.mark.parametrize("tool", ["sh", "sed", "grep", "cat", "rm"])
def test_what_scripts_run_most_is_static(guest: Guest, tool: str) -> None:
    script = f"file -Lb $(command -v {tool})"
    found = guest.run(["sh", "-c", script], timeout=60).check().stdout
    assert b"ARM" in found
    assert b"statically linked" in found


def test_static_tools_are_the_same_programs(guest: Guest) -> None:
    """Same program, same version as Debian's own further down in PATH."""
    one = "$t --version | head -1; /usr/bin/$t --version | head -1"
    script = f"for t in sed grep cat sort; do {one}; done"
    lines = guest.run(["bash", "-c", script], timeout=60).check().stdout.splitlines()
    assert lines[::2] == [line.removeprefix(b"/usr/bin/") for line in lines[1::2]]


def test_the_guests_compiler_makes_programs_that_run(guest: Guest) -> None:
    with guest.mounted():
        source = '#include <iostream>\nint main() { std::cout << "hello" << std::endl; }\n'
        guest.run(["sh", "-c", "cat >hello.cc"], stdin=source.encode(), timeout=60).check()
        guest.run(["g++", "-O1", "-o", "hello", "hello.cc"], timeout=240).check()
        assert guest.run(["./hello"], timeout=60).check().stdout == b"hello\n"
        kind = guest.run(["file", "-b", "hello"], timeout=60).check().stdout
        assert b"ARM, EABI5" in kind


def test_a_tree_that_is_partly_staged_is_not_mounted(shared_guest: Guest) -> None:
    """Nor run in: not until the stage that did not end has been done anew."""
    hostile = io.BytesIO(tar_bytes([Member("a"), Member("../x")]))
    with pytest.raises(ArchiveError, match="its name has"):
        stage(hostile, shared_guest.work)
    with pytest.raises(ShareError, match="staged in part"), shared_guest.mounted():
        pytest.fail("it was mounted")
    stage(io.BytesIO(tar_bytes([Member("b", data=b"whole")])), shared_guest.work)
    with shared_guest.mounted():
        assert shared_guest.run(["cat", "b"], timeout=60).check().stdout == b"whole"
