"""One run inside a worker: a fresh store, every limit set, and an honest account of the end."""

from __future__ import annotations

import ctypes
import dataclasses
import threading
import time
from typing import Any

import wasmtime
from wasmtime import TrapCode
from wasmtime import _ffi as ffi  # stdin from bytes is not in the public binding
from wasmtime._extern import wrap_extern

from zerostate_node.sandbox import abi, engine, limits
from zerostate_node.sandbox.host import Host
from zerostate_node.units import KIB, MIB

_TICK_S = 0.005
_IDLE_TICKS_MAX = 400  # then the watch sleeps until it is needed again


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A run, as the worker is told to make it. Paths are of descriptors in this process."""

    argv: list[str]
    stdin: bytes | str
    stdout: str
    stderr: str
    fuel_max: int
    wall_ms_max: int
    memory_bytes_max: int
    table_elements_max: int
    seed: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """How the guest ended; `outcome` is a value of `wire.messages.Outcome`."""

    outcome: str
    exit_code: int
    fuel_used: int
    memory_bytes: int
    wall_us: int
    detail: str


class Watch:
    """
    Bumps the engine's epoch when the run in progress has had its time.

    One thread for the life of the worker: starting a timer for each run would cost more than most
    runs. It ticks while there is work and sleeps while there is none.
    """

    def __init__(self, bump: Any) -> None:
        self._bump = bump
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._deadline: float | None = None
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def begin(self, seconds: float) -> None:
        """From now on, `seconds`."""
        with self._lock:
            self._deadline = time.monotonic() + seconds
        self._work.set()

    def end(self) -> None:
        """The run is over: once this returns, no bump of this run can reach the next one."""
        with self._lock:
            self._deadline = None

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(_TICK_S)
            with self._lock:
                running = self._deadline is not None
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self._bump()
                    self._deadline = None
            idle = 0 if running else idle + 1
            if idle > _IDLE_TICKS_MAX:
                self._work.clear()
                with self._lock:
                    running = self._deadline is not None
                if not running:
                    self._work.wait()
                idle = 0


class Executor:
    """Loads compiled modules and runs them, one at a time."""

    def __init__(self) -> None:
        self._engine = engine.build()
        self._host = Host()
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        self._host.define(self._linker)
        self._modules: dict[bytes, Any] = {}
        self._watch = Watch(self._engine.increment_epoch)

    def load(self, key: bytes, path: str) -> None:
        """Take up a module that the node has compiled and authenticated."""
        module = wasmtime.Module.deserialize_file(self._engine, path)
        self._modules[key] = self._linker.instantiate_pre(module)

    def drop(self, key: bytes) -> None:
        """Forget a module."""
        self._modules.pop(key, None)

    def run(self, key: bytes, order: Order) -> Ending:
        """Run a loaded module to its end, whatever that is."""
        wasi = wasmtime.WasiConfig()
        wasi.argv = order.argv
        wasi.stdout_file = order.stdout
        wasi.stderr_file = order.stderr
        if isinstance(order.stdin, str):
            wasi.stdin_file = order.stdin
        else:
            _stdin_bytes(wasi, order.stdin)
        store = wasmtime.Store(self._engine)
        try:
            store.set_limits(
                memory_size=order.memory_bytes_max,
                table_elements=order.table_elements_max,
                instances=1,
                tables=limits.TABLES_MAX,
                memories=1,
            )
            store.set_fuel(order.fuel_max)
            store.set_epoch_deadline(1)
            store.set_wasi(wasi)
            self._host.begin(store, order.seed)
            return self._start(self._modules[key], store, order)
        finally:
            self._host.end()
            store.close()

    def _start(self, module: Any, store: Any, order: Order) -> Ending:
        """Instantiate (which may run code), call `_start`, tell how it ended."""
        outcome, exit_code, detail = "completed", 0, ""
        instance = None
        self._watch.begin(order.wall_ms_max / 1_000)
        begun_ns = time.perf_counter_ns()
        try:
            instance = module.instantiate(store)
            _export(store, instance, b"_start")(store)
        except wasmtime.ExitTrap as end:
            exit_code = end.code
            if exit_code:
                outcome, detail = "trapped", f"exit code {exit_code}"
        except wasmtime.Trap as trap:
            outcome, exit_code, detail = _of_trap(trap)
        except wasmtime.WasmtimeError as error:
            outcome, exit_code, detail = _of_error(str(error))
        wall_us = (time.perf_counter_ns() - begun_ns) // 1_000
        self._watch.end()
        memory_bytes = 0
        if instance is not None:
            memory_bytes = _export(store, instance, b"memory").data_len(store)
        if outcome == "trapped" and exit_code == -1 and _full(memory_bytes, order):
            outcome = "out_of_memory"
            detail = f"{detail}, with {memory_bytes // KIB} KiB of memory in use"
        # After an interrupt the engine's count is stale: what is known is only what was allowed.
        stale = outcome == "timed_out"
        fuel_used = order.fuel_max if stale else order.fuel_max - store.get_fuel()
        return Ending(outcome, exit_code, fuel_used, memory_bytes, wall_us, detail)


def _full(memory_bytes: int, order: Order) -> bool:
    """
    Whether the guest had about all the memory it may have, so that its trap was for want of more.

    The engine does not say that it denied a `memory.grow`; this is as near as one can tell.
    """
    spare = order.memory_bytes_max - memory_bytes
    return spare < min(max(order.memory_bytes_max // 8, 64 * KIB), 16 * MIB)


def _of_trap(trap: Any) -> tuple[str, int, str]:
    code = trap.trap_code
    if code is TrapCode.OUT_OF_FUEL:
        return "out_of_fuel", -1, "all fuel was used"
    if code is TrapCode.INTERRUPT:
        return "timed_out", -1, "the wall-clock limit passed"
    if code is None:
        return "trapped", -1, "trap"
    return "trapped", -1, "trap: " + code.name.lower().replace("_", " ")


def _of_error(message: str) -> tuple[str, int, str]:
    """What the engine says other than by a trap: limits at instantiation, odd exit codes."""
    if "exceeds memory limits" in message:
        return "out_of_memory", -1, "the module needs more memory from the start than it may have"
    if "exceeds table limits" in message:
        return "out_of_memory", -1, "the module needs larger tables than it may have"
    if "invalid exit status" in message:
        return "trapped", -1, "an exit code outside 0 to 125"
    return "trapped", -1, "engine: " + " ".join(message.split())[:300]


def _export(store: Any, instance: Any, name: bytes) -> Any:
    """One export; the binding's own mapping would wrap all of them, of which a guest has many."""
    item = ffi.wasmtime_extern_t()
    found = ffi.wasmtime_instance_export_get(
        store._context(), ctypes.byref(instance._instance), name, len(name), ctypes.byref(item)
    )
    if not found:  # it was there, and of the right kind, when the module was accepted
        raise RuntimeError(f"the module lost its export {name!r}")
    return wrap_extern(item)


