"""
The compile child: one module, then it ends.

Compiling takes time and memory that a module's size does not bound, and running out of memory in
the compiler is an abort. So it happens here, under limits whose breach costs nobody else anything.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from typing import Any

from zerostate_node.sandbox import engine, header, limits
from zerostate_node.sandbox.abi import Refusal
from zerostate_node.sandbox.confine import confine
from zerostate_node.sandbox.frames import Channel

_NICENESS = 5


def main(arguments: list[str]) -> None:
    """Arguments: parent pid, channel, address space bytes, CPU seconds, output bytes."""
    parent_pid, channel_fd, memory_bytes, cpu_s, output_bytes = map(int, arguments)
    confine(
        parent_pid=parent_pid,
        address_space_bytes=memory_bytes,
        file_bytes=output_bytes,
        cpu_s=cpu_s,
        niceness=_NICENESS,
    )
    channel = Channel(channel_fd, limits.REQUEST_BYTES_MAX)
    request = channel.receive()
    if request is None:
        return
    message, fds = request
    try:
        answer = _compile(message, fds)
    except Refusal as refusal:
        answer = {"refused": refusal.code, "why": refusal.message[:500]}
    except MemoryError:
        answer = {"refused": "compile_out_of_memory", "why": "no memory left to compile it"}
    channel.send(answer)
    channel.receive()  # the node has read the answer when it closes its end


def _compile(message: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
    data = _read(fds["module"], message["bytes_max"])
    if "sha256:" + hashlib.sha256(data).hexdigest() != message["digest"]:
        raise Refusal("digest_mismatch", "these bytes are not the module that was asked for")
    outline = header.parse(data)

    import wasmtime  # only after policy has accepted: loading the engine takes a while

    from zerostate_node.sandbox.host import Host

    begun = time.perf_counter()
    machine = engine.build()
    try:
        wasmtime.Module.validate(machine, data)
    except wasmtime.WasmtimeError as error:
        raise Refusal("invalid", " ".join(str(error).split())) from None
    try:
        module = wasmtime.Module(machine, data)
        code = module.serialize()
    except wasmtime.WasmtimeError as error:
        text = " ".join(str(error).split())
        if "allocate memory" in text or "os error 12" in text:
            raise Refusal("compile_out_of_memory", text) from None
        raise Refusal("invalid", text) from None
    linker = wasmtime.Linker(machine)
    linker.define_wasi()
    Host().define(linker)
    try:
        linker.instantiate_pre(module)
    except wasmtime.WasmtimeError as error:
        raise Refusal("import_not_allowed", " ".join(str(error).split())) from None
    view = memoryview(code)
    try:
        while view:
            view = view[os.write(fds["output"], view) :]
    except OSError as error:
        raise Refusal("module_too_large", f"its machine code is too large: {error}") from None
    return {
        "size_bytes": len(data),
        "imports": outline.imports,
        "exports": outline.exports,
        "memory_min_bytes": outline.memory_min_bytes,
        "memory_max_bytes": outline.memory_max_bytes,
        "functions": outline.functions,
        "body_bytes_max": outline.body_bytes_max,
        "compile_us": int((time.perf_counter() - begun) * 1_000_000),
    }


def _read(fd: int, bytes_max: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise Refusal("module_too_large", f"more than {bytes_max} bytes")
    return data


if __name__ == "__main__":
    main(sys.argv[1:])
