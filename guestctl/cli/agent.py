"""`guestctl agent`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["group"]

_UNIT = """\
[Unit]
Description=guestctl agent
After=network.target

[Service]
ExecStart=/usr/local/bin/{command}
Restart=always

[Install]
WantedBy=multi-user.target
"""

_TRUST = {
    "listen": "Who holds the key runs commands there as the user that the agent runs as.",
    "line": "Who is at the other end runs commands there as that user. No console on this line!",
}


@click.group()
def group() -> None:
    """Put the agent on a board or any Linux, so that a pool can have it as a member.

    \b
    Example:
      guestctl agent key board.key
      guestctl agent install --arch armv5l
      guestctl pool up -n 2 --arch armv5l --member board1 --key board.key
    """


@group.command()
@click.argument("file", type=click.Path(path_type=Path))
def key(file: Path) -> None:
    """Make a new key, which the board and this host share.

    \b
    Example:
      guestctl agent key board.key
    """
    from guestctl.board import make_key
    from guestctl.errors import BoardError

    try:
        make_key(file)
    except OSError as error:
        raise BoardError(f"{file}: {error.strerror}") from None


@group.command()
@click.option("--arch", required=True, help="The board's architecture, such as armv5l.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("guestctl-agent"))
@click.option("--listen", default="0.0.0.0:7743", show_default=True, metavar="ADDRESS:PORT")
@click.option("--line", metavar="TTY[@RATE]", help="It shall use this serial line instead.")
def install(arch: str, output: Path, listen: str, line: str | None) -> None:
    """Write the agent, one static program, and print how to install it.

    \b
    Example:
      guestctl agent install --arch armv5l --output guestctl-agent
      guestctl agent install --arch armv5l --line /dev/ttyS1@115200
    """
    from guestctl import image
    from guestctl.imaging.initramfs import init_of
    from guestctl.places import Places

    made = image.load(arch, cache_dir=Places.of_user().cache)
    output.write_bytes(init_of(made.initramfs))
    output.chmod(0o755)
    way = f"--line {line}" if line else f"--listen {listen} /etc/guestctl-agent.key"
    command = f"guestctl-agent agent --plain {way}"
    click.echo(f"# {output} is the agent for {arch}. On the board, as root:")
    click.echo(f"install -m 755 {output.name} /usr/local/bin/guestctl-agent")
    if not line:
        click.echo("install -m 600 board.key /etc/guestctl-agent.key   # of `guestctl agent key`")
    click.echo("# then, without an init system:")
    click.echo(f"{command} &")
    click.echo("# or as /etc/systemd/system/guestctl-agent.service:")
    click.echo(_UNIT.format(command=command), nl=False)
    click.echo(f"# {_TRUST['line' if line else 'listen']}")
