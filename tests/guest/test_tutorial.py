"""The tutorial is true to the letter: its first system is made by what the page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from guestctl.image import Image
from tests.tutorial import commands_of, files_of, section


def test_the_system_of_one_program_is_made_as_the_page_says(
    tmp_path: Path, armv5l_image: Image
) -> None:
    text = section("A system of one program")
    for name, content in files_of(text).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    environment = {
        **os.environ,
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    typed = list(commands_of(text))
    assert len(typed) >= 8
    for command in typed:
        done = subprocess.run(
            ["sh", "-c", command.line],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, f"{command.line}: {done.stderr}"
        assert command.matches(done.stdout), f"{command.line} prints:\n{done.stdout}"
    assert "<svg" in (tmp_path / "tiny.html").read_text()
