"""What the user's config.yaml says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["setting", "table_of_texts", "texts", "whole_number"]

T = TypeVar("T")


def setting(key: str, read: Callable[[Any], T]) -> T:
    """The value of a key as `read` makes it, of None where it is not said.

    `read` raises TypeError for what it cannot take.
    """
    import platformdirs
    import yaml

    path = Path(platformdirs.user_config_dir("guestctl")) / "config.yaml"
    try:
        facts = yaml.safe_load(path.read_text()) if path.exists() else None
        if facts is not None and not isinstance(facts, dict):
            raise TypeError("must be a mapping")
        return read((facts or {}).get(key))
    except TypeError as error:
        raise click.ClickException(f"{path}: {key}: {error}") from None
    except yaml.YAMLError as error:
        raise click.ClickException(f"{path}: {str(error).splitlines()[0]}") from None


def texts(value: Any) -> tuple[str, ...]:
    """A text or a list of texts."""
    found = (value,) if isinstance(value, str) else [] if value is None else value
    if not isinstance(found, list | tuple) or not all(isinstance(word, str) for word in found):
        raise TypeError("must be a text or a list of texts")
    return tuple(found)


def table_of_texts(value: Any) -> dict[str, str]:
    """A mapping of texts to texts."""
    found = {} if value is None else value
    if not isinstance(found, dict) or not all(
        isinstance(w, str) for w in [*found, *found.values()]
    ):
        raise TypeError("must be a mapping of texts to texts")
    return dict(found)


def whole_number(value: Any) -> int | None:
    """A number, not negative."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise TypeError("must be a whole number")
    return value
