"""Answers over HTTP within a time.

The timeout of `http.client` is for each read, and a head is many: one that drips, or endless `100 Continue`, outlasts it.
"""

import io
import socket
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from typing import Any, cast


def limit_answers(connection: HTTPConnection, left: Callable[[], float]) -> None:
    """From now on a read of an answer on `connection`, head or body, waits `left()` seconds; what that raises ends it."""
    connection.response_class = cast(type[HTTPResponse], partial(_TimedResponse, left=left))


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, left: Callable[[], float], **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp = io.BufferedReader(_TimedReads(self.fp.detach(), sock, left))


class _TimedReads(io.RawIOBase):
    """A socket's reads, each with the time that is left."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, left: Callable[[], float]) -> None:
        self._raw, self._sock, self._left = raw, sock, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._left())
        return cast(int | None, self._raw.readinto(buffer))

    def close(self) -> None:
        self._raw.close()
        super().close()
