"""
msgpack to typed values, and back.

Bytes are decoded straight into the type that is expected: lengths, ranges and nesting are checked
against it while they are read, so a header that promises four billion items, or five hundred
levels, is refused before anything is made for it. Encoding is deterministic: fields in the order
they are declared.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from zerostate_node.errors import WireError

_ENCODER = msgspec.msgpack.Encoder()


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
        WireError: too_large; malformed (not msgpack, cut short, trailing bytes, text that is not
            UTF-8, nested too deeply); wrong_shape (wrong type, value out of range).
    """
    size = len(data)
    if size > bytes_max:
        raise WireError(f"{size} bytes where at most {bytes_max} are allowed", code="too_large")
    try:
        return _decoder(kind).decode(data)
    except msgspec.ValidationError as error:
        raise WireError(f"wrong shape: {str(error)[:200]}", code="wrong_shape") from error
    except RecursionError as error:
        raise WireError("nested too deeply", code="malformed") from error
    except (msgspec.DecodeError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise WireError(f"not msgpack: {str(error)[:200]}", code="malformed") from error


def convert(value: Any, kind: Any) -> Any:
    """Check an untyped value (out of JSON) against `kind`. Raises WireError, naming the field."""
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise WireError(f"wrong shape: {str(error)[:200]}", code="wrong_shape") from error


@lru_cache(maxsize=64)
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)
