"""
JSON from strangers, read strictly, and its one canonical spelling (RFC 8785, JCS).

`json` accepts what must never be signed: a key twice, NaN, integers no other program can hold.
Everything here is bounded by the length of the input, which the caller bounds first.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import rfc8785

from zerostate_node.errors import WireError

INTEGER_MAX = 2**53 - 1  # beyond it JCS writes doubles as integers that no reader may trust
DEPTH_MAX = 24
STRING_CHARS_MAX = 8_192
VALUES_MAX = 2_048  # canonical JSON costs some 3 us a value, and comes before the signature check


def parse(data: bytes, *, bytes_max: int) -> Any:
    """
    A JSON value out of bytes that a stranger sent.

    A whole number reads as an integer in any spelling (`3`, `3.0`, `3e0`): they are one number in
    JSON and in JCS, and protobuf's JSON writers put `.0` behind each one that passes through.

    Raises:
        WireError: too_large; malformed: not UTF-8, not JSON, a key twice, NaN or infinity, a
            number beyond 2^53-1, a lone surrogate, or more depth, values or characters in one
            string than the limits above.
    """
    if len(data) > bytes_max:
        raise WireError(
            f"{len(data)} bytes where at most {bytes_max} are allowed", code="too_large"
        )
    try:
        value = json.loads(
            str(data, "utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise WireError("nested too deeply", code="malformed") from error
    except ValueError as error:  # JSON, UTF-8 and integer-length errors are all ValueErrors
        raise WireError(f"not strict JSON: {str(error)[:120]}", code="malformed") from error
    check_bounds(value)
    return value


def check_bounds(value: Any) -> None:
    """Depth, count, string lengths, number range, Unicode of a JSON value. Raises WireError."""
    level = [value]
    count = 0
    for _ in range(DEPTH_MAX):
        below: list[Any] = []
        count += len(level)
        if count > VALUES_MAX:
            raise WireError(f"more than {VALUES_MAX} values", code="malformed")
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                for key in item:
                    _check_text(key)
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            elif (
                isinstance(item, int | float)
                and not isinstance(item, bool)
                and not (-INTEGER_MAX <= item <= INTEGER_MAX)
            ):
                raise WireError("a number beyond 2^53-1", code="malformed")
        if not below:
            return
        level = below
    raise WireError(f"nested deeper than {DEPTH_MAX}", code="malformed")


def canonical(value: Any) -> bytes:
    """
    The RFC 8785 spelling of a JSON value.

    Raises:
        WireError: the value has none (a type that JSON lacks, NaN, a lone surrogate).
    """
    try:
        return bytes(rfc8785.dumps(value))
    except (ValueError, RecursionError) as error:
        raise WireError(f"no canonical JSON: {str(error)[:120]}", code="malformed") from error


def canonical_members(value: dict[str, Any]) -> list[tuple[str, bytes]]:
    """`"key":value` of each member in canonical order, to join with or without some of them."""
    return [
        (key, canonical(key) + b":" + canonical(value[key]))
        for key in sorted(value, key=lambda key: key.encode("utf-16-be"))
    ]


def join_members(members: list[tuple[str, bytes]]) -> bytes:
    """The object that `canonical_members` took apart."""
    return b"{" + b",".join(text for _, text in members) + b"}"


def _check_text(text: str) -> None:
    if len(text) > STRING_CHARS_MAX:
        raise WireError(f"a string of over {STRING_CHARS_MAX} characters", code="malformed")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise WireError("a lone surrogate", code="malformed") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float | int:
    value = float(text)
    if value.is_integer() and abs(value) <= INTEGER_MAX:
        return int(value)
    if not math.isfinite(value):
        raise ValueError("a number beyond the range of a double")
    return value
