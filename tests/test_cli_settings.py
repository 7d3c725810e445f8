"""The user's config.yaml, as the commands read it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from guestctl.builder.store import TAR, Store
from guestctl.cli.artifact import group
from guestctl.cli.settings import setting, table_of_texts, texts, whole_number


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "guestctl").mkdir()
    return tmp_path / "guestctl" / "config.yaml"


def test_what_is_not_said_is_nothing(config: Path) -> None:
    assert setting("mirror", texts) == ()
    config.write_text("# empty\n")
    assert setting("aliases", table_of_texts) == {}
    assert setting("artifact-bytes", whole_number) is None


def test_values_are_read(config: Path) -> None:
    config.write_text("mirror: a\naliases: {upstream: 'https://a/'}\nartifact-bytes: 5\n")
    assert setting("mirror", texts) == ("a",)
    assert setting("aliases", table_of_texts) == {"upstream": "https://a/"}
    assert setting("artifact-bytes", whole_number) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mirror: [1]", "mirror: must be a text or a list of texts"),
        ("mirror: 7", "mirror: must be a text or a list of texts"),
        ("- list", "must be a mapping"),
        ("mirror: [", "while parsing"),
    ],
)
def test_what_is_wrong_is_named(config: Path, text: str, problem: str) -> None:
    config.write_text(text)
    with pytest.raises(click.ClickException, match=problem) as caught:
        setting("mirror", texts)
    assert str(config) in str(caught.value)


def test_gc_takes_its_bound_from_the_configuration(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    store = Store(tmp_path / "guestctl")
    (tmp_path / TAR).write_bytes(b"x" * 1000)
    store.put("a" * 64, {TAR: tmp_path / TAR}, {"name": "a", "arch": "armv5l", "seconds": {}})
    run = CliRunner().invoke
    refused = run(group, ["gc"])
    assert refused.exit_code == 2
    assert "--max-bytes or artifact-bytes" in refused.output
    config.write_text("artifact-bytes: 100000\n")
    assert run(group, ["gc"]).output == ""
    config.write_text("artifact-bytes: 10\n")
    assert run(group, ["gc"]).output == f"removed a {'a' * 16}\n"
