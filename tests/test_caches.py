"""Clearing the cache: what is due goes, what is in use stays, and sizes are true."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from guestctl.caches import collect, items, usage
from guestctl.cli.cache import group
from guestctl.errors import UsageError
from guestctl.places import Places
from guestctl.rundir import GuestDir, PoolDir, flocked, write_json

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
DAY = 86400


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(*(tmp_path / name for name in ("cache", "run", "config", "data")))
    for folder in (made.cache, made.runtime):
        folder.mkdir(mode=0o700)
    return made


def put(path: Path, size: int = 4096, *, days: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return aged(path, days)


def aged(path: Path, days: float) -> Path:
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def image(places: Places, name: str, *, days: float = 0) -> Path:
    folder = places.cache / "images" / name
    for part in ("root", "kernel", "manifest.json"):
        put(folder / part, days=days)
    return aged(folder, days)


def template(places: Places, name: str, *, boot: str = BOOT) -> Path:
    folder = places.cache / "templates" / name
    put(folder / "ram")
    write_json(folder / "template.json", {"boot": boot})
    return folder


def pool(places: Places, **spec: str) -> PoolDir:
    made = PoolDir.named(places.runtime, "mine")
    made.create()
    made.write_spec({"name": "mine"})
    folder = GuestDir(made.path / "g0")
    folder.path.mkdir()
    folder.write_spec({"arch": "armv5l", **spec})
    return made


def names(gone: list[tuple[object, int]]) -> set[str]:
    return {item.name for item, _freed in gone}  # type: ignore[attr-defined]


def test_nothing_is_no_error(places: Places) -> None:
    assert collect(places, keep_days=0, max_size=0) == []
    assert all(kind.items == 0 for kind in usage(places).values())


def test_what_is_old_goes(places: Places) -> None:
    old, young = image(places, "armv5l-old", days=40), image(places, "armv5l-young", days=3)
    deb = put(places.cache / "packages" / "sha256" / "ab" / "abcd", days=40)
    log = put(places.cache / "logs" / "kernel.log", days=3)
    gone = collect(places, keep_days=30, max_size=None, dry_run=True)
    assert names(gone) == {"armv5l-old", "abcd"}
    assert old.exists() and deb.exists()
    assert collect(places, keep_days=30, max_size=None) == gone
    assert not old.exists() and not deb.exists()
    assert young.exists() and log.exists()


def test_a_used_image_is_young(places: Places) -> None:
    folder = image(places, "armv5l-old", days=40)
    (folder / "used").touch()
    assert collect(places, keep_days=30, max_size=None) == []


def test_templates_of_another_boot_go_in_any_case(places: Places) -> None:
    kept, stale = template(places, "armv5l-a"), template(places, "armv5l-b", boot="another")
    damaged = template(places, "armv5l-c")
    (damaged / "template.json").write_text("{")
    assert names(collect(places, keep_days=None, max_size=None)) == {"armv5l-b", "armv5l-c"}
    assert kept.exists() and not stale.exists()


def test_what_pools_were_made_from_stays(places: Places) -> None:
    folder, saved = image(places, "armv5l-mine", days=90), template(places, "armv5l-k", boot="x")
    pool(places, root=str(folder / "root"), template=str(saved))
    toolchain = put(places.cache / "steps" / "toolchain-armv5l-1" / "facts", days=90).parent
    other = put(places.cache / "steps" / "toolchain-x86_64-1" / "facts", days=90).parent
    share = put(places.cache / "shares" / "mine" / "g0" / "file", days=90)
    lost = put(places.cache / "shares" / "gone" / "g0" / "file", days=90)
    for each in (toolchain, other, share.parent.parent, lost.parent.parent):
        aged(each, 90)
    assert {item.name for item in items(places) if item.busy} == {
        *("armv5l-mine", "armv5l-k", "toolchain-armv5l-1", "mine"),
    }
    assert names(collect(places, keep_days=0, max_size=0)) == {"toolchain-x86_64-1", "gone"}
    assert folder.exists() and saved.exists() and share.exists() and toolchain.exists()
    assert not lost.exists() and not other.exists()


def test_the_oldest_go_until_the_rest_is_small_enough(places: Places) -> None:
    for number in range(5):
        put(places.cache / "logs" / f"{number}.log", 1 << 20, days=10 - number)
    gone = collect(places, keep_days=None, max_size=(2 << 20) + 65536)
    assert [item.name for item, _freed in gone] == ["0.log", "1.log", "2.log"]
    assert sum(freed for _item, freed in gone) == 3 << 20


def test_what_has_two_names_counts_once(places: Places) -> None:
    step = put(places.cache / "steps" / "root-armv5l-1" / "root", 1 << 20, days=9)
    aged(step.parent, 9)
    folder = image(places, "armv5l-1", days=5)
    (folder / "root").unlink()
    os.link(step, folder / "root")
    # The step goes first, and frees nothing of what the image still has.
    gone = collect(places, keep_days=None, max_size=0)
    assert [item.name for item, _freed in gone] == ["root-armv5l-1", "armv5l-1"]
    assert gone[0][1] < 1 << 20 <= gone[1][1]
    assert (folder.exists(), step.exists()) == (False, False)


@pytest.fixture
def held(places: Places) -> Iterator[Path]:
    step = put(places.cache / "steps" / "kernel-armv5l-1" / "kernel").parent
    handle = flocked(step.with_name(f".{step.name}.lock"))
    assert handle is not None
    yield step
    os.close(handle)


def test_what_somebody_works_on_stays(places: Places, held: Path) -> None:
    assert collect(places, keep_days=0, max_size=0) == []
    assert held.exists()


def test_read_only_folders_go_too(places: Places) -> None:
    file = put(places.cache / "trees" / "key" / "tree" / "deep" / "file", days=9)
    file.parent.chmod(0o500)
    assert names(collect(places, keep_days=None, max_size=None)) == {"key"}
    assert not (places.cache / "trees" / "key").exists()


def test_the_command_line(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "of_user", lambda: places)
    put(places.cache / "logs" / "a.log", 1 << 20, days=9)
    shown = json.loads(CliRunner().invoke(group, ["show", "--json"]).stdout)
    assert shown["version"] == 1 and shown["kinds"]["logs"]["bytes"] == 1 << 20
    assert "logs" in CliRunner().invoke(group, ["show"]).stdout
    dry = CliRunner().invoke(group, ["gc", "--keep-days", "1", "--dry-run"])
    assert "1 would be removed, 1 MiB" in dry.stdout
    done = json.loads(CliRunner().invoke(group, ["gc", "--max-size", "0.5M", "--json"]).stdout)
    assert [each["name"] for each in done["removed"]] == ["a.log"]
    assert done["bytes"] == 1 << 20
    wrong = CliRunner().invoke(group, ["gc", "--max-size", "much"])
    assert isinstance(wrong.exception, UsageError)
