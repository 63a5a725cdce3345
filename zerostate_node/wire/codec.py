"""
msgpack to typed values, and back.

Two steps, on purpose: `msgpack` decodes with every length bounded by the bytes that are really
there (a header that promises four billion items allocates nothing), then `msgspec.convert` checks
types and ranges. Encoding is deterministic: fields in the order they are declared.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from zerostate_node.errors import WireError

T = TypeVar("T")

_ENCODER = msgspec.msgpack.Encoder()
NESTING_MAX = 16  # deepest structure any message needs is 7; msgpack itself stops at 511


def encode(value: Any) -> bytes:
    """The bytes of a message (a `msgspec.Struct`, or a tuple of them)."""
    return _ENCODER.encode(value)


def decode(data: bytes | memoryview, kind: Any, *, bytes_max: int) -> Any:
    """
    A value of `kind` out of bytes that a stranger sent.

    Args:
        data: what arrived.
        kind: a `msgspec.Struct`, or a union of tagged ones, or `tuple[...]` of them.
        bytes_max: largest length accepted, bytes; checked before anything is parsed.

    Raises:
        WireError: too long, not msgpack, trailing bytes, wrong shape, value out of range.
    """
    return convert(unpack(data, bytes_max=bytes_max), kind)


def unpack(data: bytes | memoryview, *, bytes_max: int) -> Any:
    """Untyped msgpack, every length bounded by the input. Raises WireError."""
    size = len(data)
    if size > bytes_max:
        raise WireError(f"{size} bytes where at most {bytes_max} are allowed", code="too_large")
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=True, use_list=False, max_ext_len=0, timestamp=0
        )
    except RecursionError as error:
        raise WireError("nested too deeply", code="malformed") from error
    except Exception as error:  # msgpack raises a dozen classes; all of them mean this one thing
        raise WireError(f"not msgpack: {type(error).__name__}", code="malformed") from error


def convert(value: Any, kind: Any) -> Any:
    """Check an untyped value against `kind`. Raises WireError that names the field."""
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise WireError(f"wrong shape: {str(error)[:200]}", code="wrong_shape") from error
