"""From a module's digest to code that workers can load: checked, compiled once, remembered."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import math
import os
import signal
import stat
from pathlib import Path
from typing import Any

import structlog
import trio

from zerostate_node.errors import Unavailable
from zerostate_node.ports.sandbox import ModuleInfo, Rejection
from zerostate_node.sandbox import abi, engine, limits
from zerostate_node.sandbox.cache import Cache
from zerostate_node.sandbox.children import Child, ChildGone
from zerostate_node.sandbox.limits import SandboxSettings
from zerostate_node.units import Digest

log = structlog.get_logger()

# Not the module's fault, or not known to be: asked again, it is tried again.
_NOT_REMEMBERED = frozenset({"digest_mismatch", "module_too_large"})


@dataclasses.dataclass(frozen=True, slots=True)
class Hot:
    """A compiled module in sealed memory, ready to be handed to a worker."""

    key: bytes
    info: ModuleInfo
    memory: int  # descriptor; the library owns it


class _Job:
    """One preparation that several callers may wait for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.hot: Hot | None = None
        self.error: Rejection | Unavailable | OSError | None = None


class Library:
    """Prepares modules; each digest is compiled once however many ask for it."""

    def __init__(self, settings: SandboxSettings, slots: int) -> None:
        self._settings = settings
        self._fingerprint = engine.fingerprint()
        self.cache = Cache(settings.cache_dir, settings.cache_key, settings.cache_bytes_max)
        self._hot: collections.OrderedDict[Digest, Hot] = collections.OrderedDict()
        self._refused: collections.OrderedDict[Digest, tuple[str, str]] = collections.OrderedDict()
        self._jobs: dict[Digest, _Job] = {}
        self._compilers = trio.CapacityLimiter(max(1, slots // 2))
        self._nursery: trio.Nursery | None = None
        self.compiled = 0

    def open(self, nursery: trio.Nursery) -> None:
        """Compile children live in `nursery`, so that a caller who leaves does not waste them."""
        self._nursery = nursery

    def close(self) -> None:
        """Let go of the memory files; nothing can be prepared any more."""
        self._nursery = None
        for hot in self._hot.values():
            os.close(hot.memory)
        self._hot.clear()

    def stats(self) -> dict[str, Any]:
        """Figures for `Sandbox.stats`."""
        return {
            "cache_entries": self.cache.entries,
            "cache_bytes": self.cache.bytes,
            "modules_hot": len(self._hot),
            "modules_refused": len(self._refused),
            "modules_compiled": self.compiled,
            "compiling": len(self._jobs),
        }

    def ready(self, digest: Digest) -> Hot | None:
        """The module if it is ready to run this instant."""
        hot = self._hot.get(digest)
        if hot is not None:
            self._hot.move_to_end(digest)
        return hot

    async def prepare(self, digest: Digest, path: Path) -> Hot:
        """
        The module, compiled now if need be.

        Raises:
            Rejection: it will never run here.
            Unavailable: not serving, or too many modules wait to be compiled.
        """
        if (hot := self.ready(digest)) is not None:
            return hot
        if digest in self._refused:
            self._refused.move_to_end(digest)
            raise Rejection(*self._refused[digest])
        job = self._jobs.get(digest)
        if job is None:
            if self._nursery is None:
                raise Unavailable("the sandbox is not running", code="sandbox_stopped")
            # Full: this many distinct modules wait; more would only wait longer.
            if len(self._jobs) >= limits.COMPILES_WAITING_MAX:
                raise Unavailable("too many modules wait to be compiled", code="sandbox_busy")
            job = self._jobs[digest] = _Job()
            self._nursery.start_soon(self._perform, job, digest, path)
        await job.done.wait()
        if job.hot is not None:
            return job.hot
        if isinstance(job.error, Rejection):
            raise Rejection(job.error.code, job.error.message)
        raise Unavailable(f"the module could not be prepared: {job.error}", code="sandbox_failed")

    async def _perform(self, job: _Job, digest: Digest, path: Path) -> None:
        """Do a job and tell those who wait, whatever happens."""
        try:
            job.hot = await self._make(digest, path)
            self._keep(digest, job.hot)
        except Rejection as rejection:
            job.error = rejection
            log.info("Module refused", module=digest, code=rejection.code, why=rejection.message)
            if rejection.code not in _NOT_REMEMBERED:
                self._refused[digest] = (rejection.code, rejection.message)
                while len(self._refused) > limits.REFUSED_REMEMBERED_MAX:
                    self._refused.popitem(last=False)
        except (Unavailable, OSError) as error:
            job.error = error
            log.warning("Module could not be prepared", module=digest, error=str(error))
        finally:
            if job.hot is None and job.error is None:
                job.error = Unavailable("the sandbox stopped", code="sandbox_stopped")
            del self._jobs[digest]
            job.done.set()

    def _keep(self, digest: Digest, hot: Hot) -> None:
        self._hot[digest] = hot
        while len(self._hot) > limits.HOT_MODULES_MAX:
            _, oldest = self._hot.popitem(last=False)
            os.close(oldest.memory)

    async def _make(self, digest: Digest, path: Path) -> Hot:
        key = hashlib.sha256(digest.encode() + self._fingerprint).digest()
        # A cached entry was made under the same policy: its name holds the engine, its
        # configuration and the ABI. Only the size is a setting of this node's own.
        loaded = await trio.to_thread.run_sync(self.cache.load, key.hex())
        if loaded is not None:
            facts, memory = loaded
            if facts["size_bytes"] > self._settings.module_bytes_max:
                os.close(memory)
                raise Rejection("module_too_large", f"{facts['size_bytes']} bytes")
            return Hot(key, _info(digest, facts, cached=True), memory)
        async with self._compilers:
            facts, memory = await self._compile(digest, path)
        try:
            await trio.to_thread.run_sync(self.cache.store, key.hex(), facts, memory)
        except OSError as error:
            # The disk is full or gone: the module still runs, it is only not kept.
            log.warning("Compiled module not cached", module=digest, error=str(error))
        except BaseException:
            os.close(memory)
            raise
        self.compiled += 1
        return Hot(key, _info(digest, facts, cached=False), memory)

    async def _compile(self, digest: Digest, path: Path) -> tuple[dict[str, Any], int]:
        """Compile in a child; its info and an (unsealed) memory file of code, now the caller's."""
        if self._nursery is None:
            raise Unavailable("the sandbox is not running", code="sandbox_stopped")
        with contextlib.ExitStack() as stack:
            source = _open(path, self._settings.module_bytes_max)
            stack.callback(os.close, source)
            memory = os.memfd_create("module", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            on_failure = stack.enter_context(contextlib.ExitStack())
            on_failure.callback(os.close, memory)
            settings = self._settings
            child = Child(
                "compiler",
                (
                    settings.compile_memory_bytes_max,
                    max(1, math.ceil(settings.compile_cpu_s_max)),
                    settings.cache_bytes_max,
                ),
            )
            self._nursery.start_soon(child.watch)
            answer: dict[str, Any] | None = None
            killed = False
            try:
                with trio.move_on_after(settings.compile_wall_s_max) as wall:
                    request = {"digest": digest, "bytes_max": settings.module_bytes_max}
                    try:
                        await child.send(request, {"module": source, "output": memory})
                        answer = await child.receive(limits.REQUEST_BYTES_MAX)
                    except ChildGone:
                        await child.ended.wait()
                killed = wall.cancelled_caught
            finally:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.ended.wait()
                journal = child.journal()
                child.close()
            if answer is None:
                raise _failure(child, journal, killed=killed, settings=settings)
            if "refused" in answer:
                code = str(answer["refused"])
                raise Rejection(code if code in abi.REFUSALS else "invalid", str(answer["why"]))
            on_failure.pop_all()
            return answer, memory


def _failure(
    child: Child, journal: str, *, killed: bool, settings: SandboxSettings
) -> Rejection | Unavailable:
    """What the death of a compiler says of the module."""
    if child.status == -signal.SIGXCPU:
        return Rejection("compile_timeout", f"more than {settings.compile_cpu_s_max:g} s of CPU")
    if killed:
        if child.cpu_s >= settings.compile_cpu_s_max / 2:
            return Rejection("compile_timeout", f"more than {settings.compile_wall_s_max:g} s")
        # It hardly got the processor: that says something of this machine, not of the module.
        return Unavailable("this machine is too busy to compile", code="sandbox_busy")
    if "memory allocation" in journal or "MemoryError" in journal:
        return Rejection("compile_out_of_memory", "the compiler ran out of memory")
    log.warning("Compiler died", how=child.death, journal=journal)
    if child.status == -signal.SIGKILL:
        # Not by us: the machine's own want of memory, or its operator.
        return Unavailable("the compiler was killed", code="sandbox_busy")
    return Rejection("compile_crashed", f"the compiler ended by {child.death}")


def _open(path: Path, bytes_max: int) -> int:
    """Open a regular file of at most so many bytes, without ever waiting for one."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a regular file")
    if info.st_size > bytes_max:
        os.close(fd)
        raise Rejection("module_too_large", f"{info.st_size} bytes; at most {bytes_max}")
    return fd


def _info(digest: Digest, facts: dict[str, Any], *, cached: bool) -> ModuleInfo:
    return ModuleInfo(
        digest=digest,
        size_bytes=facts["size_bytes"],
        imports=tuple(facts["imports"]),
        exports=tuple(facts["exports"]),
        memory_min_bytes=facts["memory_min_bytes"],
        memory_max_bytes=facts["memory_max_bytes"],
        functions=facts["functions"],
        body_bytes_max=facts["body_bytes_max"],
        compile_ms=facts["compile_us"] / 1_000,
        cached=cached,
    )
