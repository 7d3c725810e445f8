"""Pools: leases, several of them, attach from elsewhere, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from guestctl import GuestLost, Pool, PoolError, ShareError, UsageError
from guestctl.image import Image
from guestctl.places import Places
from guestctl.plan import own_shares
from guestctl.pool import only_pool


def guestctl(*args: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "guestctl", *args],
        capture_output=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,  # type: ignore[call-overload]
    )


def test_two_pools_side_by_side_leave_nothing(armv5l_image: Image, own_places: Places) -> None:
    pids = []
    with (
        Pool("armv5l", 2, name="one", places=own_places) as one,
        Pool("armv5l", 1, name="two", places=own_places) as two,
    ):
        pids = [guest["qemu_pid"] for pool in (one, two) for guest in pool.status()]
        assert len(set(pids)) == 3
        with one.lease(60) as a, one.lease(60) as b, two.lease(60) as c:
            names = [g.run(["hostname"], timeout=60).stdout for g in (a, b, c)]
            assert names == [b"g0\n", b"g1\n", b"g0\n"]
            with pytest.raises(PoolError, match="free"):
                one.lease(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list((own_places.runtime / "pools").iterdir()) == []
    assert list((own_places.runtime / "locks").iterdir()) == []
    assert list((own_places.cache / "shares").iterdir()) == []
    # One blank disk for all guests; theirs have no names.
    assert len(list((own_places.cache / "scratch").iterdir())) == 1


def test_a_name_is_taken_once(pool: Pool, places: Places) -> None:
    with pytest.raises(PoolError, match="up already"):
        Pool("armv5l", 1, name=pool.name, places=places)


def test_threads_share_a_pool(armv5l_image: Image, places: Places) -> None:
    seen: list[str] = []

    def work(pool: Pool) -> None:
        for _ in range(3):
            with pool.lease(60) as guest:
                seen.append(guest.run(["hostname"], timeout=60).check().stdout.decode().strip())

    with Pool("armv5l", 2, places=places) as pool:
        threads = [threading.Thread(target=work, args=(pool,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert len(seen) == 12
    assert set(seen) == {"g0", "g1"}


def test_a_fresh_guest_has_forgotten_everything(armv5l_image: Image, places: Places) -> None:
    with Pool("armv5l", 1, places=places) as pool:
        with pool.lease(60) as guest:
            guest.run(["touch", "/etc/was-here"], timeout=60).check()
        with pool.lease(60) as guest:
            assert guest.run(["test", "-e", "/etc/was-here"], timeout=60).status == 0
        with pool.lease(60, fresh=True) as guest:
            assert guest.run(["test", "-e", "/etc/was-here"], timeout=60).status == 1


def test_the_command_line_from_up_to_down(armv5l_image: Image) -> None:
    name = f"cli-{os.getpid()}"
    up = guestctl("pool", "up", "-n", "2", "--arch", "armv5l", "--name", name)
    assert up.returncode == 0, up.stderr
    try:
        facts = json.loads(guestctl("pool", "status", "--name", name, "--json").stdout)
        assert facts["version"] == 1
        assert [guest["state"] for guest in facts["guests"]] == ["ready", "ready"]
        assert facts["guests"][0]["confinement"]["seccomp"] is True
        run = guestctl("run", "--name", name, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
        assert (run.returncode, run.stdout, run.stderr) == (7, b"out\n", b"err\n")
        missing = guestctl("run", "--name", name, "--", "no-such-program")
        assert missing.returncode == 127
        assert b"No such file" in missing.stderr
        assert name.encode() in guestctl("pool", "list").stdout
    finally:
        down = guestctl("pool", "down", "--name", name)
    assert down.returncode == 0
    assert name.encode() not in guestctl("pool", "list").stdout


def test_run_with_arch_boots_and_leaves_nothing(armv5l_image: Image, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    script = "pwd; echo made >file; chown 5:6 file; ls -ln file | cut -d' ' -f3,4"
    run = guestctl("run", "--arch", "armv5l", "--share", str(share), "--", "sh", "-c", script)
    assert run.returncode == 0, run.stderr
    assert run.stdout == b"/work\n5 6\n"
    assert (share / "file").read_bytes() == b"made\n"
    assert (share / ".virtfs_metadata" / "file").read_bytes().startswith(b"virtfs.uid=5\n")


def test_who_waits_is_told_and_takes_no_guest_of_anothers_only_command(
    armv5l_image: Image, own_places: Places
) -> None:
    heard: list[str] = []
    with Pool("armv5l", 1, places=own_places, single=True) as pool, pool.lease(60):
        assert only_pool(own_places) == pool.name
        assert only_pool(own_places, to_lease=True) == "default"
        again = Pool.attach(pool.name, places=own_places, progress=heard.append)
        with pytest.raises(PoolError, match=r"was free within 3 s"):
            again.lease(3)
    assert heard == [f"no guest of pool {pool.name!r} is free yet: waiting"]


def test_stdin_goes_through_run(pool: Pool) -> None:
    argv = [sys.executable, "-m", "guestctl", "run", "--name", pool.name, "--", "wc", "-c"]
    # An emulated serial line takes up to a minute for it, on a busy machine.
    done = subprocess.run(
        argv, input=b"x" * 1_000_000, capture_output=True, timeout=300, check=True
    )
    assert done.stdout.strip() == b"1000000"


def test_attaching_is_quick_after_somebody_else(pool: Pool) -> None:
    for _ in range(5):
        with pool.lease(60) as guest:
            assert guest.run(["true"], timeout=60).status == 0


def test_print_qemu_starts_nothing(armv5l_image: Image) -> None:
    name = f"nothing-{os.getpid()}"
    done = guestctl("pool", "up", "--arch", "armv5l", "--name", name, "--print-qemu")
    assert b"qemu-system-arm" in done.stdout
    assert b"nothing" not in guestctl("pool", "list").stdout
    assert not own_shares(Places.of_user().cache, name).exists()


BAD = {
    "unknown arch": (["pool", "up", "--arch", "z80"], 2, b"armv5l"),
    "no guests": (["pool", "up", "--arch", "armv5l", "-n", "0"], 2, b"at least one"),
    "too many": (["pool", "up", "--arch", "armv5l", "-n", "9999"], 1, b"MiB"),
    "bad name": (["pool", "up", "--arch", "armv5l", "--name", "a/b"], 2, b"hint:"),
    "share missing": (
        ["run", "--arch", "armv5l", "--share", "/no/such", "--", "true"],
        125,
        b"mkdir",
    ),
    "share a file": (
        ["run", "--arch", "armv5l", "--share", "/etc/passwd", "--", "true"],
        125,
        b"not a directory",
    ),
    "share not writable": (
        ["run", "--arch", "armv5l", "--share", "/usr", "--", "true"],
        125,
        b"not writable",
    ),
    "no pool": (["pool", "status", "--name", "none-such"], 1, b"pool up"),
    "bad env": (["run", "--arch", "armv5l", "--env", "=x", "--", "true"], 2, b"K=V"),
    "bad user": (["run", "--arch", "armv5l", "--user", "root", "--", "true"], 2, b"UID:GID"),
    "no command": (["run"], 2, b"hint:"),
    "cwd missing": (
        ["run", "--arch", "armv5l", "--cwd", "/no/such", "--", "true"],
        125,
        b"the working directory",
    ),
    "root missing": (
        ["run", "--arch", "armv5l", "--root", "/no/such", "--", "true"],
        125,
        b"the root directory",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_line(armv5l_image: Image, case: str) -> None:
    argv, status, word = BAD[case]
    done = guestctl(*argv)
    assert done.returncode == status, done.stderr
    assert word in done.stderr
    assert_clear(done.stderr)


def assert_clear(said: bytes) -> None:
    """What went wrong in one line, and what to do in another."""
    # Before it may come what a guest of its own lacks, on a host without a toolchain.
    lines = said.decode().splitlines()
    first, second = [line for line in lines if "nothing is offloaded" not in line]
    assert first.startswith("guestctl: ") and second.startswith("hint: ")


def test_no_qemu_is_named(armv5l_image: Image, tmp_path: Path) -> None:
    done = guestctl("pool", "up", "--arch", "armv5l", env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 3
    assert b"qemu-system-arm" in done.stderr
    assert b"apt-get install" in done.stderr
    assert_clear(done.stderr)


def test_no_image_is_named(own_places: Places, tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "empty")}
    done = guestctl("pool", "up", "--arch", "armv5l", env=env)
    assert done.returncode == 1
    assert b"guestctl image build armv5l" in done.stderr
    assert_clear(done.stderr)


def test_a_share_in_use_is_refused(armv5l_image: Image, places: Places, tmp_path: Path) -> None:
    with (
        Pool("armv5l", 1, places=places, share=str(tmp_path)),
        pytest.raises(PoolError, match="in use") as caught,
    ):
        Pool("armv5l", 1, places=places, share=str(tmp_path / "g0"), single=True)
    assert "one guest at a time" in caught.value.hint


def test_the_host_does_not_touch_a_mounted_share(pool: Pool) -> None:
    with pool.lease(60) as guest:
        with guest.mounted(), pytest.raises(ShareError, match="mounted"):
            os.fspath(guest.work)
        assert os.path.isdir(os.fspath(guest.work))


def test_a_guest_that_cannot_boot_is_noticed_at_once(
    armv5l_image: Image, places: Places, own_places: Places
) -> None:
    begin = time.monotonic()
    with pytest.raises(UsageError):
        Pool("armv5l", 1, places=places, memory=1)
    assert time.monotonic() - begin < 60


def test_a_full_disk_is_named_and_leaves_nothing(armv5l_image: Image, tmp_path: Path) -> None:
    """The run directory lies on a file system of 40 KiB, made in a namespace of the test's own."""
    script = f"""
        mount -t tmpfs -o size=40k,mode=700 none {tmp_path}
        export XDG_RUNTIME_DIR={tmp_path}
        dd if=/dev/zero of=$XDG_RUNTIME_DIR/fill bs=4k 2>/dev/null
        {sys.executable} -m guestctl pool up -n 1 --arch armv5l --name full
        echo status $?
        find $XDG_RUNTIME_DIR -path '*g0*'
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout == b"status 1\n", done
    assert b"No space left on device" in done.stderr
    assert_clear(done.stderr)


def test_a_supervisor_that_cannot_start_is_told_apart(
    armv5l_image: Image, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(GuestLost, match="supervisor of g0 died"):
        Pool("armv5l", 1, places=places)
