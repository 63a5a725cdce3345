"""
A worker: a process that runs guests one after another, told by the node over one socket.

Started as `python -I -c BOOT worker ...` by `children.py`. Knows no secret, opens no path but
those of descriptors it was handed, and ends when the node does.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from typing import Any

from zerostate_node.sandbox import limits
from zerostate_node.sandbox.confine import confine
from zerostate_node.sandbox.frames import Channel
from zerostate_node.sandbox.guest import Executor, Order, argv

_RSS_EVERY_RUNS = 16


def main(arguments: list[str]) -> None:
    """Serve until the channel closes. Arguments: parent pid, channel, stdout and stderr fds."""
    parent_pid, channel_fd, stdout_fd, stderr_fd = map(int, arguments)
    confine(
        parent_pid=parent_pid,
        address_space_bytes=limits.WORKER_ADDRESS_SPACE_BYTES,
    )
    channel = Channel(channel_fd, limits.REQUEST_BYTES_MAX)
    executor = Executor()
    gc.freeze()  # what was made to start with is not looked through again
    channel.send({"ready": True})
    runs = 0
    while (request := channel.receive()) is not None:
        message, fds = request
        try:
            answer = _run(executor, message, {"stdout": stdout_fd, "stderr": stderr_fd, **fds})
        finally:
            for fd in fds.values():
                os.close(fd)
        runs += 1
        if runs % _RSS_EVERY_RUNS == 0:
            answer["rss"] = _rss_bytes()
        channel.send(answer)


def _run(executor: Executor, message: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
    for key in message["drop"]:
        executor.drop(key)
    if "module" in fds:
        executor.load(message["module"], _path(fds["module"]))
    try:
        arguments = argv(message["args"], _script(fds.get("script")))
    except ValueError as error:
        return {"outcome": "refused", "exit": -1, "fuel": 0, "mem": 0, "us": 0, "why": str(error)}
    # Writing past it fails in the guest with "file too large"; one byte more tells the node so.
    ceiling = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (message["file_max"] + 1, ceiling))
    ending = executor.run(
        message["module"],
        Order(
            argv=arguments,
            stdin=_path(fds["stdin"]) if "stdin" in fds else message["stdin"],
            stdout=_path(fds["stdout"]),
            stderr=_path(fds["stderr"]),
            fuel_max=message["fuel"],
            wall_ms_max=message["wall_ms"],
            memory_bytes_max=message["memory"],
            table_elements_max=message["table"],
            seed=message["seed"],
        ),
    )
    return {
        "outcome": ending.outcome,
        "exit": ending.exit_code,
        "fuel": ending.fuel_used,
        "mem": ending.memory_bytes,
        "us": ending.wall_us,
        "why": ending.detail,
    }


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _script(fd: int | None) -> bytes | None:
    """The script's bytes; one more than allowed is enough to refuse it."""
    if fd is None:
        return None
    with open(fd, "rb", closefd=False) as file:
        return file.read(limits.SCRIPT_BYTES_MAX + 1)


def _rss_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1:])
