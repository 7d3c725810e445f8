"""Bundles of runs, without a guest: what is recorded, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from guestctl.errors import UsageError
from guestctl.image import Image
from guestctl.reproduction import Order, Recording, read_order, unpack_share
from guestctl.rundir import GuestDir
from guestctl.share import Share
from guestctl.spec import Result
from guestctl.translate import list_tree, stage
from tests.corpus import Member, directory, tar_bytes

ORDER = Order(
    arch="armv5l",
    image="0123456789ab",
    argv=("sh", "-c", "echo \udcff"),
    env={"A": "b=c"},
    cwd="/work",
    user="5:6",
    timeout=60.0,
    memory=256,
)
CALL = {"where": "offload", "guest": "g0", "tool": "gcc", "step": "compile", "argv": ["gcc"]}


@pytest.fixture
def share(tmp_path: Path) -> Share:
    wanted = [directory("d"), Member("d/f", data=b"x", uid=7, mode=0o4755), Member("g", data=b"y")]
    stage(io.BytesIO(tar_bytes(wanted)), tmp_path / "tree")
    return Share(tmp_path / "tree", "g0", "mapped-file")


@pytest.fixture
def bundle(tmp_path: Path, share: Share, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("guestctl.reproduction.qemu_version", lambda _row: "QEMU 1")
    image = tmp_path / "image"
    image.mkdir()
    manifest = image / "manifest.json"
    manifest.write_text(json.dumps({"files": {"kernel": "00"}}))
    made = Image("armv5l", ORDER.image, image, image, image, image, None, manifest)
    folder = GuestDir(tmp_path / "g0")
    folder.path.mkdir()
    folder.console.write_bytes(b"the kernel's words\n")
    ledger = tmp_path / "ledger"
    lines = [{**CALL, "job": job, "cwd": "/", "status": 0, "begin": 10.0} for job in (3, 4)]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out" / "run.bundle"
    out.parent.mkdir()
    recording = Recording(out, ORDER, made, share)
    # What happens to the share from now on is not what the command began with.
    (share.path / "g").write_bytes(b"later")
    recording.write(Result((b"sh",), "exited", 2, guest="g0", job=3, began=9.0), folder, ledger)
    recording.close()
    assert [path.name for path in out.parent.iterdir()] == ["run.bundle"]
    return out


def test_what_was_run_comes_back(bundle: Path) -> None:
    order, result = read_order(bundle)
    assert order == ORDER
    assert (result["outcome"], result["status"]) == ("exited", 2)


def test_what_it_holds(bundle: Path) -> None:
    with tarfile.open(bundle) as tar:
        assert tar.getnames() == ["manifest.json", "console.log", "ledger.jsonl", "share.tar.zst"]
        parts = {name: (tar.extractfile(name) or io.BytesIO()).read() for name in tar.getnames()}
    facts = json.loads(parts["manifest.json"])
    assert facts["versions"]["image"] == {"id": ORDER.image, "files": {"kernel": "00"}}
    assert {"guestctl", "qemu", "host", "python"} < set(facts["versions"])
    assert facts["console"] == "the kernel's words\n"
    assert parts["console.log"] == b"the kernel's words\n"
    assert [json.loads(line)["job"] for line in parts["ledger.jsonl"].splitlines()] == [3]


def test_the_share_is_as_it_was_before(bundle: Path, tmp_path: Path) -> None:
    tree = tmp_path / "again"
    unpack_share(bundle, tree, "mapped-file")
    found = {entry.path: entry for entry in list_tree(tree)}
    assert (found[b"d/f"].uid, found[b"d/f"].mode & 0o7777) == (7, 0o4755)
    assert (tree / "g").read_bytes() == b"y"


def packed(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def told(**changes: object) -> bytes:
    order = {"arch": "armv5l", "image": "0", "argv": ["true"], **changes}
    return json.dumps({"version": 1, "order": order, "result": {}}).encode()


BAD = {
    "no tar": b"x" * 2000,
    "empty": b"",
    "another first": packed(("x", b"")),
    "no JSON": packed(("manifest.json", b"{")),
    "a list": packed(("manifest.json", b"[]")),
    "a later version": packed(("manifest.json", b'{"version": 2}')),
    "no order": packed(("manifest.json", b'{"version": 1}')),
    "no command": packed(("manifest.json", told(argv=[]))),
    "a command of numbers": packed(("manifest.json", told(argv=[1]))),
    "an environment of lists": packed(("manifest.json", told(env={"A": []}))),
    "an environment that is none": packed(("manifest.json", told(env=3))),
    "time-outs of words": packed(("manifest.json", told(timeout="soon"))),
    "memory of words": packed(("manifest.json", told(memory="much"))),
}


@pytest.mark.parametrize("what", BAD)
def test_no_bundle_is_a_clear_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(BAD[what])
    with pytest.raises(UsageError, match="no bundle of a run"):
        read_order(path)


def test_a_bundle_without_its_share(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(packed(("manifest.json", told())))
    assert read_order(path)[0].argv == ("true",)
    with pytest.raises(UsageError, match="it has no share"):
        unpack_share(path, tmp_path / "tree", "mapped-file")


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_order(tmp_path / "none")
