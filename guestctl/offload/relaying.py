"""Having a compile host do the middle of a compilation, for a call that the host could make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from guestctl.offload.distccd import HostFailed, compile_there
from guestctl.offload.farside import FarCompiler
from guestctl.offload.machines import Machines
from guestctl.offload.relay import Relay, may_leave, renamed
from guestctl.view import Call, Given, Outcome, View

__all__ = ["relayed"]

_ASSEMBLY = b"/.guestctl-relayed.s"
Register = Callable[[Callable[[], None]], None]


def relayed(
    call: Call, relay: Relay, far: FarCompiler, view: View, machines: Machines, register: Register
) -> Outcome | None:
    """The outcome of a call whose compilation was made by a compile host.

    None: the call is to be made here, as if nothing had been tried. That is so when a host is lost,
    and when anything was said of the source: it must be said of the real one. Raises ViewError.
    """
    times = []
    made_before: tuple[Outcome, ...] = ()
    if relay.preprocess is None:
        texts = [given.data for given in call.given if given.path == relay.source]
        text = texts[0] if texts else None
    else:
        before = _run(view, replace(call, argv=relay.preprocess, stdin=None), register)
        text = before.stdout if _is_silent(before, quiet=False) else None
        made_before = (before,)
        times.append(before.wall)
    if text is None or not may_leave(text):
        return None
    assembly = _there(relay, far, text, machines, register)
    if assembly is None:
        return None
    argv = relay.assemble(call.argv[0], _ASSEMBLY)
    given = (Given(_ASSEMBLY, assembly),)
    last = _run(view, replace(call, argv=argv, given=given, stdin=None), register)
    if not _is_silent(last, quiet=True):
        return None
    written = tuple(file for outcome in (*made_before, last) for file in outcome.written)
    return replace(last, written=written, wall=last.wall + sum(times))


def _there(
    relay: Relay, far: FarCompiler, text: bytes, machines: Machines, register: Register
) -> bytes | None:
    try:
        compiled = compile_there(far.host, relay.remote(far.name), text, register)
    except HostFailed as error:
        machines.lost(far.host, str(error))
        return None
    if compiled.status or compiled.stderr or compiled.stdout:
        return None
    return renamed(compiled.made, far.own, far.theirs)


def _run(view: View, call: Call, register: Register) -> Outcome:
    return view.call(call, lambda: register(lambda: view.cancel(call)))


def _is_silent(outcome: Outcome, *, quiet: bool) -> bool:
    """Whether a step has succeeded without a word; with `quiet`, on standard output neither."""
    said = outcome.stderr or (quiet and outcome.stdout)
    return outcome.status == 0 and not outcome.trouble and not said
