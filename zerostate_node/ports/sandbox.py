"""Where strangers' code runs, as services see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from zerostate_node.units import Digest
from zerostate_node.wire.messages import Limits, Outcome


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModuleInfo:
    """What the validator learned of a module that it accepts."""

    digest: Digest
    size_bytes: int
    imports: tuple[str, ...]  # "wasi_snapshot_preview1.fd_write"
    exports: tuple[str, ...]
    memory_min_bytes: int
    memory_max_bytes: int | None
    functions: int
    body_bytes_max: int
    compile_ms: float
    cached: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run to make: all of it decided already."""

    module: Digest
    module_path: Path
    stdin: bytes | Path
    args: tuple[str, ...]  # argv[1:]; argv[0] is "agent"
    limits: Limits
    seed: bytes  # 32 bytes, see wire.ids.run_seed
    script_path: Path | None = None
    trace: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended. `stdout` is bytes when small, else a file the caller now owns."""

    outcome: Outcome
    exit_code: int
    stdout: bytes | Path
    stdout_bytes: int
    fuel_used: int
    memory_peak_bytes: int
    wall_us: int
    detail: str  # why, in words a person reads; "" when completed


class Rejection(Exception):
    """A module that will never run here; `code` is one of protocols/guest/1's named refusals."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Sandbox(Protocol):
    """Where strangers' code runs. Nothing of it ever runs or compiles in the node's own process."""

    engine: str  # "wasmtime-50.0.1+guest/1": what a receipt says ran it
    slots: int  # runs at once

    async def prepare(self, module: Digest, path: Path) -> ModuleInfo:
        """Validate and compile into the cache. Raises Rejection; Unavailable when overloaded."""

    async def run(self, run: Run, on_log: Callable[[str], None] | None = None) -> RunResult:
        """
        Run a guest to its end; cancelling kills it. `on_log` hears stderr as it is written.

        Never raises for what a guest did. Raises Rejection when the module cannot be prepared.
        """

    def stats(self) -> Mapping[str, Any]:
        """Workers alive, busy, respawned, runs by outcome, cache entries and bytes."""
