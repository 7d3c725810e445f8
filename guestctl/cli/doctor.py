"""`guestctl doctor`."""

from __future__ import annotations

import click

from guestctl.cli.output import json_option, print_json, print_table

__all__ = ["doctor"]


@click.command()
@click.option("--arch", default=None, help="Check for this architecture only.")
@json_option
def doctor(arch: str | None, as_json: bool) -> int:
    """Check what this host has and lacks, and say how to mend it.

    The exit status is 3 when something is lacking.

    \b
    Example:
      guestctl doctor --arch armv5l
    """
    from guestctl.examine import examine
    from guestctl.places import Places

    findings = examine(Places.of_user(), arch)
    if as_json:
        print_json({"findings": [finding.as_json() for finding in findings]})
    else:
        print_table(
            ("", "WHAT", "FOUND", "MEND"),
            ((finding.mark, finding.what, finding.found, finding.mend) for finding in findings),
        )
    return 3 if any(finding.mark == "lacks" for finding in findings) else 0
