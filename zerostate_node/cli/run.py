"""`zerostate-node run`: a module or script, here, in the same sandbox as everywhere."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from zerostate_node.cli.shape import Place, command, home_options, json_option
from zerostate_node.errors import ConfigError, NotFound, Refused, TaskFailed, Unavailable
from zerostate_node.units import KIB

if TYPE_CHECKING:
    from zerostate_node.ports.sandbox import Run, RunResult
    from zerostate_node.settings import Settings
    from zerostate_node.wire.messages import Limits, Receipt

JSON_RESULT_BYTES_MAX = 4 * 1024 * KIB


@command(
    "run",
    examples=(
        ("zerostate-node run examples/markdown < README.md", "a folder with agent.toml"),
        ("zerostate-node run build/hello.wasm --arg --shout --input 'some text'", ""),
        ("zerostate-node run hello.py --engine micropython.wasm --input 'some text'", "a script"),
        ("zerostate-node run hello.wasm --fuel 1000000 --json", "how much does it take?"),
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--input", "text", metavar="TEXT|-|@FILE", help="Input: a text, - for stdin, @FILE.")
@click.option("--file", "input_file", type=click.Path(path_type=Path), help="Input: a file.")
@click.option("--arg", "args", multiple=True, metavar="TEXT", help="Argument; repeat for more.")
@click.option("--engine", type=click.Path(path_type=Path), help="Module that runs a script FILE.")
@click.option("--card", type=click.Path(path_type=Path), help="Take limits from this agent.toml.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the result here.")
@click.option("--raw", is_flag=True, help="Do not escape control characters on a terminal.")
@click.option("--fuel", type=click.IntRange(1), help="Most fuel.")
@click.option("--memory", metavar="SIZE", help="Most memory, such as 64MiB.")
@click.option("--timeout", metavar="DURATION", help="Most wall clock, such as 10s.")
@click.option("--quiet", is_flag=True, help="No summary.")
@json_option
@home_options
@click.pass_context
def run(
    ctx: click.Context, /, file: Path, as_json: bool, config_file: Path | None, data_dir: str,
    **options: Any,
) -> int | None:  # fmt: skip
    """
    Run FILE here, in the sandbox, without a network.

    FILE is a WASM module, a script, or a folder with one. Input comes from --input, --file or
    standard input; the result goes to standard output byte for byte, the guest's log and a summary
    to standard error. The same limits hold as on any node, and the same input gives the same
    output and the same fuel.
    """
    from zerostate_node.cli.agent import check_module, find_parts, read_card
    from zerostate_node.cli.task import read_input

    module, script, beside = find_parts(file, options["engine"])
    check_module(module)
    card_path = options["card"] or (beside if beside.is_file() else None)
    card = read_card(card_path) if card_path else {}
    given = read_input(options["text"], options["input_file"])
    if given is None:
        given = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    settings = _settings(config_file, data_dir)
    limits = _limits(card, options, settings)
    args = tuple(options["args"]) or tuple(str(arg) for arg in card.get("args") or ())
    _log(ctx)
    with _workspace(settings) as place:
        job = _job(module, script, args, given, limits)
        result = _execute(settings, place, job, _print_log)
        return _tell(result, limits, options, as_json=as_json)


def _settings(config_file: Path | None, data_dir: str) -> Settings:
    from zerostate_node.cli.client import settings_flags
    from zerostate_node.settings import load

    return load(config=config_file, flags=settings_flags(data_dir), environ=os.environ)


def _log(ctx: click.Context) -> None:
    """The sandbox's own log: warnings, or everything with --debug."""
    from zerostate_node import log

    log.configure("debug" if ctx.find_root().params.get("debug") else "error", "console")


def _limits(card: dict[str, Any], options: dict[str, Any], settings: Settings) -> Limits:
    """The card's limits, or the flags', cut to this machine's."""
    import msgspec

    from zerostate_node.cli.request import seconds
    from zerostate_node.settings.values import parse_size
    from zerostate_node.wire.messages import Limits

    chosen: dict[str, Any] = {}
    declared = card.get("limits") or {}
    if not isinstance(declared, dict):
        raise ConfigError("limits must be a table", code="bad_card")
    known = set(Limits.__struct_fields__)
    for key, value in declared.items():
        if key not in known:
            raise ConfigError(
                f"limits.{key} is not a limit", code="bad_card",
                hint="known are " + ", ".join(sorted(known)),
            )  # fmt: skip
        chosen[key] = value
    if options["fuel"]:
        chosen["fuel_max"] = options["fuel"]
    if options["memory"]:
        try:
            chosen["memory_bytes_max"] = parse_size(options["memory"])
        except ValueError as error:
            raise ConfigError(f"--memory {error}", code="usage") from error
    if (wall_s := seconds(options["timeout"], "--timeout")) is not None:
        chosen["wall_ms_max"] = max(1, round(wall_s * 1000))
    try:
        limits = msgspec.convert(chosen, Limits)
    except msgspec.ValidationError as error:
        raise ConfigError(f"limits: {error}", code="bad_limits") from error
    ceiling = settings.sandbox.ceiling
    return Limits(**{name: min(getattr(limits, name), getattr(ceiling, name)) for name in known})


