"""A tree as a whole: its state, who holds it, its model."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from guestctl.errors import TreeError
from guestctl.translate import check, collect, stage, tree_state
from guestctl.tree.state import (
    State,
    clear_state,
    detect_model,
    hold_tree,
    is_partial,
    open_tree,
    remove_contents,
    write_state,
)
from tests.corpus import Member, directory, hardlink, tar_bytes
from tests.handles import handles, left_open


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
def test_the_mark_is_kept_and_removed(tmp_path: Path, model: str) -> None:
    state = State(partial=True, fresh=True, source=b"a\nb=c", into=b"\xff/x")
    with open_tree(tmp_path) as fd:
        write_state(fd, model, state)
        assert tree_state(tmp_path) == state and is_partial(tmp_path)
        write_state(fd, model, State(aside=True))
        assert tree_state(tmp_path) == State(aside=True)
        clear_state(fd, model)
    assert tree_state(tmp_path) == State()
    assert not os.listdir(tmp_path) and not os.listxattr(tmp_path)


@pytest.mark.parametrize("junk", [b"", b"state", b"state=partial\nsource=zz\n"])
def test_a_broken_mark_counts_as_partial(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / ".virtfs_metadata").mkdir()
    (tmp_path / ".virtfs_metadata" / ".virtfs_metadata").write_bytes(junk)
    assert is_partial(tmp_path)
    (tmp_path / ".virtfs_metadata" / ".virtfs_metadata").unlink()
    (tmp_path / ".virtfs_metadata" / ".virtfs_metadata").symlink_to("/dev/null")
    assert is_partial(tmp_path)


def test_holding(tmp_path: Path) -> None:
    with (
        hold_tree(tmp_path),
        hold_tree(tmp_path),
        pytest.raises(TreeError, match="in use"),
        hold_tree(tmp_path, exclusive=True),
    ):
        pass
    with hold_tree(tmp_path, exclusive=True), pytest.raises(TreeError), hold_tree(tmp_path):
        pass


def test_models_are_found_out(tmp_path: Path) -> None:
    for model in ("mapped-file", "mapped-xattr"):
        stage(io.BytesIO(tar_bytes([Member("a")])), tmp_path / model, security_model=model)
        with open_tree(tmp_path / model) as fd:
            assert detect_model(fd) == model
    (tmp_path / "mapped-xattr" / ".virtfs_metadata").mkdir()
    with pytest.raises(TreeError, match="both"):
        collect(tmp_path / "mapped-xattr", io.BytesIO())
    assert [problem.kind for problem in check(tmp_path / "mapped-xattr")] == ["mixed"]


def test_contents_are_removed_without_following(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    inside = tmp_path / "inside"
    (inside / "a/b/c").mkdir(parents=True)
    (inside / "a/b/file").touch()
    (inside / "a/link").symlink_to(outside)
    (inside / "keep").touch()
    with open_tree(inside) as fd:
        remove_contents(fd, keep=b"keep")
    assert os.listdir(inside) == ["keep"] and os.listdir(outside) == ["kept"]


def test_many_and_deep_folders(tmp_path: Path) -> None:
    """More folders than are held open at once, and links between deep ones."""
    one, two = "a/" * 110, "b/" * 110
    wanted = [Member(f"{one}f", data=b"f"), hardlink(f"{two}g", f"{one}f")]
    wanted += [directory(f"d{n}") for n in range(400)]
    wanted += [Member(f"d{n}/f") for n in range(400)]
    wanted += [hardlink(f"d{n}/g", f"{one}f") for n in range(0, 400, 50)]
    open_before = handles()
    stage(io.BytesIO(tar_bytes(wanted)), tmp_path / "tree")
    assert not check(tmp_path / "tree")
    assert (tmp_path / "tree" / f"{one}f").stat().st_nlink == 10
    assert collect(tmp_path / "tree", io.BytesIO()).entries == 1 + 110 * 2 + 2 + 400 * 2 + 8
    assert not left_open(open_before)
