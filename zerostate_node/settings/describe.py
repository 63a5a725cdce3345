"""What documents and commands say of the settings: made from the schema, never written by hand."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

from zerostate_node.settings.loading import fields_of, variable_of
from zerostate_node.settings.schema import SECTIONS, Origin, Settings
from zerostate_node.settings.values import about, allowed, kind_of, redacted, shown

_HEAD = """\
# Settings

Made from `zerostate_node/settings/schema.py`; change it there.

Later wins: defaults, the role's preset (`configs/<role>.toml`), your file (`--config`), the
environment, flags. Each setting has the variable `ZEROSTATE_<SECTION>_<FIELD>`, for example
`ZEROSTATE_HTTP_PORT=9000`; some have a shorter one as well, named below. An empty variable counts
as unset; `none` is an empty list; lists are separated by commas. Sizes are written `64MiB`,
durations `15s`. A key that is not below is an error that names the nearest one.

`zerostate-node config show` prints each value in force with where it came from, and
`zerostate-node config check` says what is wrong before a start does.
"""


def default_text(section: str, field: dataclasses.Field[Any]) -> str:
    """A default as the documents show it."""
    return shown(field, field.default) or "(empty)"


def settings_markdown() -> str:
    """The text of `docs/settings.md`."""
    parts = [_HEAD]
    for section, kind in SECTIONS.items():
        parts.append(f"\n## [{section}]\n\n{(kind.__doc__ or '').strip()}\n")
        parts.append("\n| Setting | Default | Allowed | Why | Variables |\n|---|---|---|---|---|\n")
        for name, field in fields_of(section).items():
            described = about(field)
            variables = [variable_of(section, name), *described.env]
            short = ", ".join(f"`{variable}`" for variable in variables)
            parts.append(
                f"| `{name}` | `{default_text(section, field)}` | {allowed(field)} | "
                f"{described.why} | {short} |\n"
            )
    return "".join(parts)


def toml_value(field: dataclasses.Field[Any], value: Any) -> str:
    """A value as TOML."""
    kind = kind_of(field)
    if kind == "list":
        return "[" + ", ".join(json.dumps(item) for item in value) + "]"
    if kind == "switch":
        return "true" if value else "false"
    if kind in ("size", "seconds", "milliseconds"):
        return json.dumps(shown(field, value))
    if kind in ("text", "path"):
        return json.dumps(str(value))
    return shown(field, value)


def example_toml() -> str:
    """The text of `configs/node.example.toml`: every setting with its default, commented out."""
    lines = [
        "# Every setting with its default. Copy what you change, and leave out the rest.",
        "#     zerostate-node start --config node.toml",
        "# docs/settings.md says more of each.",
    ]
    for section, kind in SECTIONS.items():
        lines += ["", f"[{section}]  # {(kind.__doc__ or '').strip()}"]
        for name, field in fields_of(section).items():
            why = about(field).why.replace("\\|", "|")
            lines += textwrap.wrap(why, 96, initial_indent="# ", subsequent_indent="# ")
            lines.append(f"#{name} = {toml_value(field, field.default)}")
    return "\n".join(lines) + "\n"


def _origin_text(origin: Origin) -> str:
    """A preset is ours and found by its name; everything else by its whole path."""
    if origin.kind == "preset":
        return f"preset {Path(origin.where).name}"
    return str(origin)


def effective(settings: Settings) -> dict[str, dict[str, Any]]:
    """Every value in force: `section.field` -> value (JSON-ready, no secrets), text, origin."""
    found: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        for name, field in fields_of(section).items():
            value = getattr(getattr(settings, section), name)
            key = f"{section}.{name}"
            if about(field).secret:
                value = redacted(str(value))
            found[key] = {
                "value": str(value) if isinstance(value, Path) else value,
                "text": shown(field, value),
                "origin": _origin_text(settings.origins[key]) if key in settings.origins else "",
            }
    return found