@contextlib.contextmanager
def _workspace(settings: Settings) -> Iterator[tuple[Path, bytes]]:
    """
    (directory, key) of the compile cache of `run`: kept between runs where nobody else uses it.

    A second `run` at the same time gets a directory of its own, thrown away after.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "zerostate-node" / "run"
    lock = -1
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(lock)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError
        key = os.read(lock, 64)
        if len(key) != 32:
            key = secrets.token_bytes(32)
            os.ftruncate(lock, 0)
            os.pwrite(lock, key, 0)
    except OSError:
        if lock >= 0:
            os.close(lock)
        temporary = Path(tempfile.mkdtemp(prefix="zerostate-run-"))
        try:
            yield temporary / "cache", secrets.token_bytes(32)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    try:
        yield folder / "cache", key
    finally:
        os.close(lock)


def digest_of_file(path: Path) -> str:
    """The content address of a file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", code="no_file") from error


def _job(
    module: Path, script: Path | None, args: tuple[str, ...], given: bytes | Path, limits: Limits
) -> Run:
    from zerostate_node.ports.sandbox import Run
    from zerostate_node.units import Digest
    from zerostate_node.wire import ids

    module_digest = digest_of_file(module)
    script_digest = digest_of_file(script) if script else ""
    input_digest = ids.digest_of(given) if isinstance(given, bytes) else digest_of_file(given)
    return Run(
        module=Digest(module_digest),
        module_path=module.absolute(),
        stdin=given.absolute() if isinstance(given, Path) else given,
        args=args,
        limits=limits,
        seed=ids.run_seed(module_digest, script_digest, args, input_digest),
        script_path=script.absolute() if script else None,
    )


def _execute(
    settings: Settings, place: tuple[Path, bytes], job: Run, on_log: Callable[[str], None] | None
) -> RunResult:
    """
    One run in a sandbox of its own.

    Raises:
        Refused: the module will never run here; `code` says why.
        Unavailable: the sandbox did not come up.
    """
    import trio

    from zerostate_node.ports.sandbox import Rejection
    from zerostate_node.sandbox.limits import SandboxSettings
    from zerostate_node.sandbox.pool import PooledSandbox

    ours = settings.sandbox
    cache_dir, cache_key = place
    sandbox = PooledSandbox(
        SandboxSettings(
            slots=1,
            module_bytes_max=ours.module_bytes_max,
            compile_cpu_s_max=ours.compile_cpu_s_max,
            compile_memory_bytes_max=ours.compile_memory_bytes_max,
            compile_wall_s_max=ours.compile_wall_s_max,
            cache_bytes_max=ours.cache_bytes_max,
            cache_dir=cache_dir,
            cache_key=cache_key,
        )
    )
    ended: list[RunResult | Exception] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(sandbox.serve)
            try:
                ended.append(await sandbox.run(job, on_log))
            except (Rejection, Unavailable) as error:
                ended.append(error)
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except* OSError as group:
        cause = group.exceptions[0]
        raise Unavailable(f"the sandbox did not start: {cause}", code="sandbox") from cause
    result = ended[0]
    if isinstance(result, Rejection):
        raise Refused(f"this module does not run: {result.message}", code=result.code)
    if isinstance(result, Exception):
        raise result
    return result


def _print_log(text: str) -> None:
    from zerostate_node.log import escape

    for line in text.splitlines():
        click.echo(escape(line), err=True)


def _copy(source: bytes | Path, file: IO[bytes]) -> None:
    if isinstance(source, bytes):
        file.write(source)
        return
    with source.open("rb") as data:
        shutil.copyfileobj(data, file, 256 * KIB)


def shares(result: RunResult, limits: Limits) -> dict[str, float]:
    """How much of each limit a run used, 0 to 1."""
    return {
        "fuel": result.fuel_used / limits.fuel_max,
        "memory": result.memory_peak_bytes / limits.memory_bytes_max,
        "wall clock": result.wall_us / 1000 / limits.wall_ms_max,
        "output": result.stdout_bytes / limits.stdout_bytes_max if limits.stdout_bytes_max else 0.0,
    }


