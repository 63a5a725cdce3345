"""Hypothesis values of any wire type, drawn from its own limits."""

from __future__ import annotations

import enum
import types
import typing
from typing import Any

import hypothesis.strategies as st
import msgspec
from msgspec import Meta

_ITEMS_MAX = 3  # tuples are kept short: their limits have vectors
_TEXT_MAX = 40


def values_of(kind: Any, metas: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values of a struct, a union of structs, a tuple or a plain type with `Meta`."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        inner, *found = typing.get_args(kind)
        return values_of(inner, metas + tuple(m for m in found if isinstance(m, Meta)))
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values_of(item) for item in typing.get_args(kind)))
    if origin is tuple:
        low = _limit(metas, "min_length", 0)
        high = min(_limit(metas, "max_length", _ITEMS_MAX), max(low, _ITEMS_MAX))
        items = st.lists(values_of(typing.get_args(kind)[0]), min_size=low, max_size=high)
        return items.map(tuple)
    if kind is type(None):
        return st.none()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = {name: values_of(hints[name]) for name in kind.__struct_fields__}
        return st.builds(kind, **fields)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    return _plain(kind, metas)


def _plain(kind: Any, metas: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    low = _limit(metas, "min_length", 0)
    if kind is bool:
        return st.booleans()
    if kind is int:
        least, most = _limit(metas, "ge", 0), _limit(metas, "le", 1 << 53)
        return st.one_of(st.sampled_from([least, most]), st.integers(least, most))
    high = max(low, min(_limit(metas, "max_length", _TEXT_MAX), _TEXT_MAX))
    if kind is bytes:
        return st.binary(min_size=low, max_size=high)
    if kind is str:
        pattern = next((m.pattern for m in metas if m.pattern), None)
        if pattern:
            return st.from_regex(pattern.replace("(?!\\n)", ""), fullmatch=True).map(str.strip)
        return st.text(st.characters(codec="utf-8"), min_size=low, max_size=max(low, high))
    raise TypeError(f"no strategy for {kind}")


def _limit(metas: tuple[Any, ...], name: str, default: int) -> int:
    found = [getattr(meta, name) for meta in metas if getattr(meta, name) is not None]
    return int(found[-1]) if found else default
