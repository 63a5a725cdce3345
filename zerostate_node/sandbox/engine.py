"""
The one engine configuration that compiles and runs guests. Only children import wasmtime.

Anything that changes what compiled code looks like belongs in `FEATURES`, since its fingerprint
is part of the name under which compiled code is cached.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from zerostate_node.sandbox import abi, limits

# What WebAssembly guests have. Off: what is not deterministic, what is not needed, and what the
# binding cannot survive (v128). Exceptions are on because MicroPython is built with them.
FEATURES: dict[str, bool] = {
    "wasm_simd": False,
    "wasm_relaxed_simd": False,
    "wasm_threads": False,
    "wasm_memory64": False,
    "wasm_multi_memory": False,
    "wasm_gc": False,
    "wasm_function_references": False,
    "wasm_tail_call": False,
    "wasm_component_model": False,
    "wasm_wide_arithmetic": False,
    "wasm_custom_page_sizes": False,
    "wasm_stack_switching": False,
    "wasm_exceptions": True,
    "consume_fuel": True,
    "epoch_interruption": True,
    "cranelift_nan_canonicalization": True,
    "parallel_compilation": False,
}

# Caps that decide which modules are accepted: what is cached was accepted under these.
_POLICY = (
    "BODY_BYTES_MAX",
    "EXPORTS_MAX",
    "FUNCTIONS_MAX",
    "IMPORTS_MAX",
    "MEMORY_MIN_BYTES_MAX",
    "TABLES_MAX",
    "TABLE_ELEMENTS_MAX",
    "TYPES_MAX",
)


def version() -> str:
    """What a receipt says ran it: `wasmtime-50.0.1+guest/1`."""
    return f"wasmtime-{importlib.metadata.version('wasmtime')}+{abi.ABI}"


def fingerprint() -> bytes:
    """Names the engine, its configuration and this machine's processor, for the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    cpu = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    facts = [version(), platform.machine(), cpu, f"stack={limits.WASM_STACK_BYTES}"]
    facts += [f"{name}={value}" for name, value in sorted(FEATURES.items())]
    facts += [f"{name}={getattr(limits, name)}" for name in _POLICY]
    facts += sorted(f"{module}.{name}" for module, name in abi.IMPORTS)
    return hashlib.sha256("\n".join(facts).encode()).digest()


def build() -> Any:
    """A wasmtime Engine for guests."""
    import wasmtime  # a child's business: the node itself never loads the engine

    config = wasmtime.Config()
    for name, value in FEATURES.items():
        setattr(config, name, value)
    config.max_wasm_stack = limits.WASM_STACK_BYTES
    return wasmtime.Engine(config)
