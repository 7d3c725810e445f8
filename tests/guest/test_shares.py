"""Shares: what the guest writes is what the host finds, on both models; roots and /tools."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from guestctl import Guest, collect, stage

SETUP = r"""
set -e
cd /work
mkdir -m 1777 dir
echo data >dir/file
chown 1234:4321 dir/file
chmod 4755 dir/file
ln dir/file dir/hard
ln -s ../no/such dir/soft
mknod dir/null c 1 3
mknod dir/disk b 300 70000
mkfifo -m 600 dir/fifo
printf x >"$(printf 'dir/\377name')"
touch -d @-5.5 dir/old 2>/dev/null || touch dir/old
"""


def test_what_a_guest_makes_is_collected(shared_guest: Guest, tmp_path: Path) -> None:
    with shared_guest.mounted():
        shared_guest.run(["bash", "-c", SETUP], timeout=60).check()
    collect(shared_guest.work, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar", encoding="utf-8", errors="surrogateescape") as tar:
        members = {member.name.removeprefix("./").rstrip("/"): member for member in tar}
    file = members["dir/file"]
    assert (file.uid, file.gid, file.mode) == (1234, 4321, 0o4755)
    assert members["dir"].mode == 0o1777
    hard = members["dir/hard"]
    assert hard.islnk() or file.islnk()
    assert members["dir/soft"].linkname == "../no/such"
    null = members["dir/null"]
    assert (null.ischr(), null.devmajor, null.devminor) == (True, 1, 3)
    disk = members["dir/disk"]
    assert (disk.isblk(), disk.devmajor, disk.devminor) == (True, 300, 70000)
    assert members["dir/fifo"].isfifo()
    assert members[b"dir/\xffname".decode(errors="surrogateescape")].size == 1
    assert not any("virtfs" in name for name in members)


def test_what_is_staged_is_what_a_guest_sees(shared_guest: Guest, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name, kind, mode, facts in (
            ("d", tarfile.DIRTYPE, 0o2750, {"uid": 7, "gid": 8}),
            ("d/setuid", tarfile.REGTYPE, 0o4711, {"uid": 0, "gid": 50}),
            ("d/link", tarfile.SYMTYPE, 0o777, {"linkname": "setuid"}),
            ("d/hard", tarfile.LNKTYPE, 0o644, {"linkname": "d/setuid"}),
            ("d/tty", tarfile.CHRTYPE, 0o620, {"devmajor": 5, "devminor": 70000, "gid": 5}),
            ("d/pipe", tarfile.FIFOTYPE, 0o600, {}),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.mtime = kind, mode, 1_000_000_000
            for key, value in facts.items():
                setattr(member, key, value)
            content = b"content" if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    stage(tmp_path / "in.tar", shared_guest.work)
    with shared_guest.mounted():
        argv = ["stat", "-c", "%n %F %a %u:%g %h %t:%T %Y"]
        argv += ["d/setuid", "d/link", "d/hard", "d/tty", "d/pipe", "d"]
        seen = shared_guest.run(argv, timeout=60).check().stdout.decode().splitlines()
        read = shared_guest.run(["cat", "d/link"], timeout=60).check().stdout
        # QEMU's defects are not triggered by what we have written.
        script = "mv d/setuid d/moved && ln d/tty d/tty2 && rm -rf d && ls -A"
        left = shared_guest.run(["sh", "-c", script], timeout=60).check().stdout
    # QEMU counts its own metadata folder among a directory's.
    links = 3 if shared_guest.work.security_model == "mapped-file" else 2
    assert seen == [
        "d/setuid regular file 4711 0:50 2 0:0 1000000000",
        "d/link symbolic link 777 0:0 1 0:0 1000000000",
        "d/hard regular file 4711 0:50 2 0:0 1000000000",
        "d/tty character special file 620 0:5 1 5:11170 1000000000",
        "d/pipe fifo 600 0:0 1 0:0 1000000000",
        f"d directory 2750 7:8 {links} 0:0 1000000000",
    ]
    assert read == b"content"
    assert left == b""


def test_the_hosts_files_stay_the_users_own(shared_guest: Guest) -> None:
    with shared_guest.mounted():
        shared_guest.run(["sh", "-c", "echo x >f; chown 0:0 f; chmod 777 f"], timeout=60).check()
    facts = (shared_guest.work.path / "f").stat()
    assert facts.st_uid == os.getuid()
    assert stat.S_IMODE(facts.st_mode) == 0o600


def test_native_tools_run_in_an_empty_root(shared_guest: Guest) -> None:
    """/tools lends gcc, as, ld, make and sh to a root that has nothing at all."""
    with shared_guest.mounted():
        program = 'void _start(void) { for (;;) __asm__("mov r7, #1; mov r0, #42; swi 0"); }'
        script = f"""
            set -e
            echo '{program}' >x.c
            printf 'x: x.o\\n\\tld -o x x.o\\nx.o: x.c\\n\\tgcc -ffreestanding -c x.c\\n' >Makefile
            make 1>&2
            ./x || echo status $?
            as --version | sed -n 1p
        """
        result = shared_guest.run(["sh", "-c", script], root="/work", timeout=240)
        assert result.status == 0, result
        assert result.stdout.startswith(b"status 42\nGNU assembler")
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
