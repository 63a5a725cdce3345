"""
How the node and its children talk: 4-byte length, msgpack map, descriptors beside it.

A Unix socket pair rather than two pipes, so that modules, inputs and outputs travel as open
descriptors and a child needs no access to any path. This is the children's half: blocking, one
request and one answer at a time.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Any

import msgpack

HEAD_BYTES = 4
DESCRIPTORS_MAX = 6
_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)


def encode(message: dict[str, Any]) -> bytes:
    """One frame."""
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def decode(body: bytes | bytearray) -> dict[str, Any]:
    """
    The map in a frame's body.

    Raises:
        ValueError: it is not a msgpack map with text keys.
    """
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=True, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not a frame: {error}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ValueError("not a frame: a map is expected")
    return message


class Channel:
    """A child's end of the socket pair."""

    def __init__(self, fd: int, bytes_max: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._bytes_max = bytes_max

    def receive(self) -> tuple[dict[str, Any], dict[str, int]] | None:
        """
        The next request and its descriptors by name; None when the node has closed the channel.

        Raises:
            ValueError: the node sent nonsense; a bug, so the child ends.
        """
        data, fds = bytearray(), array.array("i")
        size = HEAD_BYTES
        while len(data) < size:
            if fds:
                chunk = self._socket.recv(size - len(data))
            else:
                chunk, ancillary, _, _ = self._socket.recvmsg(
                    max(size - len(data), 65_536), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
                for level, kind, payload in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
            if not chunk:
                return None
            data += chunk
            if size == HEAD_BYTES and len(data) >= HEAD_BYTES:
                size += int.from_bytes(data[:HEAD_BYTES], "big")
                if size > self._bytes_max:
                    raise ValueError("a request is larger than requests may be")
        message = decode(data[HEAD_BYTES:])
        names = message.get("fds", ())
        if len(names) != len(fds):
            for fd in fds:
                os.close(fd)
            raise ValueError("a request came without its descriptors")
        return message, dict(zip(names, fds, strict=True))

    def send(self, message: dict[str, Any]) -> None:
        """Answer."""
        self._socket.sendall(encode(message))
