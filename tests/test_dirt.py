"""Trees that a guest has, or had when it died: marked, said by everybody who looks, and cleared."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from guestctl.errors import GuestLost, RequestFailed, ShareError
from guestctl.mounting import Mounting
from guestctl.rundir import GuestDir
from guestctl.share import Share
from guestctl.translate import check, collect, repair, stage
from guestctl.tree.dirt import cleaned, dirt_of, soiled
from guestctl.tree.state import State, tree_state
from guestctl.vmeta import MODELS
from guestctl.wire import Op
from tests.corpus import Member, tar_bytes


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    stage(io.BytesIO(tar_bytes([Member("a", data=b"x")])), made)
    return made


@pytest.mark.parametrize("model", MODELS)
def test_the_mark_comes_and_goes_and_leaves_nothing(tmp_path: Path, model: str) -> None:
    made = tmp_path / "share"
    made.mkdir()
    os.utime(made, ns=(10**18, 10**18))
    assert soiled(made, model, "guest g0")
    assert not soiled(made, model, "guest g1")
    assert dirt_of(made).startswith("guest g0 had it mounted")
    cleaned(made, model)
    assert not dirt_of(made)
    assert tree_state(made) == State()
    assert not os.listdir(made) and not os.listxattr(made)
    assert made.stat().st_mtime_ns == 10**18


def test_everybody_says_so(tree: Path, tmp_path: Path) -> None:
    soiled(tree, "mapped-file", "guest g0")
    found = {problem.kind: problem for problem in check(tree)}
    assert "guest g0" in found["dirty"].line
    report = collect(tree, tmp_path / "out.tar")
    assert any("guest g0 had it mounted" in line for line in report.warnings)
    more = stage(io.BytesIO(tar_bytes([Member("b")])), tree, into="sub")
    assert any("guest g0 had it mounted" in line for line in more.warnings)
    assert dirt_of(tree)


def test_repair_takes_it_as_it_is(tree: Path) -> None:
    soiled(tree, "mapped-file", "guest g0")
    assert [problem.mended for problem in repair(tree)] == [True]
    assert not check(tree)
    assert (tree / "a").read_bytes() == b"x"


def test_an_empty_tree_that_is_staged_anew_is_clean(tmp_path: Path) -> None:
    made = tmp_path / "share"
    made.mkdir()
    soiled(made, "mapped-file", "guest g0")
    assert not stage(io.BytesIO(tar_bytes([Member("b")])), made).warnings
    assert not dirt_of(made)


class Agent:
    """Answers requests as it is told to."""

    def __init__(self) -> None:
        self.errors: dict[Op, Exception] = {}
        self.meanwhile: Callable[[Op], None] = lambda op: None

    def __call__(self, op: Op, *records: object) -> None:
        self.meanwhile(op)
        if op in self.errors:
            raise self.errors[op]


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def mounting(tmp_path: Path, tree: Path, agent: Agent) -> Mounting:
    folder = GuestDir(tmp_path / "pool" / "g0")
    folder.path.mkdir(parents=True)
    base = tmp_path / "base"
    base.mkdir()
    shares = (Share(tree, "g0", "mapped-file"), Share(base, "g0", "mapped-file", writable=False))
    return Mounting(folder, *shares, agent)


def test_a_share_is_marked_before_the_guest_has_it(
    mounting: Mounting, agent: Agent, tree: Path
) -> None:
    seen: dict[Op, str] = {}
    agent.meanwhile = lambda op: seen.update({op: dirt_of(tree)})
    with mounting.mounted():
        pass
    assert "guest g0 of pool pool" in seen[Op.MOUNT]
    assert seen[Op.UNMOUNT]
    assert not dirt_of(tree)


def test_a_guest_that_dies_leaves_it_dirty_and_the_error_says_so(
    mounting: Mounting, agent: Agent, tree: Path
) -> None:
    agent.errors[Op.UNMOUNT] = GuestLost("gone", hint="look")
    with pytest.raises(GuestLost) as caught, mounting.mounted():
        pass
    assert caught.value.hint.startswith("look; the share")
    assert "marked as dirty" in caught.value.hint
    assert dirt_of(tree)
    # A later guest that does all right does not know what the first one left.
    del agent.errors[Op.UNMOUNT]
    with mounting.mounted():
        pass
    assert dirt_of(tree)


def test_what_could_not_be_written_out_is_dirty(
    mounting: Mounting, agent: Agent, tree: Path
) -> None:
    agent.errors[Op.UNMOUNT] = RequestFailed("no space", errno=28)
    with pytest.raises(RequestFailed), mounting.mounted():
        pass
    assert dirt_of(tree)


def test_what_was_in_use_is_unmounted_the_next_time(
    mounting: Mounting, agent: Agent, tree: Path
) -> None:
    agent.errors[Op.UNMOUNT] = RequestFailed("busy", errno=errno.EBUSY)
    with pytest.raises(ShareError, match="still in use"), mounting.mounted():
        pass
    del agent.errors[Op.UNMOUNT]
    seen = []
    agent.meanwhile = seen.append
    with mounting.mounted():
        assert seen == [Op.UNMOUNT, Op.MOUNT]
    assert not dirt_of(tree)


def test_a_mount_that_failed_leaves_it_clean(mounting: Mounting, agent: Agent, tree: Path) -> None:
    agent.errors[Op.MOUNT] = RequestFailed("no", errno=22)
    with pytest.raises(RequestFailed), mounting.mounted():
        pass
    assert not dirt_of(tree)


def test_leftovers_of_a_dead_holder_are_clean_once_unmounted(
    mounting: Mounting, agent: Agent, tree: Path
) -> None:
    mounting.mount()
    mounting.unlock()  # as its death does
    assert dirt_of(tree)
    mounting.undo_leftovers()
    assert not dirt_of(tree)


def test_a_share_without_room_for_the_mark_is_refused(
    mounting: Mounting, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("guestctl.tree.dirt.write_state", full)
    with pytest.raises(ShareError, match="No space left"), mounting.mounted():
        pytest.fail("it was mounted")
