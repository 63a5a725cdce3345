"""Real modules, small enough to read, each with one habit; and a pool to run them in."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio
import wasmtime

from zerostate_node.ports.sandbox import Run
from zerostate_node.sandbox.limits import SandboxSettings
from zerostate_node.sandbox.pool import PooledSandbox
from zerostate_node.units import MIB, Digest
from zerostate_node.wire.ids import digest_of
from zerostate_node.wire.messages import Limits

KEY = b"a key that only this test knows."
SEED = bytes(range(32))

_IMPORTS = "".join(
    f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {params}) {result}))\n'
    for name, params, result in (
        ("fd_write", "i32 i32 i32 i32", "(result i32)"),
        ("fd_read", "i32 i32 i32 i32", "(result i32)"),
        ("poll_oneoff", "i32 i32 i32 i32", "(result i32)"),
        ("random_get", "i32 i32", "(result i32)"),
        ("clock_time_get", "i32 i64 i32", "(result i32)"),
        ("args_sizes_get", "i32 i32", "(result i32)"),
        ("args_get", "i32 i32", "(result i32)"),
        ("environ_sizes_get", "i32 i32", "(result i32)"),
        ("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32", "(result i32)"),
        ("proc_exit", "i32", ""),
    )
)
# $out(fd, at, size) writes bytes and returns WASI's error number.
_OUT = """
(func $out (param $fd i32) (param $at i32) (param $size i32) (result i32)
  (i32.store (i32.const 0) (local.get $at))
  (i32.store (i32.const 4) (local.get $size))
  (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
"""


def guest(body: str, *, pages: int = 2, extra: str = "", tail: str = "") -> str:
    """A WASI command with `body` in `_start`; addresses up to 1023 are its own scratch."""
    return f"""(module {_IMPORTS}
    (memory (export "memory") {pages}) {extra} {_OUT}
    (func $main (export "_start") (local $i i32) (local $n i32) {body}) {tail})"""


NOOP = '(module (memory (export "memory") 1) (func (export "_start")))'
LOOP = guest("(loop (br 0))")
START_LOOP = guest("", tail="(func $s (loop (br 0))) (start $s)")
RECURSE = guest("(call $main)")
TRAP = guest("unreachable")
DIVIDE = guest("(drop (i32.div_u (i32.const 1) (local.get $i)))")
OUT_OF_BOUNDS = guest("(drop (i32.load (i32.const -8)))")
MEMORY_BOMB = guest(
    "(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"
)
MEMORY_POLITE = guest("(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))")
MEMORY_FROM_START = guest("", pages=3000)
TABLE_GROWER = guest(
    """(loop (br_if 0 (i32.ne (table.grow 0 (ref.null func) (i32.const 1000)) (i32.const -1))))
    (i32.store (i32.const 1024) (table.size 0))
    (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 4)))""",
    extra="(table 10 funcref)",
)
FLOOD = guest(
    "(loop (br_if 0 (i32.eqz (call $out (i32.const 1) (i32.const 1024) (i32.const 65536)))))"
)
FLOOD_FOR_EVER = guest(
    "(loop (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 65536))) (br 0))"
)
LOG_FLOOD = guest(
    "(loop (br_if 0 (i32.eqz (call $out (i32.const 2) (i32.const 1024) (i32.const 65536)))))"
)
# Sleeps for an hour by a relative clock subscription, then writes the clock and event count.
SLEEP = guest(
    """(i32.store8 (i32.const 1032) (i32.const 0))
    (i32.store (i32.const 1040) (i32.const 1))
    (i64.store (i32.const 1048) (i64.const 3600000000000))
    (if (call $poll_oneoff (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 3072))
        (then unreachable))
    (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 3080)))
    (drop (call $out (i32.const 1) (i32.const 3072) (i32.const 16)))"""
)
SLEEP_FOR_EVER = guest(
    """(i32.store (i32.const 1040) (i32.const 1))
    (i64.store (i32.const 1048) (i64.const 3600000000000))
    (loop (drop (call $poll_oneoff (i32.const 1024) (i32.const 2048) (i32.const 1)
                 (i32.const 3072))) (br 0))"""
)
RANDOM = guest(
    """(drop (call $random_get (i32.const 1024) (i32.const 32)))
    (drop (call $random_get (i32.const 1056) (i32.const 32)))
    (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 64)))"""
)
RANDOM_FLOOD = guest(
    "(loop (drop (call $random_get (i32.const 1024) (i32.const 1048576))) (br 0))", pages=20
)
# Exits with the error number of asking for more randomness than one call gives.
RANDOM_TOO_MUCH = guest(
    "(call $proc_exit (call $random_get (i32.const 1024) (i32.const 1048577)))", pages=20
)
RANDOM_OUTSIDE = guest("(call $proc_exit (call $random_get (i32.const -16) (i32.const 32)))")
CLOCK = guest(
    """(drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 1024)))
    (drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 1032)))
    (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 1040)))
    (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 24)))"""
)
ECHO = guest(
    """(loop $more
      (i32.store (i32.const 16) (i32.const 1024))
      (i32.store (i32.const 20) (i32.const 60000))
      (if (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24))
          (then unreachable))
      (local.set $n (i32.load (i32.const 24)))
      (if (local.get $n) (then
        (if (call $out (i32.const 1) (i32.const 1024) (local.get $n)) (then unreachable))
        (br $more))))"""
)
# Writes its whole argument vector, zero bytes and all.
ARGS = guest(
    """(drop (call $args_sizes_get (i32.const 32) (i32.const 36)))
    (drop (call $args_get (i32.const 1024) (i32.const 4096)))
    (drop (call $out (i32.const 1) (i32.const 4096) (i32.load (i32.const 36))))"""
)
ENVIRONMENT_SIZE = guest(
    """(drop (call $environ_sizes_get (i32.const 1024) (i32.const 1028)))
    (call $proc_exit (i32.load (i32.const 1024)))"""
)
# Exits with the error number of opening "/" below the first descriptor a preopen would have.
OPEN_ROOT = guest(
    """(i32.store8 (i32.const 1024) (i32.const 47))
    (call $proc_exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 1)
      (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 1032)))"""
)
# Logs a line, then another that does not end, then spins.
LOG_AND_SPIN = guest(
    """(drop (call $out (i32.const 2) (i32.const 1024) (i32.const 11)))
    (loop (br 0))""",
    extra='(data (i32.const 1024) "first\\nsecon")',
)
# Logs "begun", counts for about a second, writes "done".
LOG_AND_WORK = guest(
    """(drop (call $out (i32.const 2) (i32.const 1024) (i32.const 6)))
    (loop (br_if 0 (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1)))
                             (i32.const 600000000))))
    (drop (call $out (i32.const 1) (i32.const 1040) (i32.const 4)))""",
    extra='(data (i32.const 1024) "begun\\n") (data (i32.const 1040) "done")',
)
LOG_BYTES = guest(
    "(drop (call $out (i32.const 2) (i32.const 1024) (i32.const 14)))",
    extra='(data (i32.const 1024) "gr\\c3\\bcn \\ff \\1b[31m\\n")',
)
# Stores the bits of a NaN that arithmetic made: its sign and payload differ between processors.
NAN = guest(
    """(f64.store (i32.const 1024) (f64.sub (f64.div (f64.const 1) (f64.convert_i32_u
        (local.get $i))) (f64.div (f64.const 1) (f64.convert_i32_u (local.get $i)))))
    (drop (call $out (i32.const 1) (i32.const 1024) (i32.const 8)))"""
)
FORBIDDEN_IMPORT = (
    '(module (import "env" "system" (func (param i32))) (memory (export "memory") 1)'
    ' (func (export "_start")))'
)
WRONG_IMPORT_TYPE = (
    '(module (import "wasi_snapshot_preview1" "fd_close" (func (param f64)))'
    ' (memory (export "memory") 1) (func (export "_start")))'
)


def exiting(code: int) -> str:
    """A guest that ends with an exit code."""
    return guest(f"(call $proc_exit (i32.const {code}))")


def compile_bomb(loops: int = 20_000) -> str:
    """Small, valid, and far beyond linear time to compile."""
    return guest("(loop (br_if 0 (local.get $i)))\n" * loops)


def wide(functions: int, pad: int = 12) -> str:
    """So many functions that do a little each."""
    body = "(i32.add " * pad + "(local.get 0)" + "(i32.const 7))" * pad
    return guest("", tail=f"(func (param i32) (result i32) {body})\n" * functions)


def assemble(text: str) -> bytes:
    """WAT to bytes."""
    return bytes(wasmtime.wat2wasm(text))


class Bench:
    """A running pool and the files that its guests come from."""

    def __init__(self, sandbox: PooledSandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self.folder = folder

    def module(self, source: str | bytes) -> tuple[Digest, Path]:
        data = assemble(source) if isinstance(source, str) else source
        path = self.folder / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return digest_of(data), path

    def order(self, source: str | bytes, **choices: Any) -> Run:
        digest, path = self.module(source)
        defaults: dict[str, Any] = {
            "stdin": b"",
            "args": (),
            "limits": limits(),
            "seed": SEED,
        }
        return Run(module=digest, module_path=path, **{**defaults, **choices})


def limits(**choices: int) -> Limits:
    """Limits that end a runaway guest soon."""
    defaults = {
        "fuel_max": 2_000_000_000,
        "wall_ms_max": 10_000,
        "memory_bytes_max": 16 * MIB,
        "stdout_bytes_max": 1 * MIB,
        "stderr_bytes_max": 256 * 1024,
    }
    return Limits(**{**defaults, **choices})


@contextlib.asynccontextmanager
async def bench(cache_dir: Path, folder: Path, **choices: Any) -> AsyncIterator[Bench]:
    """A pool for the length of a block; afterwards every child of it must be gone."""
    settings: dict[str, Any] = {"slots": 1, "cache_dir": cache_dir, "cache_key": KEY, **choices}
    sandbox = PooledSandbox(SandboxSettings(**settings))
    async with trio.open_nursery() as nursery:
        await nursery.start(sandbox.serve)
        yield Bench(sandbox, folder)
        pids = sandbox.stats()["worker_pids"]
        nursery.cancel_scope.cancel()
    left = [pid for pid in pids if alive(pid)]
    assert not left, f"workers outlived their pool: {left}"


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def until(condition: Any, seconds: float = 20.0) -> None:
    """Poll until it is true."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for happens in other processes
            await trio.sleep(0.01)
