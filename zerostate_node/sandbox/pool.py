"""
`PooledSandbox`: guests run in worker processes that the node starts, watches and kills.

There is one worker more than runs at once, so that the loss of one costs the next run nothing.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
import trio

from zerostate_node.errors import Unavailable
from zerostate_node.ports.sandbox import ModuleInfo, Run, RunResult
from zerostate_node.sandbox import engine, limits
from zerostate_node.sandbox.children import ChildGone
from zerostate_node.sandbox.limits import SandboxSettings
from zerostate_node.sandbox.modules import Hot, Library
from zerostate_node.sandbox.workers import Answer, Outputs, Overtime, Worker, open_inputs
from zerostate_node.units import Digest
from zerostate_node.wire.messages import Outcome

log = structlog.get_logger()

_SPARE = 1
_BACKOFF_S = (0.05, 0.2, 1.0, 5.0)  # between attempts to start workers that will not start
# After these the output is whole, or cut at a place that the run's input alone decides.
_OUTPUT_KEPT = frozenset(
    {Outcome.COMPLETED, Outcome.TRAPPED, Outcome.OUT_OF_FUEL, Outcome.OUT_OF_MEMORY}
)


class PooledSandbox:
    """The `Sandbox` port over a pool of worker processes."""

    def __init__(self, settings: SandboxSettings) -> None:
        self.engine = engine.version()
        self.slots = settings.slots or len(os.sched_getaffinity(0))
        self._settings = settings
        self._library = Library(settings, self.slots)
        # Full: every slot runs a guest; further runs wait their turn, first come first served.
        self._slots = trio.CapacityLimiter(self.slots)
        self._workers: set[Worker] = set()  # started and not yet finished, ready or not
        self._idle: list[Worker] = []  # the last is the warmest
        self._came = trio.lowlevel.ParkingLot()  # waits for an idle worker
        self._went = trio.lowlevel.ParkingLot()  # waits for a worker to end
        self._nursery: trio.Nursery | None = None
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._started = 0
        self._recycled = 0
        self._died = 0

    # -- the service ------------------------------------------------------------------------
    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """
        Keep the pool; `run` and `prepare` work while this runs. Started once a worker is ready.

        Raises:
            OSError: the cache directory cannot be made ours.
            Unavailable: (in a group) no worker ever came up.
        """
        await trio.to_thread.run_sync(self._library.cache.open)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._library.open(nursery)
            try:
                nursery.start_soon(self._keep_full)
                while not self._idle:
                    await self._came.park()
                log.info("Sandbox ready", engine=self.engine, slots=self.slots)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._library.close()
                for worker in self._workers:
                    worker.child.kill()
                self._came.unpark_all()  # whoever waits learns that none will come

    async def _keep_full(self) -> None:
        """Start workers until there are enough; again whenever one goes."""
        failures = 0
        while True:
            missing = self.slots + _SPARE - len(self._workers)
            if missing <= 0:
                await self._went.park()
                continue
            came = await self._start_some(missing)
            failures = 0 if came else failures + 1
            if failures > len(_BACKOFF_S) and not self._started:
                # It never worked here: a node that cannot run guests should say so and not start.
                raise Unavailable(
                    "no sandbox worker starts on this machine",
                    code="sandbox_broken",
                    hint="the log before this line holds what the workers said",
                )
            if failures:
                await trio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])

    async def _start_some(self, count: int) -> bool:
        """Start so many at once; whether any came up."""
        came = False

        async def start_one() -> None:
            nonlocal came
            came = await self._start() or came

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(start_one)
        return came

    async def _start(self) -> bool:
        if self._nursery is None:
            return False
        try:
            worker = Worker()
        except OSError as error:
            log.error("Worker not started", error=str(error))
            return False
        self._workers.add(worker)
        self._nursery.start_soon(self._watch, worker)
        try:
            await worker.hello()
        except ChildGone as error:
            log.error("Worker not started", error=str(error), journal=worker.child.journal())
            await worker.finish()
            return False
        except BaseException:
            await worker.finish()
            raise
        self._started += 1
        self._idle.insert(0, worker)
        self._came.unpark_all()
        return True

    async def _watch(self, worker: Worker) -> None:
        """Until it ends; then make room for another."""
        await worker.child.watch()
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
            if self._nursery is not None:
                self._died += 1
                log.warning("Idle worker died", how=worker.child.death)
            await worker.finish()
        self._went.unpark_all()

    # -- the port ---------------------------------------------------------------------------
    async def prepare(self, module: Digest, path: Path) -> ModuleInfo:
        """Validate and compile into the cache. See the port."""
        if (hot := self._library.ready(module)) is not None:
            return dataclasses.replace(hot.info, cached=True)
        return (await self._library.prepare(module, path)).info

    async def run(self, run: Run, on_log: Callable[[str], None] | None = None) -> RunResult:
        """Run a guest to its end. See the port."""
        await self._library.prepare(run.module, run.module_path)
        async with self._slots:
            result = await self._attempt(run, on_log, again=True)
            if result is None:
                result = await self._attempt(run, on_log, again=False)
        assert result is not None
        self._outcomes[result.outcome.value] += 1
        return result

    def stats(self) -> Mapping[str, Any]:
        """Workers alive, busy, respawned, runs by outcome, cache entries and bytes."""
        return {
            "slots": self.slots,
            "workers": len(self._workers),
            "busy": self._slots.borrowed_tokens,
            "waiting": self._slots.statistics().tasks_waiting,
            "workers_started": self._started,
            "workers_recycled": self._recycled,
            "workers_died": self._died,
            "worker_pids": sorted(worker.child.pid for worker in self._workers),
            "runs": dict(self._outcomes),
            **self._library.stats(),
        }

    # -- a run ------------------------------------------------------------------------------
    async def _attempt(
        self, run: Run, on_log: Callable[[str], None] | None, *, again: bool
    ) -> RunResult | None:
        """One try; None when the worker was killed by somebody else and `again` is allowed."""
        if refused := _refused(run):
            return _ended(Outcome.REFUSED, refused)
        with contextlib.ExitStack() as stack:
            try:
                fds = open_inputs(run, stack)
            except OSError as error:
                return _ended(Outcome.UNFETCHABLE, f"an input cannot be read: {error.strerror}")
            worker, hot = await self._take(run)
            begun = trio.current_time()
            try:
                # From here on the worker is this run's: it goes back idle or it is finished.
                if not worker.has(hot.key):
                    # Our own copy, since the library may let go of its own at any await.
                    fds["module"] = os.dup(hot.memory)
                    stack.callback(os.close, fds["module"])
                outputs = worker.outputs(run, self._library.cache.runs_directory)
                try:
                    answer = await worker.execute(run, hot.key, fds, outputs, on_log)
                    result = await self._result(run, answer, outputs)
                finally:
                    worker.release(outputs)
                    if outputs.path is not None:
                        _remove_unless_kept(outputs.path, locals().get("result"))
            except Overtime:
                await worker.finish()
                return dataclasses.replace(
                    _ended(Outcome.TIMED_OUT, "the wall-clock limit passed; the worker was killed"),
                    fuel_used=run.limits.fuel_max,
                    wall_us=int((trio.current_time() - begun) * 1_000_000),
                )
            except ChildGone as error:
                alone = await worker.child.die()
                journal = worker.child.journal()
                await worker.finish()
                self._died += 1
                how = worker.child.death
                log.warning(
                    "Worker died", how=how, error=str(error), module=run.module, journal=journal
                )
                if again and alone and worker.child.status == -signal.SIGKILL:
                    return None
                return dataclasses.replace(
                    _ended(Outcome.TRAPPED, f"the worker died by {how}"),
                    wall_us=int((trio.current_time() - begun) * 1_000_000),
                )
            except BaseException:
                await worker.finish()  # cancelled: precisely this run's process ends
                raise
            await self._give_back(worker)
            return result

    async def _take(self, run: Run) -> tuple[Worker, Hot]:
        """An idle worker, one that knows the module where there is one, and the module."""
        while True:
            hot = await self._library.prepare(run.module, run.module_path)
            warm = (worker for worker in reversed(self._idle) if worker.has(hot.key))
            worker = next(warm, self._idle[-1] if self._idle else None)
            if worker is not None:
                self._idle.remove(worker)
                return worker, hot
            if self._nursery is None:
                raise Unavailable("the sandbox is not running", code="sandbox_stopped")
            await self._came.park()

    async def _give_back(self, worker: Worker) -> None:
        """Idle again, or finished where it has done its share or keeps too much memory."""
        worn = worker.runs >= self._settings.recycle_runs_max
        if worn or worker.rss_bytes > limits.WORKER_RSS_BYTES_MAX:
            self._recycled += 1
            await worker.finish()
        elif worker.alive:
            self._idle.append(worker)
            self._came.unpark_all()
        else:
            await worker.finish()

    async def _result(self, run: Run, answer: Answer, outputs: Outputs) -> RunResult:
        """The answer with the output, whose size is looked at here and not taken on trust."""
        outcome, detail = Outcome(answer.outcome), answer.detail
        stdout_bytes = os.fstat(outputs.stdout).st_size
        for name, size, most in (
            ("output", stdout_bytes, run.limits.stdout_bytes_max),
            ("log", os.fstat(outputs.stderr).st_size, run.limits.stderr_bytes_max),
        ):
            if size > most and outcome is not Outcome.TIMED_OUT:
                outcome, detail = Outcome.OUTPUT_TOO_LARGE, f"its {name} is over {most} bytes"
        stdout: bytes | Path = b""
        if outcome not in _OUTPUT_KEPT:
            stdout_bytes = 0
        elif stdout_bytes <= limits.STDOUT_INLINE_BYTES_MAX:
            stdout = os.pread(outputs.stdout, stdout_bytes, 0)
        elif outputs.path is not None:
            stdout = outputs.path
        else:
            directory = self._library.cache.runs_directory
            stdout = await trio.to_thread.run_sync(_spill, outputs.stdout, directory)
        return RunResult(
            outcome=outcome,
            exit_code=answer.exit_code,
            stdout=stdout,
            stdout_bytes=stdout_bytes,
            fuel_used=answer.fuel_used,
            memory_peak_bytes=answer.memory_bytes,
            wall_us=answer.wall_us,
            detail=detail,
        )


def _refused(run: Run) -> str:
    """Why a run is not even begun; "" where nothing speaks against it."""
    most = run.limits.stdin_bytes_max
    if isinstance(run.stdin, bytes):
        size = len(run.stdin)
    else:
        try:
            size = run.stdin.stat().st_size
        except OSError:
            return ""  # opening it tells
    if size > most:
        return f"the input has {size} bytes; at most {most} are allowed"
    if sum(len(arg) for arg in run.args) > limits.ARGS_BYTES_MAX:
        return f"the arguments are longer than {limits.ARGS_BYTES_MAX} characters"
    if len(run.seed) != 32:
        return "the seed must have 32 bytes"
    return ""


def _ended(outcome: Outcome, detail: str) -> RunResult:
    """A run without output."""
    return RunResult(
        outcome=outcome,
        exit_code=-1,
        stdout=b"",
        stdout_bytes=0,
        fuel_used=0,
        memory_peak_bytes=0,
        wall_us=0,
        detail=detail,
    )


def _spill(source: int, directory: Path) -> Path:
    """Copy an output from memory to a file of the caller's."""
    path = directory / f"{os.urandom(12).hex()}.out"
    with (
        open(source, "rb", closefd=False) as memory,
        open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
        ) as file,
    ):
        memory.seek(0)
        shutil.copyfileobj(memory, file)
    return path


def _remove_unless_kept(path: Path, result: RunResult | None) -> None:
    if result is None or result.stdout != path:
        path.unlink(missing_ok=True)
