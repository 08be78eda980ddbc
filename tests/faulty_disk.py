"""A file system in memory that fails on request and forgets what was not made durable, for tests; Linux alone.

The kernel asks this process for everything that a mounted folder is to hold (FUSE, without a library), so errors and
lost pages reach a program as those of a real disk do. Run as a script, it serves a folder until its input ends:
`python faulty_disk.py FOLDER`; `FaultyDisk` starts it and talks to it. Both need a namespace in which mounting is
allowed: `unshare --user --map-root-user --mount`.
"""

from __future__ import annotations

import copy
import ctypes
import errno
import json
import os
import select
import signal
import stat
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ATTR, _ENTRY, _HEAD = "<6Q10I", "<4Q2I", "<IIQQIII4x"
_MOST = 128 << 10
_CHANGES = {9: "mkdir", 10: "unlink", 11: "rmdir", 12: "rename", 45: "rename", 16: "write", 20: "fsync", 30: "fsync"}
_CHANGES |= {35: "create", 4: "setattr", 8: "create"}
_SILENT = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET


class FaultyDisk:
    """A folder on such a disk. Requests that change something are counted from 1."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, __file__, str(folder)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready"

    def fail(self, at: int, error: str, *, once: bool) -> None:
        """From now on the request number `at`, counted anew, and with `once` no other, ends with EIO, EDQUOT ..."""
        self._say(["fail", at, getattr(errno, error), once])

    def count(self) -> int:
        """Requests since the last `fail` or `heal`."""
        return self._say(["count"])

    def heal(self) -> None:
        self._say(["fail", 0, 0, False])

    def hang(self, *, hangs: bool = True) -> None:
        """Answer nothing from now on, as a server that is gone; until told otherwise."""
        self._server.send_signal(signal.SIGSTOP if hangs else signal.SIGCONT)

    def lose_power(self, *, keeps_names: bool) -> None:
        """Only what was fsynced is still there: of files their contents, of folders which names they hold; with
        `keeps_names` all names, also those of files whose contents are lost."""
        self._say(["cut", keeps_names])

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(10)

    def __enter__(self) -> FaultyDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, words: list[Any]) -> int:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(words) + "\n")
        self._server.stdin.flush()
        return int(self._read())

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


@dataclass
class _Node:
    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    durable: bytes = b""
    durable_names: dict[bytes, int] = field(default_factory=dict)
    mtime: tuple[int, int] = (0, 0)


class _Server:
    def __init__(self, folder: str) -> None:
        self._folder, self._libc = folder.encode(), ctypes.CDLL(None, use_errno=True)
        self._nodes = {1: _Node(stat.S_IFDIR | 0o755)}
        self._count, self._at, self._error, self._once = 0, 0, 0, False
        self._mount()

    def _mount(self) -> None:
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0,default_permissions".encode()
        if self._libc.mount(b"faulty", self._folder, b"fuse", 6, options):
            raise OSError(ctypes.get_errno(), "cannot mount")

    def run(self) -> None:
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([self._fuse, sys.stdin], [], [])
            if self._fuse in ready:
                self._serve()
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    break
                print(self._obey(json.loads(line)), flush=True)
        self._libc.umount2(self._folder, 2)

    def _obey(self, words: list[Any]) -> int:
        if words[0] == "fail":
            self._count, (_, self._at, self._error, self._once) = 0, words
        elif words[0] == "cut":
            self._libc.umount2(self._folder, 2)
            os.close(self._fuse)
            for node in self._nodes.values():
                node.data = bytearray(node.durable)
                if not words[1]:
                    node.names = copy.copy(node.durable_names)
            self._at = self._count = 0
            self._mount()
        return self._count

    def _serve(self) -> None:
        try:
            request = os.read(self._fuse, _MOST + 8192)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                return
            raise
        _, code, unique, node, *_ = struct.unpack_from(_HEAD, request)
        if code in _SILENT:
            return
        try:
            self._fail_if_due(code)
            reply, error = self._answer(code, node, request[40:]), 0
        except OSError as raised:
            reply, error = b"", raised.errno or errno.EIO
        os.write(self._fuse, struct.pack("<IiQ", 16 + len(reply), -error, unique) + reply)

    def _fail_if_due(self, code: int) -> None:
        if code in _CHANGES:
            self._count += 1
            if self._at and (self._count == self._at if self._once else self._count >= self._at):
                raise OSError(self._error, "")

    def _answer(self, code: int, number: int, body: bytes) -> bytes:
        node = self._nodes[number or 1]  # INIT and STATFS are of the whole
        if code == 26:  # INIT
            return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 12, 9, _MOST, 1, _MOST >> 12, 0, *[0] * 8)
        if code == 1:  # LOOKUP
            return self._entry(self._child(node, body[:-1]))
        if code == 3:  # GETATTR
            return self._attr(number)
        if code == 4:  # SETATTR
            valid, _, size, _, _, mtime, _, _, nanoseconds, _, mode = struct.unpack_from("<I4xQQQQQQIIII", body)
            if valid & 1:
                node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
            if valid & 8:
                node.data = node.data[:size].ljust(size, b"\0")
            if valid & 32:
                node.mtime = (mtime, nanoseconds)
            return self._attr(number)
        if code == 9:  # MKDIR
            (mode,) = struct.unpack_from("<I", body)
            return self._entry(self._make(node, body[8:-1], stat.S_IFDIR | mode))
        if code == 8:  # MKNOD
            (mode,) = struct.unpack_from("<I", body)
            return self._entry(self._make(node, body[16:-1], mode))
        if code == 35:  # CREATE
            _, mode = struct.unpack_from("<II", body)
            return self._entry(self._make(node, body[16:-1], stat.S_IFREG | mode)) + bytes(16)
        if code in (10, 11):  # UNLINK, RMDIR
            child = self._nodes[self._child(node, body[:-1])]
            if code == 11 and child.names:
                raise OSError(errno.ENOTEMPTY, "")
            del node.names[body[:-1]]
            return b""
        if code in (12, 45):  # RENAME
            (place,) = struct.unpack_from("<Q", body)
            old, new, _ = body[8 if code == 12 else 16 :].split(b"\0")
            moved, target = self._child(node, old), self._nodes[place]
            if (there := target.names.get(new)) is not None and self._nodes[there].names:
                raise OSError(errno.ENOTEMPTY, "")
            del node.names[old]
            target.names[new] = moved
            return b""
        if code in (14, 27):  # OPEN, OPENDIR
            return bytes(16)
        if code == 15:  # READ
            _, start, size = struct.unpack_from("<QQI", body)
            return bytes(node.data[start : start + size])
        if code == 16:  # WRITE
            _, start, size = struct.unpack_from("<QQI", body)
            node.data.extend(bytes(max(0, start - len(node.data))))
            node.data[start : start + size] = body[40 : 40 + size]
            return struct.pack("<II", size, 0)
        if code == 17:  # STATFS
            return struct.pack("<5Q4I24x", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, 0)
        if code in (20, 30):  # FSYNC, FSYNCDIR
            node.durable, node.durable_names = bytes(node.data), dict(node.names)
            return b""
        if code == 28:  # READDIR
            return self._listing(node, *struct.unpack_from("<8xQI", body))
        if code in (18, 25, 29, 34, 38):  # RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY
            return b""
        raise OSError(errno.ENOSYS, "")

    def _child(self, node: _Node, name: bytes) -> int:
        if name not in node.names:
            raise OSError(errno.ENOENT, "")
        return node.names[name]

    def _make(self, parent: _Node, name: bytes, mode: int) -> int:
        if name in parent.names:
            raise OSError(errno.EEXIST, "")
        number = max(self._nodes) + 1
        self._nodes[number] = _Node(mode)
        parent.names[name] = number
        return number

    def _listing(self, node: _Node, start: int, size: int) -> bytes:
        out = b""
        for place, (name, number) in list(enumerate(node.names.items(), 1))[start:]:
            kind = stat.S_IFMT(self._nodes[number].mode) >> 12
            one = struct.pack("<QQII", number, place, len(name), kind) + name
            one += bytes(-len(one) % 8)
            if len(out) + len(one) > size:
                break
            out += one
        return out

    def _stat(self, number: int) -> bytes:
        node = self._nodes[number or 1]  # INIT and STATFS are of the whole
        size, (seconds, nanoseconds) = len(node.data), node.mtime
        times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
        return struct.pack(_ATTR, number, size, -(-size // 512), *times, node.mode, 1, 0, 0, 0, 4096, 0)

    def _attr(self, number: int) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._stat(number)

    def _entry(self, number: int) -> bytes:
        return struct.pack(_ENTRY, number, 0, 0, 0, 0, 0) + self._stat(number)


if __name__ == "__main__":
    _Server(sys.argv[1]).run()
