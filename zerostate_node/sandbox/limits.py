"""What the sandbox may use, and the caps of `guest/1` that no setting moves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zerostate_node.units import GIB, KIB, MIB

# -- caps on a module, part of the contract (protocols/guest/1) ---------------------------------
FUNCTIONS_MAX = 50_000  # CPython has 11 thousand; a million empty ones compile for a minute
BODY_BYTES_MAX = 256 * KIB  # largest seen in real agents: 106 KiB (CPython)
IMPORTS_MAX = 1_000
EXPORTS_MAX = 10_000
TYPES_MAX = 50_000
TABLES_MAX = 16
TABLE_ELEMENTS_MAX = 1 << 20
MEMORY_MIN_BYTES_MAX = 1 * GIB
EXPORT_NAMES_KEPT = 64  # of these the module's info tells; the rest only counts

# -- caps on a run, part of the contract --------------------------------------------------------
SCRIPT_BYTES_MAX = 1 * MIB
ARGS_BYTES_MAX = SCRIPT_BYTES_MAX + 64 * KIB
WASM_STACK_BYTES = 512 * KIB

# -- how the pool works, measured in notes and not part of the contract -------------------------
STDOUT_INLINE_BYTES_MAX = 32 * KIB  # larger results are handed over as files
STDIN_FRAME_BYTES_MAX = 256 * KIB  # larger inputs go to the worker as a descriptor
MEMFD_OUTPUT_BYTES_MAX = 64 * MIB  # a run allowed more than this writes to disk, not to memory
REQUEST_BYTES_MAX = 2 * MIB
REPLY_BYTES_MAX = 64 * KIB
KILL_GRACE_S = 0.5  # after the wall limit, for the worker to stop by itself
START_S_MAX = 30.0  # for a worker to say hello, on a machine that is very busy
LOG_POLL_S = 0.05
LOG_CHUNK_BYTES = 8 * KIB
WORKER_MODULES_MAX = 32  # loaded at once in one worker
WORKER_RSS_BYTES_MAX = 512 * MIB  # after a run, when the guest's memory is gone again
WORKER_ADDRESS_SPACE_BYTES = 32 * GIB  # each linear memory reserves 4 GiB of addresses
HOT_MODULES_MAX = 64  # compiled modules the node keeps open for its workers
REFUSED_REMEMBERED_MAX = 4_096
COMPILES_WAITING_MAX = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """
    What an operator decides about the sandbox.

    `cache_key` authenticates compiled modules on disk: whoever can write the cache directory but
    does not know the key cannot make a worker run native code of theirs.
    """

    slots: int = 0  # runs at once; 0 = one per core
    module_bytes_max: int = 64 * MIB
    compile_cpu_s_max: float = 20.0
    compile_memory_bytes_max: int = 1536 * MIB
    compile_wall_s_max: float = 60.0
    cache_bytes_max: int = 2 * GIB
    recycle_runs_max: int = 20_000
    cache_dir: Path
    cache_key: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if len(self.cache_key) < 16:
            raise ValueError("cache_key needs at least 16 bytes")
        if self.slots < 0 or self.recycle_runs_max < 1:
            raise ValueError("slots must be 0 or more, recycle_runs_max 1 or more")
