"""What a child does to itself before it touches anything of a stranger's. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_STACK_BYTES = 8 << 20  # the engine's stack limit must stay well below the thread's own
_DESCRIPTORS_MAX = 64


def confine(
    *,
    parent_pid: int,
    address_space_bytes: int,
    file_bytes: int | None = None,
    cpu_s: int | None = None,
    niceness: int = 0,
) -> None:
    """
    Give up what this process will not need; it has its own session and no environment already.

    Dies with its parent. Exits at once where the parent has gone before that could be arranged.
    Seccomp, Landlock and a uid of its own belong at the end of this function.
    """
    os.environ.clear()
    os.umask(0o077)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, argument in ((_PR_SET_PDEATHSIG, int(signal.SIGKILL)), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, argument, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
    if os.getppid() != parent_pid:
        sys.exit(0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _DESCRIPTORS_MAX)
    _limit(resource.RLIMIT_AS, address_space_bytes)
    if file_bytes is not None:
        _limit(resource.RLIMIT_FSIZE, file_bytes)
    if cpu_s is not None:
        # The soft limit ends it by SIGXCPU, which the parent can tell from other deaths.
        _limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
    _hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = _STACK_BYTES if _hard == resource.RLIM_INFINITY else min(_STACK_BYTES, _hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, _hard))
    if niceness:
        os.nice(niceness)
    # When the machine runs out of memory, the kernel takes a guest before it takes the node.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("900")


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Lower a limit; never above what this process was given."""
    ceiling = resource.getrlimit(kind)[1]
    wanted = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        wanted = min(wanted, ceiling)
    resource.setrlimit(kind, (min(soft, wanted), wanted))
