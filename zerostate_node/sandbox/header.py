"""
Reads the outline of a module before anything else does, and refuses by policy.

A pre-filter, not a validator: it may let malformed bodies through (the engine's validator comes
next) but never reads past its input, never takes longer than linear time, and fails only by
`Refusal`. It does not ask the engine for types, since the engine's binding aborts on some.
Source of the format: WebAssembly core specification, chapter 5.
"""

from __future__ import annotations

import dataclasses

from zerostate_node.sandbox import abi, limits
from zerostate_node.sandbox.abi import Refusal

PAGE_BYTES = 65_536
_PAGES_MAX = 65_536
_MAGIC = b"\x00asm\x01\x00\x00\x00"
_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _EXPORT, _CODE = 1, 2, 3, 4, 5, 7, 10
# The order sections must come in: tags (13) after memories, data count (12) before code.
_RANK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 13: 6, 6: 7, 7: 8, 8: 9, 9: 10, 12: 11, 10: 12, 11: 13}
_NUMBERS = frozenset({0x7F, 0x7E, 0x7D, 0x7C})
_REFERENCES = frozenset({0x70, 0x6F, 0x69})  # funcref, externref, exnref
_VALUES = _NUMBERS | _REFERENCES


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What the outline of an acceptable module says."""

    imports: tuple[str, ...]
    exports: tuple[str, ...]
    memory_min_bytes: int
    memory_max_bytes: int | None
    functions: int
    body_bytes_max: int


class _Reader:
    """A cursor over bytes that cannot leave `[at, end)`."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data = data
        self.at = at
        self.end = end

    def byte(self) -> int:
        if self.at >= self.end:
            raise Refusal("truncated", f"the module ends early, at byte {self.at}")
        value = self.data[self.at]
        self.at += 1
        return value

    def u32(self) -> int:
        """An unsigned LEB128 of at most 32 bits."""
        value = shift = 0
        while True:
            byte = self.byte()
            if shift == 28 and byte > 0x0F:
                raise Refusal("malformed", f"a number is too long, at byte {self.at}")
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def count(self, most: int, what: str) -> int:
        """How many follow; each takes a byte at least, so more than the bytes left is a lie."""
        value = self.u32()
        if value > most:
            raise Refusal("too_many_functions", f"{value} {what}; at most {most} are allowed")
        if value > self.end - self.at:
            raise Refusal("truncated", f"{value} {what} are announced, fewer bytes follow")
        return value

    def skip(self, size: int) -> int:
        """Step over `size` bytes; returns where they began."""
        start = self.at
        if size > self.end - start:
            raise Refusal("truncated", f"{size} bytes are announced at byte {start}, fewer follow")
        self.at = start + size
        return start

    def name(self) -> str:
        size = self.u32()
        start = self.skip(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError:
            raise Refusal("malformed", f"a name is not UTF-8, at byte {start}") from None

    def limits(self) -> tuple[int, int | None, int]:
        """Minimum, maximum and flags of a memory or table."""
        flags = self.byte()
        if flags > 1:
            return 0, None, flags
        least = self.u32()
        return least, self.u32() if flags & 1 else None, flags


class _Outline:
    """Collects what the sections say."""

    def __init__(self) -> None:
        self.startable: list[bool] = []  # per type: () -> ()
        self.imports: list[str] = []
        self.function_types: list[int] = []
        self.functions = 0
        self.memory: tuple[int, int | None] | None = None
        self.exports: list[str] = []
        self.start_export: int | None = None
        self.exports_memory = False
        self.bodies = 0
        self.body_bytes_max = 0

    def types(self, reader: _Reader) -> None:
        for _ in range(reader.count(limits.TYPES_MAX, "types")):
            if reader.byte() != 0x60:
                raise Refusal("unsupported_type", "a type that is not a plain function type")
            empty = True
            for _side in range(2):
                size = reader.u32()
                start = reader.skip(size)
                if not _VALUES.issuperset(reader.data[start : start + size]):
                    raise Refusal("unsupported_type", "a function takes or gives an unknown type")
                empty = empty and size == 0
            self.startable.append(empty)

    def import_section(self, reader: _Reader) -> None:
        for _ in range(reader.count(limits.IMPORTS_MAX, "imports")):
            module, name = reader.name(), reader.name()
            if reader.byte() != 0 or (module, name) not in abi.IMPORTS:
                label = f"{module[:64]}.{name[:64]}"
                raise Refusal("import_not_allowed", f"{label!r} is not offered to guests")
            self.function_types.append(reader.u32())
            self.imports.append(f"{module}.{name}")

    def function_section(self, reader: _Reader) -> None:
        self.functions = reader.count(limits.FUNCTIONS_MAX, "functions")
        self.function_types.extend(reader.u32() for _ in range(self.functions))

    def tables(self, reader: _Reader) -> None:
        count = reader.u32()
        if count > limits.TABLES_MAX:
            raise Refusal("table_too_large", f"{count} tables; at most {limits.TABLES_MAX}")
        for _ in range(count):
            if reader.byte() not in _REFERENCES:
                raise Refusal("unsupported_type", "a table of an unknown reference type")
            least, _most, flags = reader.limits()
            if flags > 1:
                raise Refusal("unsupported_type", "a shared or 64-bit table")
            if least > limits.TABLE_ELEMENTS_MAX:
                raise Refusal("table_too_large", f"a table of {least} elements from the start")

    def memories(self, reader: _Reader) -> None:
        count = reader.u32()
        if count > 1:
            raise Refusal("memory_unsupported", f"{count} memories; a guest has one")
        if not count:
            return
        least, most, flags = reader.limits()
        if flags > 1:
            raise Refusal("memory_unsupported", "a shared or 64-bit memory")
        if least > _PAGES_MAX or (most is not None and (most > _PAGES_MAX or most < least)):
            raise Refusal("malformed", "a memory with impossible limits")
        if least * PAGE_BYTES > limits.MEMORY_MIN_BYTES_MAX:
            raise Refusal("memory_too_large", f"{least} pages of memory from the start")
        self.memory = (least * PAGE_BYTES, None if most is None else most * PAGE_BYTES)

    def export_section(self, reader: _Reader) -> None:
        for _ in range(reader.count(limits.EXPORTS_MAX, "exports")):
            name, kind, index = reader.name(), reader.byte(), reader.u32()
            if kind == 0 and name == "_start":
                self.start_export = index
            elif kind == 2 and name == "memory" and index == 0:
                self.exports_memory = True
            if len(self.exports) < limits.EXPORT_NAMES_KEPT:
                self.exports.append(name[:128])

    def code(self, reader: _Reader) -> None:
        self.bodies = reader.count(limits.FUNCTIONS_MAX, "function bodies")
        for _ in range(self.bodies):
            size = reader.u32()
            if size > limits.BODY_BYTES_MAX:
                raise Refusal(
                    "body_too_large",
                    f"a function of {size} bytes; at most {limits.BODY_BYTES_MAX} are allowed",
                )
            reader.skip(size)
            self.body_bytes_max = max(self.body_bytes_max, size)

    def finish(self) -> Header:
        """Check what only the whole outline can tell."""
        if self.bodies != self.functions:
            raise Refusal("malformed", f"{self.functions} functions with {self.bodies} bodies")
        if self.memory is None or not self.exports_memory:
            raise Refusal("no_memory", "it must define one memory and export it as `memory`")
        if self.start_export is None:
            raise Refusal("no_start", "it must export a function `_start`: build a WASI command")
        if self.start_export >= len(self.function_types):
            raise Refusal("malformed", "`_start` names a function that does not exist")
        type_index = self.function_types[self.start_export]
        if type_index >= len(self.startable) or not self.startable[type_index]:
            raise Refusal("no_start", "`_start` must take nothing and return nothing")
        return Header(
            imports=tuple(self.imports),
            exports=tuple(self.exports),
            memory_min_bytes=self.memory[0],
            memory_max_bytes=self.memory[1],
            functions=self.functions,
            body_bytes_max=self.body_bytes_max,
        )


def parse(data: bytes) -> Header:
    """
    The outline of a module that policy accepts.

    Raises:
        Refusal: with one of `abi.REFUSALS`; nothing else, whatever the bytes are.
    """
    if data[:8] != _MAGIC:
        raise Refusal("not_wasm", "these bytes are not a core WebAssembly module")
    outline = _Outline()
    handlers = {
        _TYPE: outline.types,
        _IMPORT: outline.import_section,
        _FUNCTION: outline.function_section,
        _TABLE: outline.tables,
        _MEMORY: outline.memories,
        _EXPORT: outline.export_section,
        _CODE: outline.code,
    }
    whole = _Reader(data, 8, len(data))
    rank = 0
    while whole.at < whole.end:
        section = whole.byte()
        size = whole.u32()
        start = whole.skip(size)
        if section == 0:
            continue  # custom sections mean nothing here
        if _RANK.get(section, 0) <= rank:
            raise Refusal("malformed", f"section {section} is unknown, twice or out of order")
        rank = _RANK[section]
        handler = handlers.get(section)
        if handler is None:
            continue
        reader = _Reader(data, start, start + size)
        handler(reader)
        if reader.at != reader.end:
            raise Refusal("malformed", f"section {section} is longer than what it holds")
    return outline.finish()
