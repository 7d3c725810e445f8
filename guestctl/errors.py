"""What can go wrong, as a tree. An edge turns a class into an exit status.

GuestctlError
├── UsageError        the call makes no sense               exit 2
├── HostLacks         the host has not got what is needed   exit 3
│   └── ViewUnavailable   it cannot confine a tool
├── ImageError        an image cannot be built or loaded
├── DefinitionError   what to build is not said, or not well
├── BuildError        a source cannot be had, or a component cannot be built
├── ArchiveError      an archive is broken or hostile
├── TreeError         a virtfs tree is broken or hostile
├── ShareError        a share cannot be used as asked
├── OffloadError      the host cannot compile for a guest
├── PoolError         a pool cannot be made, found or leased
├── ProtocolError     the peer broke the agent protocol
├── BoardError        a board cannot be reached or trusted
├── RequestFailed     the agent refused a request
├── ViewError         a tool's view could not be made, or was lost
├── GuestLost         the guest died or fell silent         exit 125 of run
│   ├── AgentBroke    its agent broke the protocol          (the guest is ended)
│   └── GuestHung     it lives, and does not answer         (the guest is ended)
├── Detached          a command was left to itself
└── CommandFailed     a command ended with a status but 0
"""

from __future__ import annotations

__all__ = [
    "AgentBroke",
    "ArchiveError",
    "BoardError",
    "BuildError",
    "CommandFailed",
    "DefinitionError",
    "Detached",
    "GuestHung",
    "GuestLost",
    "GuestctlError",
    "HostLacks",
    "ImageError",
    "OffloadError",
    "PoolError",
    "ProtocolError",
    "RequestFailed",
    "ShareError",
    "TreeError",
    "UsageError",
    "ViewError",
    "ViewUnavailable",
    "one_line",
]

_CONTROLS = {code: f"\\{code:03o}" for code in (*range(32), *range(127, 160))}


def one_line(text: str) -> str:
    """The text with control characters as octal escapes: names may come from anyone, and neither
    forge a second line nor move a terminal's cursor."""
    return text.translate(_CONTROLS)


class GuestctlError(Exception):
    """Base of all errors: one line that says what went wrong, and perhaps a hint how to mend it."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(one_line(message))
        self.hint = one_line(hint)


class UsageError(GuestctlError):
    exit_status = 2


class HostLacks(GuestctlError):
    exit_status = 3


class ViewUnavailable(HostLacks):
    """Tools of the host cannot be confined here: nothing is offloaded."""


class ImageError(GuestctlError):
    pass


class DefinitionError(GuestctlError):
    pass


class BuildError(GuestctlError):
    pass


class ArchiveError(GuestctlError):
    pass


class TreeError(GuestctlError):
    pass


class ShareError(GuestctlError):
    pass


class OffloadError(GuestctlError):
    pass


class PoolError(GuestctlError):
    pass


class ProtocolError(GuestctlError):
    pass


class ViewError(GuestctlError):
    """A tool could not be run in a view; whether it ran at all is not known."""


class BoardError(GuestctlError):
    pass


class RequestFailed(GuestctlError):
    """The agent answered a request with an errno."""

    def __init__(self, message: str, *, errno: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class GuestLost(GuestctlError):
    """The guest is gone, or does not answer: nothing is known of what it was doing."""

    def __init__(self, message: str, *, console: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.console = console


class AgentBroke(GuestLost):
    """What the agent said makes no sense: nothing that it says is believed any more."""


class GuestHung(GuestLost):
    """The guest is there, and does not do what it is asked to: nobody should get it again."""


class Detached(GuestctlError):
    """The caller left a command to itself; it goes on in its guest."""


class CommandFailed(GuestctlError):
    """A command in the guest ended with a status that is not 0."""
