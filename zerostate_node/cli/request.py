"""A task as a command line says it, as the body that the API takes."""

from __future__ import annotations

from typing import Any

from zerostate_node.errors import ConfigError
from zerostate_node.units import KIB

ARGS_MAX, ARG_CHARACTERS_MAX = 32, 512  # of a task: protocols/task
MEMORY_BYTES_MIN = 64 * KIB  # one page


def request(agent: str, capability: str, options: dict[str, Any]) -> dict[str, Any]:
    """The body of a submission. Raises ConfigError for what no node would take."""
    from zerostate_node.settings.values import parse_size

    body: dict[str, Any] = {"agent": agent} if agent else {"capability": capability}
    limits: dict[str, int] = {}
    if options["version"]:
        body["version"] = options["version"]
    if options["args"]:
        check_args(options["args"])
        body["args"] = list(options["args"])
    if options["budget"] is not None:
        body["budget_ucr"] = options["budget"]
    if (run_s := seconds(options["run_timeout"], "--run-timeout")) is not None:
        body["timeout_ms"] = round(run_s * 1000)
    if (deadline_s := seconds(options["deadline"], "--deadline")) is not None:
        body["deadline_ms"] = round(deadline_s * 1000)
    if options["fuel"]:
        limits["fuel_max"] = options["fuel"]
    if options["memory"]:
        try:
            limits["memory_bytes_max"] = parse_size(options["memory"])
        except ValueError as error:
            raise ConfigError(f"--memory {error}", code="usage") from error
        if limits["memory_bytes_max"] < MEMORY_BYTES_MIN:
            raise ConfigError(
                f"--memory {options['memory']} is less than one page, 64KiB",
                code="usage",
                hint="a number alone is bytes; say 64MiB for example",
            )
    if limits:
        body["limits"] = limits
    if options["attempts"]:
        body["retry"] = {"attempts_max": options["attempts"]}
    return body


def check_args(args: tuple[str, ...]) -> None:
    """Arguments of a guest: few and short. Raises ConfigError."""
    if len(args) > ARGS_MAX:
        raise ConfigError(
            f"{len(args)} --arg are given; at most {ARGS_MAX} are allowed",
            code="usage",
            hint="longer things belong into the input",
        )
    longest = max(len(arg) for arg in args)
    if longest > ARG_CHARACTERS_MAX:
        raise ConfigError(
            f"an --arg has {longest} characters; at most {ARG_CHARACTERS_MAX} are allowed",
            code="usage",
            hint="longer things belong into the input",
        )


def seconds(text: str | None, flag: str) -> float | None:
    """A duration option; None when it was not given."""
    from zerostate_node.settings.values import parse_duration_s

    if text is None:
        return None
    try:
        value = parse_duration_s(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {error}", code="usage") from error
    if not 0 < value <= 31_536_000:
        raise ConfigError(f"{flag} must be more than 0 and at most a year", code="usage")
    return value
