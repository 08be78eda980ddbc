"""Where the members of a tar lie: one walk over its headers. Nothing is extracted, and no payload is read.

Formats: POSIX (ustar and pax) and GNU, long names included. See POSIX.1-2017 `pax`, "ustar Interchange Format", and
the chapter "Basic Tar Format" of GNU tar's manual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from unmask.errors import DataError

Read = Callable[[int, int], bytes]
"""Reads bytes of the archive, given start and length; fewer where it ends."""

_BLOCK = 512
_MOST_NAME = 65_536
"""Most bytes of a long name or of pax records."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLANK = b" " * 8
_PADDING = 1 << 16
"""Most bytes looked at together behind an end mark."""
_NO_PAYLOAD = b"123456"
"""Links, devices, folders and FIFOs: whatever their size field says, no payload follows."""
_KINDS = {b"1": "hard link", b"2": "symbolic link", b"S": "sparse file"}


@dataclass(slots=True)
class Member:
    """A regular file in a tar, or what stands in place of one."""

    name: bytes
    start: int
    """Byte of the archive at which its content starts."""
    size: int
    kind: str | None = None
    """None for a regular file; "hard link", "symbolic link" or "sparse file", whose content is not simply there."""


def members(read: Read, start: int, stop: int, what: str) -> Iterator[Member]:
    """The files and links, in order, of the tar that lies between two bytes. Raises DataError when it is damaged."""
    position = start
    name: bytes | None = None  # from the records before a header
    size: int | None = None
    sparse = False
    defaults: dict[bytes, bytes] = {}
    while True:
        header = read(position, _BLOCK) if position + _BLOCK <= stop else b""
        if len(header) != _BLOCK:
            raise _damaged(what, position, "it ends without an end mark; it was truncated")
        if not header[0] and not header.strip(b"\0"):
            if (position := _joined(read, position, stop)) == stop:
                return
            defaults = {}
            continue
        _check(header, position, what, first=position == start)
        kind = header[156:157]
        length = _number(header[124:136], position, what) if size is None else size
        position += _BLOCK
        if kind == b"S" and header[482]:
            position = _skip_sparse_map(read, position, stop, what)
        padded = 0 if kind in _NO_PAYLOAD else (length + _BLOCK - 1) // _BLOCK * _BLOCK
        if position + length > stop and padded:
            raise _damaged(what, position, f"a member of {length} bytes goes beyond its end; it was truncated")
        if kind in b"LKxgX":
            if length > _MOST_NAME:
                raise _damaged(what, position, f"a name of {length} bytes")
            payload = read(position, length)
            if kind == b"L":
                name = payload.partition(b"\0")[0]
            elif kind == b"g":
                defaults |= _records(payload, position, what)
            elif kind != b"K":
                records = defaults | _records(payload, position, what)
                name = records.get(b"GNU.sparse.name", records.get(b"path", name))
                size = _decimal(records[b"size"], position, what) if b"size" in records else None
                sparse = any(key.startswith(b"GNU.sparse.") for key in records)
        else:
            name = _name(header) if name is None else name
            if kind in b"07\0" and not name.endswith(b"/"):
                yield Member(name, position, length, "sparse file" if sparse else None)
            elif kind in _KINDS:
                yield Member(name, position, length, _KINDS[kind])
            name, size, sparse = defaults.get(b"path"), None, False
        position += padded


def _joined(read: Read, position: int, stop: int) -> int:
    """Where the tar begins that `cat` put behind the end mark at `position`; `stop` where nothing follows but zeros, or
    something that is no tar, which every reader of tars ignores."""
    length = _BLOCK
    while position < stop and (blocks := read(position, min(length, stop - position))):
        if rest := blocks.lstrip(b"\0"):
            position += (len(blocks) - len(rest)) // _BLOCK * _BLOCK
            whole = position + _BLOCK <= stop and _is_header(read(position, _BLOCK))
            return position if whole else stop
        position += len(blocks)
        length = min(2 * length, _PADDING)  # never more than was zero so far, as a tar may be nothing but such marks
    return stop


def _is_header(header: bytes) -> bool:
    try:
        _check(header, 0, "", first=False)
    except DataError:
        return False
    return True


def _check(header: bytes, position: int, what: str, *, first: bool) -> None:
    """The checksum of all bytes, with its own field counted as blanks."""
    stored = _number(header[148:156], position, what, bad="not a tar header" if not first else _not_a_tar(header))
    rest = header[:148] + _BLANK + header[156:]
    if stored != sum(rest) and stored != sum(rest) - 256 * sum(byte > 127 for byte in rest):  # some summed signed bytes
        raise _damaged(what, position, _not_a_tar(header) if first else "not a tar header")


def _not_a_tar(header: bytes) -> str:
    for magic, name in _COMPRESSED.items():
        if header.startswith(magic):
            return f"it is compressed ({name}), which cannot be read at random; decompress it to a plain .tar"
    return "it is not a tar"


def _number(field: bytes, position: int, what: str, *, bad: str = "a bad number in a header") -> int:
    """Octal digits; or, with the highest bit set, a big-endian binary number."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.isdigit() and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)
    if not digits and field[0] in b" \0":
        return 0
    raise _damaged(what, position, bad)


def _decimal(digits: bytes, position: int, what: str) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise _damaged(what, position, "a bad size in a pax record")
    return int(digits)


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(payload: bytes, position: int, what: str) -> dict[bytes, bytes]:
    """The pax records "length key=value\\n" that matter here."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(payload) and payload[start]:
        digits = payload[start : start + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = payload[start + len(digits) + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) or not equals or not record.endswith(b"\n") or start + length > len(payload):
            raise _damaged(what, position, "a bad pax record")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            records[key] = value[:-1]
        start += length
    return records


def _skip_sparse_map(read: Read, position: int, stop: int, what: str) -> int:
    """The first byte after the blocks that continue an old GNU sparse header."""
    more = True
    while more:
        block = read(position, _BLOCK) if position + _BLOCK <= stop else b""
        if len(block) != _BLOCK:
            raise _damaged(what, position, "it was truncated")
        more = block[504] != 0
        position += _BLOCK
    return position


def _damaged(what: str, position: int, problem: str) -> DataError:
    return DataError(f"{what} cannot be used: {problem} (at byte {position})")
