"""`zerostate-node receipt`: look at what a worker signed, check it, run it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zerostate_node.cli.shape import Group, Place, command, json_option, node_options
from zerostate_node.errors import ConfigError, WireError, ZeroStateError
from zerostate_node.units import KIB

RECEIPT_BYTES_MAX = 64 * KIB

receipt = Group("receipt", help="Check what a worker signed.", no_args_is_help=True)
receipt.examples = (
    ("zerostate-node receipt verify 01JC... --replay", "run it again here, bit for bit"),
)


def _bytes_of(place: Place, source: str) -> bytes:
    """A receipt out of a file, or of the running node by task id."""
    from zerostate_node.wire.ids import is_task_id

    path = Path(source)
    if path.is_file():
        try:
            with path.open("rb") as file:
                raw = file.read(RECEIPT_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}", code="no_file") from error
        if len(raw) > RECEIPT_BYTES_MAX:
            raise ConfigError(f"{path} is too large to be a receipt", code="not_a_receipt")
        return raw
    if not is_task_id(source.upper()):
        raise ConfigError(
            f"{source[:128]!r} is neither a file nor a task id",
            code="no_file",
            hint="save one with: zerostate-node receipt show TASK_ID --output FILE",
        )
    from zerostate_node.cli.client import connect

    data, _ = connect(place).download(
        f"/api/v1/tasks/{source.upper()}/receipt", bytes_max=RECEIPT_BYTES_MAX
    )
    return data


def opened(raw: bytes) -> tuple[Any, dict[str, Any]]:
    """
    The envelope with its signature checked, and the same as a JSON document.

    Raises:
        WireError: it is no receipt, or the signature is not the worker's.
    """
    import msgspec

    from zerostate_node.wire import envelope
    from zerostate_node.wire.messages import Receipt

    try:
        found = envelope.unseal(
            raw, Receipt, type="receipt/1", network=None, now_ms=None, bytes_max=RECEIPT_BYTES_MAX
        )
    except WireError as error:
        if error.code == "bad_signature":
            raise WireError(
                "the signature is not the worker's: this receipt was changed or made up",
                code="bad_signature",
                hint="do not trust it; ask the owner of the task for the receipt again",
            ) from error
        raise ConfigError(f"this is no receipt: {error.message}", code="not_a_receipt") from error
    document = {
        "worker": found.sender,
        "issued_ms": found.issued_ms,
        "receipt": msgspec.to_builtins(found.value),
    }
    return found, document


def _print(document: dict[str, Any]) -> None:
    from zerostate_node.cli import render

    body = document["receipt"]
    limits, fuel = body["limits"], body["fuel_used"]
    share = f"{render.percent(fuel / limits['fuel_max'])} of {render.count(limits['fuel_max'])}"
    render.out().print(
        render.facts(
            [
                ("task", f"{body['task_id']}  attempt {body['attempt']}, fence {body['fence']}"),
                ("outcome", render.outcome(body["outcome"])),
                ("because", body["detail"]),
                ("agent", f"{body['agent_id']}@{body['agent_version']}"),
                ("worker", document["worker"]),
                ("owner", body["owner"]),
                (
                    "module",
                    f"{render.size(body['module']['size_bytes'])}  {body['module']['digest']}",
                ),
                (
                    "script",
                    f"{render.size(body['script']['size_bytes'])}  {body['script']['digest']}"
                    if body.get("script")
                    else "",
                ),
                ("args", " ".join(map(repr, body["args"]))),
                ("input", f"{render.size(body['input']['size_bytes'])}  {body['input']['digest']}"),
                (
                    "output",
                    f"{render.size(body['output']['size_bytes'])}  {body['output']['digest']}",
                ),
                ("fuel", f"{render.count(fuel)}  ({share})"),
                (
                    "memory",
                    f"{render.size(body['memory_peak_bytes'])} of "
                    f"{render.size(limits['memory_bytes_max'])}",
                ),
                ("wall clock", render.duration(body["wall_us"] / 1000)),
                ("finished", render.age(body["finished_ms"])),
                ("price", f"{render.count(body['price_ucr'])} µcr"),
                ("engine", body["engine"]),
            ]
        )
    )


@command(
    "show",
    examples=(
        ("zerostate-node receipt show 01JC...", "of a task of this node"),
        ("zerostate-node receipt show 01JC... --output task.receipt", "and keep it"),
    ),
)
@click.argument("source", metavar="FILE|TASK_ID")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Save the receipt here.")
@json_option
@node_options
def show(place: Place, as_json: bool, source: str, output: Path | None) -> None:
    """Show a receipt: what was run, on what, by whom, and what it took."""
    from zerostate_node.cli.render import emit_json

    raw = _bytes_of(place, source)
    _, document = opened(raw)
    if output is not None:
        try:
            output.write_bytes(raw)
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error.strerror}", code="no_file") from error
    if as_json:
        emit_json(document)
    else:
        _print(document)


@command(
    "verify",
    examples=(
        ("zerostate-node receipt verify task.receipt", "the signature, offline"),
        ("zerostate-node receipt verify 01JC... --replay", "and the work itself, at this node"),
        (
            "zerostate-node receipt verify task.receipt --replay --module a.wasm --input in.txt",
            "with no node at all",
        ),
    ),
)
@click.argument("source", metavar="FILE|TASK_ID")
@click.option("--replay", is_flag=True, help="Run the same work again and compare bit for bit.")
@click.option(
    "--module", type=click.Path(path_type=Path), help="Replay with this module, without a node."
)
@click.option(
    "--input", "input_file", type=click.Path(path_type=Path), help="The input of that replay."
)
@click.option("--script", type=click.Path(path_type=Path), help="The script of that replay.")
@json_option
@node_options
def verify(
    place: Place,
    as_json: bool,
    source: str,
    replay: bool,
    module: Path | None,
    input_file: Path | None,
    script: Path | None,
) -> None:
    """
    Verify a receipt: who signed it and, with --replay, that the work comes out the same.

    Runs are deterministic and metered, so an honest receipt replays to the same output digest and
    the same fuel on any machine.
    """
    from zerostate_node.cli.render import emit_json

    raw = _bytes_of(place, source)
    found, document = opened(raw)
    answer: dict[str, Any] = {"signature": True, **document}
    if replay and module is not None:
        from zerostate_node.cli.run import replay_locally

        answer["replay"] = replay_locally(
            place, found.value, module=module, input_file=input_file, script=script
        )
    elif replay:
        from zerostate_node.cli.client import connect

        answer["replay"] = connect(place).upload("/api/v1/receipts/verify", raw, replay=1)
    same = not replay or all(
        answer["replay"].get(part) is True
        for part in ("output_matches", "fuel_matches", "outcome_matches")
    )
    if as_json:
        emit_json(answer)
    else:
        _print_verdict(answer)
    if not same:
        raise ZeroStateError(
            "the work does not come out as the receipt says",
            code="replay_differs",
            hint="the worker lied or its machine is broken; keep this receipt as proof",
        )


def _print_verdict(answer: dict[str, Any]) -> None:
    from zerostate_node.cli import render

    console = render.out()

    def line(ok: bool, text: str) -> None:
        mark = render.safe("✓ " if ok else "✗ ", "green" if ok else "red")
        console.print(mark.append(render.safe(text).plain, ""))

    line(True, f"signed by {answer['worker']}")
    if "replay" in answer:
        replay = answer["replay"]
        expected, got = replay.get("expected") or {}, replay.get("got") or {}
        for part, key, words in (
            ("outcome_matches", "outcome", "outcome"),
            ("output_matches", "output_digest", "output"),
            ("fuel_matches", "fuel_used", "fuel"),
        ):
            want, have = expected.get(key), got.get(key)
            if replay.get(part):
                line(True, f"same {words}" + (f": {have}" if have is not None else ""))
            else:
                line(False, f"{words} differs: the receipt says {want}, here it is {have}")
    console.print()
    _print(answer)


for _command in (show, verify):
    receipt.add_command(_command)
