"""
A sandbox whose guests are Python functions, chosen by the module's digest.

Honours `ports.sandbox`: cancelling a run ends it, what a guest did never raises, a module that was
never prepared is a `Rejection`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from zerostate_node.ports.sandbox import ModuleInfo, Rejection, Run, RunResult
from zerostate_node.units import Digest
from zerostate_node.wire.messages import Outcome

OnLog = Callable[[str], None]
Guest = Callable[[bytes, OnLog], Awaitable[bytes]]
INLINE_BYTES_MAX = 64 * 1024


class GuestFailed(Exception):
    """Raised by a guest function to end with this outcome."""

    def __init__(self, outcome: Outcome, detail: str = "") -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


class FakeSandbox:
    """Runs guests in this process, as many at once as there are slots."""

    engine = "fake-1+guest/1"

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.guests: dict[str, Guest] = {}
        self.running = 0
        self.running_most = 0
        self.outcomes: Counter[str] = Counter()
        self._limiter = trio.CapacityLimiter(slots)

    async def prepare(self, module: Digest, path: Path) -> ModuleInfo:
        if module not in self.guests:
            raise Rejection("malformed", "not a module")
        return ModuleInfo(
            digest=module,
            size_bytes=len(await trio.Path(path).read_bytes()),
            imports=(),
            exports=("_start",),
            memory_min_bytes=65_536,
            memory_max_bytes=None,
            functions=1,
            body_bytes_max=1,
            compile_ms=0.0,
            cached=True,
        )

    async def run(self, run: Run, on_log: OnLog | None = None) -> RunResult:
        await self.prepare(run.module, run.module_path)
        stdin = run.stdin if isinstance(run.stdin, bytes) else run.stdin.read_bytes()
        async with self._limiter:
            self.running += 1
            self.running_most = max(self.running_most, self.running)
            try:
                return await self._result(run, stdin, on_log or (lambda text: None))
            finally:
                self.running -= 1

    async def _result(self, run: Run, stdin: bytes, on_log: OnLog) -> RunResult:
        outcome, stdout, detail = Outcome.COMPLETED, b"", ""
        try:
            stdout = await self.guests[run.module](stdin, on_log)
        except GuestFailed as failed:
            outcome, detail = failed.outcome, failed.detail
        if len(stdout) > run.limits.stdout_bytes_max:
            outcome, stdout, detail = Outcome.OUTPUT_TOO_LARGE, b"", "too much output"
        self.outcomes[outcome.value] += 1
        out: bytes | Path = stdout
        if len(stdout) > INLINE_BYTES_MAX:
            out = run.module_path.with_name(f"stdout-{self.outcomes.total()}")
            out.write_bytes(stdout)
        return RunResult(
            outcome=outcome,
            exit_code=0 if outcome is Outcome.COMPLETED else 1,
            stdout=out,
            stdout_bytes=len(stdout),
            fuel_used=1_000_000 + len(stdin),
            memory_peak_bytes=65_536,
            wall_us=10,
            detail=detail,
        )

    def stats(self) -> Mapping[str, Any]:
        return {"slots": self.slots, "busy": self.running, "outcomes": dict(self.outcomes)}
