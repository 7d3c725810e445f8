"""`guestctl virtfs` as a user meets it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.corpus import Member, tar_bytes, write_every_type


def virtfs(*argv: object, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "guestctl", "virtfs", *map(str, argv)],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_every_type(tmp_path / "a.tar")
    done = virtfs("stage", tmp_path / "a.tar", tmp_path / "tree")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return tmp_path / "tree"


@pytest.mark.parametrize("command", ["stage", "collect", "list", "check", "repair"])
def test_help_has_an_example(command):
    done = virtfs(command, "--help")
    assert done.returncode == 0 and b"Example" in done.stdout
    assert f"guestctl virtfs {command}".encode() in done.stdout


def test_from_standard_input_to_standard_output(tmp_path):
    done = virtfs("stage", "-", tmp_path / "t", "--into", "a/b", stdin=tar_bytes([Member("f")]))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t/a/b/f").exists()
    done = virtfs("collect", tmp_path / "t", "-", "--path", "a/b")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert tar.getnames() == [".", "./f"]


def test_json(tree, tmp_path):
    done = virtfs("stage", tmp_path / "a.tar", tree, "--json")
    facts = json.loads(done.stdout)
    assert facts["version"] == 1 and facts["entries"] == 25
    facts = json.loads(virtfs("list", tree, "--json").stdout)
    by_path = {entry["path"]: entry for entry in facts["entries"]}
    assert by_path["t-chr-wide"]["device"] == [300, 70000]
    assert by_path["dir/file"]["mode"] == "4755"
    assert by_path["u-bytes-\udcff\udc80"]["type"] == "file"
    facts = json.loads(virtfs("check", tree, "--json").stdout)
    assert facts == {"version": 1, "problems": []}


def test_list_is_like_tar(tree, tmp_path):
    done = virtfs("list", tree)
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 25
    line = next(line for line in lines if line.endswith(" dir/file"))
    assert line.split() == ["-rwsr-xr-x", "0/0", "6", "2020-09-13", "12:26:40", "dir/file"]
    assert any(line.endswith(" z-link-chr link to t-chr") for line in lines)
    assert any(line.endswith(r" u-newline\n") for line in lines)


def test_check_and_repair(tree):
    (tree / ".virtfs_metadata" / "gone").write_bytes(b"")
    done = virtfs("check", tree)
    assert done.returncode == 1 and b"gone: orphan" in done.stdout
    done = virtfs("repair", tree)
    assert done.returncode == 0 and b"mended" in done.stdout
    assert virtfs("check", tree).returncode == 0


def test_errors_are_one_line_and_a_hint(tmp_path):
    (tmp_path / "evil.tar").write_bytes(tar_bytes([Member("../../x")]))
    done = virtfs("stage", tmp_path / "evil.tar", tmp_path / "t")
    assert done.returncode == 1 and done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("guestctl: ") and "../../x" in lines[0] and ".." in lines[0]
    done = virtfs("collect", tmp_path / "t", tmp_path / "o.tar")
    assert done.returncode == 1 and b"partly staged" in done.stderr and b"hint: " in done.stderr
    assert not (tmp_path / "o.tar").exists()


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (("collect", "missing", "o.tar"), 1),
        (("stage", "missing.tar", "t"), 1),
        (("collect", "{tree}", "o.zip"), 2),
        (("stage", "{tree}/../a.tar", "{tree}", "--into", "../x"), 2),
        (("stage",), 2),
        (("list", "{tree}", "--path", "nowhere"), 1),
    ],
)
def test_statuses(tree, argv, status):
    done = virtfs(*(part.format(tree=tree) for part in argv))
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr


def test_source_date_epoch(tree, tmp_path):
    out = tmp_path / "o.tar"
    for extra, env in (((), {"SOURCE_DATE_EPOCH": "5"}), (("--mtime", "5"), {})):
        assert virtfs("collect", tree, out, *extra, **env).returncode == 0
        with tarfile.open(out) as tar:
            assert max(info.mtime for info in tar) == 5
    assert virtfs("collect", tree, out, SOURCE_DATE_EPOCH="soon").returncode == 2


def test_warnings_name_the_entry(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/bare").write_bytes(b"")
    done = virtfs("collect", tmp_path / "tree", tmp_path / "o.tar")
    assert done.returncode == 0 and b"warning: bare: " in done.stderr


def test_hostile_names_stay_on_their_line(tmp_path):
    """Neither a forged second line nor an escape sequence reaches the terminal."""
    evil = "x\n\033[2Jguestctl: all is well\x9b1m"
    wanted = [Member(evil, pax=(("SCHILY.acl.access", "user:jenny:rwx"),)), Member(f"{evil}/y")]
    (tmp_path / "evil.tar").write_bytes(tar_bytes(wanted))
    refused = virtfs("stage", tmp_path / "evil.tar", tmp_path / "t")
    assert refused.returncode == 1
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / evil).touch()
    warned = virtfs("collect", tmp_path / "tree", tmp_path / "o.tar")
    checked = virtfs("check", tmp_path / "tree")
    for output in (refused.stderr, warned.stderr, checked.stdout):
        assert b"x\\012\\033[2Jguestctl" in output and b"\033" not in output
        assert "\x9b" not in output.decode()
        assert not any(line.startswith(b"guestctl: all") for line in output.splitlines())


def test_where_an_archive_cannot_go(tree, tmp_path):
    """It would be in itself, or take the place of what is no file; nothing is replaced."""
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "folder.tar").mkdir()
    for out, words, status in (
        (tree / "o.tar", b"the archive would lie in the tree", 2),
        (tree / "dir" / "o.tar", b"the archive would lie in the tree", 2),
        (tmp_path / "fifo.tar", b"no file, and it would be replaced", 2),
        (tmp_path / "folder.tar", b"Is a directory", 1),
        (tmp_path / "no" / "o.tar", b"No such file", 1),
    ):
        before = sorted(tree.rglob("*"))
        done = virtfs("collect", tree, out)
        assert done.returncode == status and words in done.stderr
        assert sorted(tree.rglob("*")) == before
    assert (tmp_path / "fifo.tar").is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.tar",
        "fifo.tar",
        "folder.tar",
        "tree",
    }


def test_an_archive_goes_where_a_link_leads(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "o.tar.gz").symlink_to("elsewhere/real")
    assert virtfs("collect", tree, tmp_path / "o.tar.gz").returncode == 0
    assert (tmp_path / "o.tar.gz").is_symlink()
    assert (tmp_path / "elsewhere/real").read_bytes().startswith(b"\x1f\x8b")


def test_standard_streams_that_are_closed(tree, tmp_path):
    guestctl = f"{sys.executable} -m guestctl virtfs"
    for command, word in (
        (f"stage - {tmp_path}/t <&-", "input"),
        (f"collect {tree} - >&-", "output"),
    ):
        done = subprocess.run(
            ["sh", "-c", f"{guestctl} {command}"], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 2 and f"standard {word} is closed".encode() in done.stderr
    assert not (tmp_path / "t").exists()


def test_a_reader_that_has_had_enough(tree):
    """Whoever closes the pipe ends it, without a word."""
    (tree / "large").write_bytes(os.urandom(4 << 20))
    with subprocess.Popen(
        [sys.executable, "-m", "guestctl", "virtfs", "collect", tree, "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(512)) == 512
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) != 0


@pytest.mark.parametrize("ratio", ["0.5", "nan", "inf", "much"])
def test_impossible_limits(tmp_path, ratio):
    done = virtfs("stage", tmp_path / "a.tar", tmp_path / "t", "--max-ratio", ratio)
    assert done.returncode == 2 and b"--max-ratio" in done.stderr


def test_progress_on_a_terminal(tmp_path):
    """Entries, bytes and rate while it lasts; elsewhere there is none."""
    data = tar_bytes([Member(f"f{number}", data=b"x" * 50_000) for number in range(400)])
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "guestctl", "virtfs", "stage", "-", tmp_path / "t"],
        stdin=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        assert process.stdin is not None
        seen = b""
        for at in range(0, len(data) // 2, 1 << 16):
            process.stdin.write(data[at : at + (1 << 16)])
        process.stdin.flush()
        while not re.search(rb"staging\D+[1-9]\d* entries\D+\d+ MB", seen):
            assert select.select([ours], [], [], 60)[0], seen
            seen += os.read(ours, 4096)
        process.stdin.write(data[at + (1 << 16) :])
        process.stdin.close()
        with contextlib.suppress(OSError):  # the terminal is gone
            while more := os.read(ours, 4096):
                seen += more
        assert process.wait(timeout=60) == 0
    os.close(ours)
    assert b"/s" in seen
    assert len(list((tmp_path / "t").iterdir())) == 402
