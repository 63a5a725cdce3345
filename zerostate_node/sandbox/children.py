"""The node's half of its children: start, talk, wait for the end, kill."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

import zerostate_node
from zerostate_node.sandbox import frames

# `-I` keeps the working directory, the user's site and PYTHON* variables out. The package comes
# from where this process has it, be that a wheel or a checkout; all else from the usual places.
_BOOT = (
    "import sys; root = sys.argv.pop(1); "
    "sys.path.insert(0, root); import zerostate_node; sys.path.remove(root); "
    "from importlib import import_module as load; "
    "load('zerostate_node.sandbox.' + sys.argv[1]).main(sys.argv[2:])"
)
_ROOT = str(Path(zerostate_node.__file__).resolve().parent.parent)
_JOURNAL_BYTES_MAX = 2_000
_DEATH_S_MAX = 2.0  # between a closed channel and the end of the process


class ChildGone(Exception):
    """The child closed its end or spoke nonsense; `Child.ended` tells how it died."""


class Child:
    """
    One child process and the socket to it.

    Whoever starts it must have `watch` running until it has ended: only that reaps it.
    """

    def __init__(self, entry: str, arguments: Sequence[int], inherit: Sequence[int] = ()) -> None:
        """Start `zerostate_node.sandbox.<entry>`; it is told our pid and its socket first."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._journal = os.memfd_create("journal", os.MFD_CLOEXEC)
        try:
            command = [sys.executable, "-I", "-X", "utf8", "-c", _BOOT, _ROOT, entry]
            command += [str(os.getpid()), str(theirs.fileno()), *map(str, arguments)]
            # In this thread, not in one of trio's: PR_SET_PDEATHSIG fires when the *thread* that
            # forked ends, and trio's threads end when idle. It takes about two milliseconds.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._journal,
                env={k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"},
                cwd="/",
                pass_fds=(theirs.fileno(), *inherit),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            os.close(self._journal)
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._socket = trio.socket.from_stdlib_socket(ours)
        self.ended = trio.Event()
        self.status = 0  # as subprocess: exit code, or minus the signal
        self.cpu_s = 0.0

    async def watch(self) -> None:
        """Wait for the end and reap. Shielded: whoever cancels has to kill."""
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(self._pidfd)
        self.reap()

    def reap(self) -> None:
        """Collect the exit status; blocks where it has not ended, so `kill` first."""
        if self.ended.is_set():
            return
        _, status, usage = os.wait4(self.pid, 0)
        self._note(status, usage)

    def _note(self, status: int, usage: resource.struct_rusage) -> None:
        self.status = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        os.close(self._pidfd)
        self.ended.set()

    def kill(self) -> None:
        """End it now. Never hits another process: the pidfd names this one for ever."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def die(self) -> bool:
        """Wait a moment for it to end by itself, then kill it; whether it ended by itself."""
        with trio.move_on_after(_DEATH_S_MAX):
            await self.ended.wait()
        alone = self.ended.is_set()
        self.kill()
        with trio.CancelScope(shield=True):
            await self.ended.wait()
        return alone

    async def finish(self) -> None:
        """Kill it, wait until it is gone, close what was held for it."""
        self.kill()
        with trio.CancelScope(shield=True):
            await self.ended.wait()
        self.close()

    def close(self) -> None:
        """Close the descriptors; a child that lives sees the end of its channel."""
        self._socket.close()
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    @property
    def death(self) -> str:
        """How it ended, in words: `signal 11 (SIGSEGV)` or `exit code 3`."""
        if self.status >= 0:
            return f"exit code {self.status}"
        with contextlib.suppress(ValueError):
            return f"signal {-self.status} ({signal.Signals(-self.status).name})"
        return f"signal {-self.status}"

    def journal(self) -> str:
        """The last of what it wrote to its own standard error (not the guest's)."""
        if self._journal < 0:
            return ""
        size = os.fstat(self._journal).st_size
        tail = os.pread(self._journal, _JOURNAL_BYTES_MAX, max(size - _JOURNAL_BYTES_MAX, 0))
        return tail.decode(errors="replace")

    async def send(self, message: dict[str, Any], fds: dict[str, int] | None = None) -> None:
        """
        Send a request with descriptors, which stay the caller's.

        Raises:
            ChildGone: nobody reads any more.
        """
        data = memoryview(frames.encode({**message, "fds": list(fds or ())}))
        rights = []
        if fds:
            packed = array.array("i", fds.values()).tobytes()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
        try:
            sent = await self._socket.sendmsg([data], rights)
            while sent < len(data):
                sent += await self._socket.send(data[sent:])
        except OSError as error:
            raise ChildGone(str(error)) from error

    async def readable(self) -> None:
        """Wait until the child has answered or gone."""
        await trio.lowlevel.wait_readable(self._socket)

    async def receive(self, bytes_max: int) -> dict[str, Any]:
        """
        The next answer. A child that has run a guest is not trusted: bounded before it is parsed.

        Raises:
            ChildGone: it closed its end, or what it sent is not an answer.
        """
        data = bytearray()
        size = frames.HEAD_BYTES
        try:
            while len(data) < size:
                chunk = await self._socket.recv(65_536)
                if not chunk:
                    raise ChildGone("it closed the channel")
                data += chunk
                if size == frames.HEAD_BYTES and len(data) >= frames.HEAD_BYTES:
                    size += int.from_bytes(data[: frames.HEAD_BYTES], "big")
                    if size > bytes_max:
                        raise ChildGone("an answer is larger than answers may be")
            return frames.decode(data[frames.HEAD_BYTES : size])
        except (OSError, ValueError) as error:
            raise ChildGone(str(error)) from error
