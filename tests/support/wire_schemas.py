"""
Writes `protocols/*/*/<name>.schema.json` from the wire types: `python wire_schemas.py --write`.

Bytes are shown as base64 text, as JSON must; on the wire they are msgpack `bin`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
from wire_catalogue import CONTRACTS, PROTOCOLS


def schemas() -> dict[Path, str]:
    """Each schema file and what it must hold."""
    out = {}
    for contract in CONTRACTS:
        for name, kind in contract.schemas.items():
            schema = {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "title": f"{contract.folder} {name}",
            } | msgspec.json.schema(kind)
            path = PROTOCOLS / contract.folder / f"{name}.schema.json"
            out[path] = json.dumps(schema, indent=2, sort_keys=True, default=str) + "\n"
    return out


def main() -> None:
    """Write, or list what differs."""
    for path, text in schemas().items():
        if path.exists() and path.read_text() == text:
            continue
        print(path)
        if "--write" in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