def _tell(
    result: RunResult, limits: Limits, options: dict[str, Any], *, as_json: bool
) -> int | None:
    """Result to standard output, summary to standard error; TaskFailed unless completed."""
    from zerostate_node.cli import render
    from zerostate_node.cli.task import as_json_bytes, write_result
    from zerostate_node.cli.task_watch import advice

    used = shares(result, limits)
    nearest = max(used, key=lambda name: used[name])
    done = result.outcome.value == "completed"
    try:
        if as_json:
            document = {
                "outcome": result.outcome.value,
                "detail": result.detail,
                "exit_code": result.exit_code,
                "fuel_used": result.fuel_used,
                "memory_peak_bytes": result.memory_peak_bytes,
                "wall_us": result.wall_us,
                "output_bytes": result.stdout_bytes,
                "limits": {name: getattr(limits, name) for name in limits.__struct_fields__},
                "nearest_limit": {"name": nearest, "share": round(used[nearest], 6)},
            }
            if options["output"] is not None:
                write_result(lambda file: _copy(result.stdout, file), options["output"], raw=True)
                document["result"] = {"file": str(options["output"])}
            elif result.stdout_bytes <= JSON_RESULT_BYTES_MAX:
                data = result.stdout
                data = data if isinstance(data, bytes) else data.read_bytes()
                document["result"] = as_json_bytes(data)
            render.emit_json(document)
            return None if done else int(TaskFailed.exit)
        if done or result.stdout_bytes:
            write_result(
                lambda file: _copy(result.stdout, file), options["output"], raw=options["raw"]
            )
    finally:
        if isinstance(result.stdout, Path):
            result.stdout.unlink(missing_ok=True)
    if not options["quiet"]:
        line = render.outcome(result.outcome.value)
        line.append(
            f"  {render.count(result.fuel_used)} fuel, {render.size(result.memory_peak_bytes)}, "
            f"{render.duration(result.wall_us / 1000)}; "
            f"nearest limit: {nearest} {render.percent(used[nearest])}",
            "dim",
        )
        render.err().print(line)
    if not done:
        words = f"the run ended {result.outcome.value}"
        raise TaskFailed(
            words + (f": {result.detail}" if result.detail else ""),
            code=result.outcome.value,
            hint=advice(result.outcome.value, local=True),
        )
    return None


def replay_locally(
    place: Place,
    receipt: Receipt,
    *,
    module: Path,
    input_file: Path | None,
    script: Path | None,
) -> dict[str, Any]:
    """
    Run what a receipt says was run, here, and compare; the shape of `Desk.replay`.

    Raises:
        NotFound: a file given is not the one that the receipt names.
    """
    from zerostate_node import log
    from zerostate_node.ports.sandbox import Run
    from zerostate_node.units import Digest
    from zerostate_node.wire import ids

    log.configure("error", "console")
    empty = ids.digest_of(b"")
    wanted = [("module", module, receipt.module.digest)]
    if input_file is None and receipt.input.digest != empty:
        raise NotFound("the receipt's input is not empty: give it with --input", code="no_input")
    if input_file is not None:
        wanted.append(("input", input_file, receipt.input.digest))
    if (receipt.script is None) != (script is None):
        raise NotFound("give the receipt's script with --script, if it has one", code="no_script")
    if script is not None and receipt.script is not None:
        wanted.append(("script", script, receipt.script.digest))
    for what, path, digest in wanted:
        if digest_of_file(path) != digest:
            raise NotFound(
                f"{path} is not the {what} that the receipt names ({digest})", code="wrong_file"
            )
    settings = _settings(place.config, place.data_dir)
    job = Run(
        module=Digest(receipt.module.digest),
        module_path=module.absolute(),
        stdin=input_file.absolute() if input_file else b"",
        args=receipt.args,
        limits=receipt.limits,
        seed=ids.run_seed(
            receipt.module.digest,
            receipt.script.digest if receipt.script else "",
            receipt.args,
            receipt.input.digest,
        ),
        script_path=script.absolute() if script else None,
    )
    with _workspace(settings) as workspace:
        result = _execute(settings, workspace, job, None)
        if isinstance(result.stdout, Path):
            output = digest_of_file(result.stdout)
            result.stdout.unlink(missing_ok=True)
        else:
            output = ids.digest_of(result.stdout)
    expected = {
        "outcome": receipt.outcome.value,
        "output_digest": receipt.output.digest,
        "fuel_used": receipt.fuel_used,
    }
    got = {
        "outcome": result.outcome.value,
        "output_digest": output,
        "fuel_used": result.fuel_used,
    }
    return {
        "signature": True,
        "output_matches": expected["output_digest"] == got["output_digest"],
        "fuel_matches": expected["fuel_used"] == got["fuel_used"],
        "outcome_matches": expected["outcome"] == got["outcome"],
        "expected": expected,
        "got": got,
    }
