"""JSON messages over a pipe, each after four bytes of length; every wait has a deadline."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct(">I")


class PipeClosed(Exception):
    """The other end is gone."""


class PipeTimeout(Exception):
    """Nothing came, or nothing was taken, within the deadline."""


def pack(message: object) -> bytes:
    """The bytes of one message; lone surrogates in its texts travel as escapes."""
    body = json.dumps(message).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"expected a message of at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    return _LENGTH.pack(len(body)) + body


class Pipe:
    """Both directions of a conversation over two non-blocking file descriptors."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(read_fd, select.POLLIN)
        self._writable.register(write_fd, select.POLLOUT)
        self._buffer = bytearray()

    def send(self, data: bytes, timeout_s: float) -> None:
        """Hand over all bytes; raises `PipeClosed` or `PipeTimeout`."""
        deadline = time.monotonic() + timeout_s
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._write_fd, view) :]
            except BlockingIOError:
                if not self._writable.poll(_millis(deadline)) and time.monotonic() >= deadline:
                    raise PipeTimeout from None
            except OSError as error:
                raise PipeClosed from error

    def receive(self, timeout_s: float) -> Any:
        """The next message; raises `PipeClosed` or `PipeTimeout`."""
        deadline = time.monotonic() + timeout_s
        while (message := self._next()) is None:
            if not self._readable.poll(_millis(deadline)):
                if time.monotonic() >= deadline:
                    raise PipeTimeout
                continue
            try:
                chunk = os.read(self._read_fd, 1 << 16)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PipeClosed from error
            if not chunk:
                raise PipeClosed
            self._buffer += chunk
        return message

    def _next(self) -> Any:
        """The first whole message of the buffer, or None."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME_BYTES:
            raise PipeClosed
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return json.loads(body)


def read_blocking(fd: int) -> Any:
    """The next message from a blocking descriptor, or None at its end; the checker's side."""
    head = _read_exactly(fd, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    body = _read_exactly(fd, length)
    return None if body is None else json.loads(body)


def write_blocking(fd: int, message: object) -> None:
    """Write one message to a blocking descriptor; the checker's side."""
    view = memoryview(pack(message))
    while view:
        view = view[os.write(fd, view) :]


def _read_exactly(fd: int, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        chunk = os.read(fd, min(count - len(parts), 1 << 20))
        if not chunk:
            return None
        parts += chunk
    return bytes(parts)


def _millis(deadline: float) -> int:
    return max(0, int((deadline - time.monotonic()) * 1000) + 1)
