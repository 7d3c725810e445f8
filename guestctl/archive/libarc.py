"""What libarchive does for us: rare compressions in, cpio in, zstd out.

Only filters and the cpio format are enabled: its other formats can name local files (mtree) or
are a needless surface. The library is called through libarchive-c's table of functions.
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from guestctl.entry import Entry, clean_path, type_name
from guestctl.errors import ArchiveError, HostLacks

__all__ = ["FILTERS", "CpioReader", "filtered", "squeezed"]

# Those that the library has in itself. With all of its filters it would start programs.
FILTERS = ("zstd", "lz4", "lzip", "compress")

_CHUNK = 1 << 18
_TRAILER = 256  # a cpio's last header is shorter
_OK, _EOF, _WARN = 0, 1, -20
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_READ = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
)
_WRITE = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
)


def _library() -> Any:
    try:
        import libarchive.ffi
    except (ImportError, OSError, AttributeError) as error:
        raise HostLacks(
            f"libarchive cannot be loaded: {error}", hint="install libarchive13"
        ) from error
    return ctypes.CDLL(libarchive.ffi.libarchive_path)


def _typed(lib: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(lib, name)
    function.restype = result
    function.argtypes = arguments
    return function


class _Lib:
    """The functions that we use, with their types. A handle of our own: types are per handle."""

    def __init__(self) -> None:
        lib = _library()
        p, i, s, z = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
        q = ctypes.c_int64
        self.read_new = _typed(lib, "archive_read_new", p)
        self.filters = {
            kind: _typed(lib, f"archive_read_support_filter_{kind}", i, p) for kind in FILTERS
        }
        self.format_raw = _typed(lib, "archive_read_support_format_raw", i, p)
        self.format_empty = _typed(lib, "archive_read_support_format_empty", i, p)
        self.format_cpio = _typed(lib, "archive_read_support_format_cpio", i, p)
        self.read_open = _typed(lib, "archive_read_open", i, p, p, _OPEN, _READ, p)
        self.next_header = _typed(lib, "archive_read_next_header", i, p, ctypes.POINTER(p))
        self.read_data = _typed(lib, "archive_read_data", ctypes.c_ssize_t, p, p, z)
        self.header_position = _typed(lib, "archive_read_header_position", q, p)
        self.read_free = _typed(lib, "archive_read_free", i, p)
        self.error_string = _typed(lib, "archive_error_string", s, p)
        self.pathname = _typed(lib, "archive_entry_pathname", s, p)
        self.symlink = _typed(lib, "archive_entry_symlink", s, p)
        self.hardlink = _typed(lib, "archive_entry_hardlink", s, p)
        self.mode = _typed(lib, "archive_entry_mode", ctypes.c_uint, p)
        self.uid = _typed(lib, "archive_entry_uid", q, p)
        self.gid = _typed(lib, "archive_entry_gid", q, p)
        self.size = _typed(lib, "archive_entry_size", q, p)
        self.mtime = _typed(lib, "archive_entry_mtime", q, p)
        self.rdevmajor = _typed(lib, "archive_entry_rdevmajor", ctypes.c_ulong, p)
        self.rdevminor = _typed(lib, "archive_entry_rdevminor", ctypes.c_ulong, p)
        self.write_new = _typed(lib, "archive_write_new", p)
        self.write_raw = _typed(lib, "archive_write_set_format_raw", i, p)
        self.write_filter = _typed(lib, "archive_write_add_filter_by_name", i, p, s)
        self.write_block = _typed(lib, "archive_write_set_bytes_per_block", i, p, i)
        self.write_open = _typed(lib, "archive_write_open", i, p, p, _OPEN, _WRITE, p)
        self.write_header = _typed(lib, "archive_write_header", i, p, p)
        self.write_data = _typed(lib, "archive_write_data", ctypes.c_ssize_t, p, s, z)
        self.write_close = _typed(lib, "archive_write_close", i, p)
        self.write_free = _typed(lib, "archive_write_free", i, p)
        self.entry_new = _typed(lib, "archive_entry_new", p)
        self.entry_free = _typed(lib, "archive_entry_free", None, p)
        self.set_filetype = _typed(lib, "archive_entry_set_filetype", None, p, ctypes.c_uint)
        self.set_pathname = _typed(lib, "archive_entry_set_pathname", None, p, s)

    def why(self, handle: Any) -> str:
        return (self.error_string(handle) or b"").decode(errors="replace").strip()


@functools.cache
def _functions() -> _Lib:
    return _Lib()


class _In:
    """A read handle fed by a Python function."""

    def __init__(self, read: Callable[[int], bytes], name: str, *kinds: str) -> None:
        """`kinds` are some of `FILTERS`, or else it is cpio that is read."""
        self.lib = _functions()
        self.name = name
        self.at = ""  # the member being read, for messages
        self.failure: BaseException | None = None
        self.given = 0  # bytes handed to the library
        self.last = b""  # the end of them
        self._block: Any = None
        self.handle = self.lib.read_new()
        for kind in kinds:
            self.lib.filters[kind](self.handle)
        if kinds:
            self.lib.format_raw(self.handle)
            self.lib.format_empty(self.handle)
        else:
            self.lib.format_cpio(self.handle)

        def pull(_archive: Any, _data: Any, pointer: Any) -> int:
            try:
                data = read(_CHUNK)
            except BaseException as error:  # it must not cross the C frames
                self.failure = error
                return -1
            self.given += len(data)
            self.last = self.last[-_TRAILER:] + data
            self._block = ctypes.create_string_buffer(data, max(len(data), 1))
            # Not cast(), whose results are cycles: blocks would be kept until these are collected.
            pointer[0] = ctypes.addressof(self._block)
            return len(data)

        self._pull = _READ(pull)
        self.check(self.lib.read_open(self.handle, None, _OPEN(), self._pull, None))

    def check(self, status: int) -> int:
        if self.failure is not None:
            raise self.failure
        if status < _WARN or (status < 0 and status != _WARN):
            if why := self.lib.why(self.handle):
                raise ArchiveError(f"{self.name}: {why}")
            # It has nothing to say of an end that comes too early.
            where = f" after {self.at}" if self.at else ""
            raise ArchiveError(
                f"{self.name}: the archive is cut short{where}", hint="fetch or make it again"
            )
        return status

    def next(self) -> Any:
        entry = ctypes.c_void_p()
        status = self.check(self.lib.next_header(self.handle, ctypes.byref(entry)))
        if status == _WARN:
            # Of a cpio, that it has looked for another header: a member would be lost.
            raise self.damaged(self.lib.why(self.handle))
        return None if status == _EOF else entry

    def damaged(self, why: str) -> ArchiveError:
        where = f" after {self.at}" if self.at else ""
        return ArchiveError(
            f"{self.name}: the archive is damaged{where}: {why}", hint="fetch or make it again"
        )

    def data(self, buffer: Any) -> bytes:
        got = self.lib.read_data(self.handle, buffer, len(buffer))
        if got < 0:
            self.check(-30)
        return bytes(buffer.raw[:got]) if got < len(buffer) else bytes(buffer.raw)

    def close(self) -> None:
        self.lib.read_free(self.handle)


def filtered(read: Callable[[int], bytes], name: str, *kinds: str) -> Iterator[bytes]:
    """Yields the plain bytes of a stream in one of these kinds of `FILTERS`."""
    source = _In(read, name, *kinds)
    try:
        if source.next() is None:
            return
        buffer = ctypes.create_string_buffer(_CHUNK)
        while data := source.data(buffer):
            yield data
    finally:
        source.close()


class CpioReader:
    """The members of a cpio archive; `size` is that of the payload of the one just yielded."""

    def __init__(self, read: Callable[[int], bytes], name: str, begins: tuple[bytes, ...]) -> None:
        """`begins`: what a header may begin with."""
        self.name = name
        self._begins = begins
        self._in = _In(read, name)
        self._buffer = ctypes.create_string_buffer(_CHUNK)
        self.size = 0

    def __iter__(self) -> Iterator[Entry]:
        lib = self._in.lib
        while (member := self._in.next()) is not None:
            raw = lib.pathname(member) or b""
            self._in.at = shown = os.fsdecode(raw)
            mode = lib.mode(member)
            link = lib.hardlink(member)
            try:
                path = clean_path(raw)
                target = None if link is None else clean_path(link)
            except ValueError as error:
                raise ArchiveError(f"{self.name}: {shown}: {error}") from None
            size = lib.size(member)
            if size and stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFLNK):
                # HP-UX has a device's number there, and no content: members would get lost.
                raise ArchiveError(
                    f"{self.name}: {shown}: a {type_name(mode)} with content",
                    hint="from HP-UX? have `cpio` unpack it" if lib.rdevminor(member) == 1 else "",
                )
            self.size = size if stat.S_ISREG(mode) else 0
            text = (lib.symlink(member) or b"") if stat.S_ISLNK(mode) else b""
            # The library ends it at a NUL byte, which some programs write after it.
            if text and size > len(text) + 1:
                raise ArchiveError(f"{self.name}: {shown}: a link target with a NUL byte")
            yield Entry(
                path,
                mode,
                lib.uid(member),
                lib.gid(member),
                lib.mtime(member) * 10**9,
                self.size,
                text,
                target,
                (lib.rdevmajor(member), lib.rdevminor(member)),
            )

        if not self._end().startswith(self._begins):
            # It says nothing of what it has passed over before the end.
            raise self._in.damaged("something else precedes its end")

    def _end(self) -> bytes:
        """From where the header of the end is to be."""
        source = self._in
        begin = source.lib.header_position(source.handle) - (source.given - len(source.last))
        return source.last[begin:] if begin >= 0 else b""

    def read(self, _size: int) -> bytes:
        return self._in.data(self._buffer)

    def followed(self) -> bool:
        """Whether, after the last member, there is more than zeros in what was read ahead."""
        _, found, rest = self._end().partition(b"TRAILER!!!")
        return bool(found and rest.strip(b"\0"))

    def close(self) -> None:
        self._in.close()


def squeezed(data: bytes, kind: str) -> bytes:
    """What one of libarchive's filters makes of `data`, as a stream of its own."""
    lib = _functions()
    made: list[bytes] = []

    def push(_archive: Any, _data: Any, pointer: int, size: int) -> int:
        made.append(ctypes.string_at(pointer, size))
        return size

    called = _WRITE(push)
    handle = lib.write_new()

    def check(status: int) -> None:
        if status < 0:
            raise ArchiveError(f"compressing: {lib.why(handle) or 'unknown error'}")

    try:
        if lib.write_filter(handle, kind.encode()) != _OK:
            raise HostLacks(f"libarchive cannot write {kind}: {lib.why(handle)}")
        lib.write_raw(handle)
        lib.write_block(handle, 0)
        check(lib.write_open(handle, None, _OPEN(), called, None))
        entry = lib.entry_new()
        lib.set_filetype(entry, stat.S_IFREG)
        lib.set_pathname(entry, b"data")
        try:
            check(lib.write_header(handle, entry))
        finally:
            lib.entry_free(entry)
        written = lib.write_data(handle, data, len(data))
        check(written)
        if written != len(data):
            raise ArchiveError(f"compressing: {written} of {len(data)} bytes were taken")
        check(lib.write_close(handle))
    finally:
        lib.write_free(handle)
    return b"".join(made)
