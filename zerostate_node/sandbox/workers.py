"""One worker as the node sees it: its process, its two output files, the modules it has loaded."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from zerostate_node.ports.sandbox import Run
from zerostate_node.sandbox import limits
from zerostate_node.sandbox.children import Child, ChildGone
from zerostate_node.sandbox.logs import LogTail

_OUTCOMES = frozenset(
    {"completed", "trapped", "out_of_fuel", "out_of_memory", "timed_out", "refused"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says of a run, checked: a worker that ran a guest is not trusted."""

    outcome: str
    exit_code: int
    fuel_used: int
    memory_bytes: int
    wall_us: int
    detail: str


class Overtime(Exception):
    """The worker did not stop its guest in time, and was killed for it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """Where a run writes. The worker's own memory files, or files on disk for a large output."""

    stdout: int
    stderr: int
    path: Path | None = None  # of stdout on disk


class Worker:
    """A worker process; used by one run at a time."""

    def __init__(self) -> None:
        self._stdout = os.memfd_create("stdout", os.MFD_CLOEXEC)
        self._stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        fds = (self._stdout, self._stderr)
        try:
            self.child = Child("worker", fds, inherit=fds)
        except BaseException:
            self._close_files()
            raise
        self._loaded: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        self.runs = 0
        self.rss_bytes = 0

    async def hello(self) -> None:
        """
        Wait until it is ready.

        Raises:
            ChildGone: it ended, or took too long.
        """
        with trio.move_on_after(limits.START_S_MAX):
            await self.child.receive(limits.REPLY_BYTES_MAX)
            return
        raise ChildGone(f"it did not start within {limits.START_S_MAX:g} s")

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet, as far as the node knows."""
        return not self.child.ended.is_set()

    def has(self, key: bytes) -> bool:
        """Whether this module is loaded here."""
        return key in self._loaded

    async def finish(self) -> None:
        """Kill it and let everything go."""
        await self.child.finish()
        self._close_files()

    def _close_files(self) -> None:
        for name in ("_stdout", "_stderr"):
            if (fd := getattr(self, name)) >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def outputs(self, run: Run, directory: Path) -> Outputs:
        """Empty places for the run's output; `release` them after."""
        if run.limits.stdout_bytes_max <= limits.MEMFD_OUTPUT_BYTES_MAX:
            os.ftruncate(self._stdout, 0)
            os.ftruncate(self._stderr, 0)
            return Outputs(self._stdout, self._stderr)
        path = directory / f"{self.child.pid}-{self.runs}.out"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        stdout = os.open(path, flags, 0o600)
        draft = path.with_suffix(".err")
        try:
            stderr = os.open(draft, flags, 0o600)
        except OSError:
            os.close(stdout)
            path.unlink()
            raise
        draft.unlink()  # nobody needs its name
        return Outputs(stdout, stderr, path)

    def release(self, outputs: Outputs) -> None:
        """Give back memory, or close files on disk."""
        if outputs.path is not None:
            os.close(outputs.stdout)
            os.close(outputs.stderr)
        elif self._stdout >= 0:
            os.ftruncate(self._stdout, 0)
            os.ftruncate(self._stderr, 0)

    async def execute(
        self,
        run: Run,
        key: bytes,
        fds: dict[str, int],
        outputs: Outputs,
        on_log: Callable[[str], None] | None,
    ) -> Answer:
        """
        Make a run. `fds` holds descriptors by name: stdin, script, module where not loaded.

        Raises:
            ChildGone: the worker died or spoke nonsense; it must be finished.
            Overtime: it ran past the limit; it has been killed and must be finished.
        """
        self.runs += 1
        bounds = run.limits
        if outputs.path is not None:
            fds = {**fds, "stdout": outputs.stdout, "stderr": outputs.stderr}
        request = {
            "module": key,
            "drop": self._make_room(key),
            "args": run.args,
            "stdin": b"" if "stdin" in fds else run.stdin,
            "file_max": max(bounds.stdout_bytes_max, bounds.stderr_bytes_max),
            "fuel": bounds.fuel_max,
            "wall_ms": bounds.wall_ms_max,
            "memory": bounds.memory_bytes_max,
            "table": bounds.table_elements_max,
            "seed": run.seed,
        }
        tail = LogTail(outputs.stderr, bounds.stderr_bytes_max, on_log) if on_log else None
        kill_at = trio.current_time() + bounds.wall_ms_max / 1_000 + limits.KILL_GRACE_S
        answer: dict[str, Any] | None = None
        with trio.move_on_at(kill_at):
            await self.child.send(request, fds)
            if tail is not None:
                await self._follow(tail)
            answer = await self.child.receive(limits.REPLY_BYTES_MAX)
        if answer is None:
            self.child.kill()
        if tail is not None:
            while tail.pump(last=True):
                await trio.lowlevel.checkpoint()
        if answer is None:
            raise Overtime
        rss_bytes = answer.get("rss", self.rss_bytes)
        self.rss_bytes = rss_bytes if type(rss_bytes) is int else 0
        return _checked(answer, bounds.fuel_max)

    async def _follow(self, tail: LogTail) -> None:
        """Hand on what the guest logs until the worker answers."""
        answered = False
        while not answered:
            with trio.move_on_after(limits.LOG_POLL_S):
                await self.child.readable()
                answered = True
            # One piece a turn: a guest that floods its log cannot hold the loop.
            tail.pump()

    def _make_room(self, key: bytes) -> tuple[bytes, ...]:
        """Note that `key` will be loaded; which modules the worker drops for it."""
        drop = []
        self._loaded[key] = None
        self._loaded.move_to_end(key)
        while len(self._loaded) > limits.WORKER_MODULES_MAX:
            drop.append(self._loaded.popitem(last=False)[0])
        return tuple(drop)


def _checked(answer: dict[str, Any], fuel_max: int) -> Answer:
    outcome, detail = answer.get("outcome"), answer.get("why")
    if outcome not in _OUTCOMES or not isinstance(detail, str):
        raise ChildGone("it answered nonsense")
    numbers = [answer.get(name) for name in ("exit", "fuel", "mem", "us")]
    exit_code, fuel_used, memory_bytes, wall_us = (
        number if type(number) is int and -1 <= number < 1 << 53 else -2 for number in numbers
    )
    if min(exit_code + 1, fuel_used, memory_bytes, wall_us) < 0 or fuel_used > fuel_max:
        raise ChildGone("it answered nonsense")
    return Answer(outcome, exit_code, fuel_used, memory_bytes, wall_us, detail[:500])


def open_inputs(run: Run, stack: contextlib.ExitStack) -> dict[str, int]:
    """
    Descriptors of what does not travel in the request; closed with `stack`.

    Raises:
        OSError: a file is not there.
    """
    fds = {}
    if isinstance(run.stdin, Path):
        fds["stdin"] = _opened(run.stdin, stack)
    elif len(run.stdin) > limits.STDIN_FRAME_BYTES_MAX:
        fds["stdin"] = memory = os.memfd_create("stdin", os.MFD_CLOEXEC)
        stack.callback(os.close, memory)
        view = memoryview(run.stdin)
        while view:
            view = view[os.write(memory, view) :]
    if run.script_path is not None:
        fds["script"] = _opened(run.script_path, stack)
    return fds


def _opened(path: Path, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    stack.callback(os.close, fd)
    return fd