def _stdin_bytes(wasi: Any, data: bytes) -> None:
    """Standard input from memory; the binding wraps only files."""
    vector = ffi.wasm_byte_vec_t()
    copy = (ctypes.c_ubyte * max(len(data), 1)).from_buffer_copy(data or b"\0")
    ffi.wasm_byte_vec_new(ctypes.byref(vector), len(data), copy)
    ffi.wasi_config_set_stdin_bytes(wasi.ptr(), ctypes.byref(vector))


def argv(args: tuple[str, ...], script: bytes | None) -> list[str]:
    """
    The guest's argument vector.

    Raises:
        ValueError: it cannot be one; the message says why, for the person who reads the outcome.
    """
    text = None
    if script is not None:
        if len(script) > limits.SCRIPT_BYTES_MAX:
            raise ValueError(f"the script is larger than {limits.SCRIPT_BYTES_MAX} bytes")
        try:
            text = script.decode()
        except UnicodeDecodeError:
            raise ValueError("the script is not UTF-8 text") from None
        if abi.SCRIPT_ARGUMENT not in args:
            raise ValueError(f"there is a script, but no argument is {abi.SCRIPT_ARGUMENT!r}")
    vector = [abi.ARGV0]
    vector += [text if text is not None and arg == abi.SCRIPT_ARGUMENT else arg for arg in args]
    if any("\x00" in arg for arg in vector):
        raise ValueError("arguments and scripts cannot hold a zero byte")
    if sum(map(len, vector)) > limits.ARGS_BYTES_MAX:
        raise ValueError(f"the arguments are longer than {limits.ARGS_BYTES_MAX} characters")
    return vector
