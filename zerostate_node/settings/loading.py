"""
Settings out of defaults, role preset, file, environment and flags, in that order.

Unknown keys are errors that name the nearest known one; each value keeps its origin.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zerostate_node import resources
from zerostate_node.errors import ConfigError
from zerostate_node.settings.schema import SECTIONS, Network, Origin, Settings
from zerostate_node.settings.values import about, check_peers, config_error, is_loopback, parse
from zerostate_node.units import MIB
from zerostate_node.wire.ids import is_network

FILE_BYTES_MAX = MIB
SHARDS_MAX = 256

# Variables with our prefix that are no settings: they tell the commands which node to talk to.
CLIENT_VARIABLES = ("ZEROSTATE_CONFIG", "ZEROSTATE_KEY_FILE", "ZEROSTATE_URL")
_WORDS = {"GIN_MODE": {"release": "production", "debug": "development", "test": "test"}}
_OTHERS = ("P2P_", "R2_", "RATE_LIMIT_", "DATABASE_", "JWT_", "PROMETHEUS_", "OTEL_EXPORTER_")


def fields_of(section: str) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a section by name, in the order they are declared."""
    return {field.name: field for field in dataclasses.fields(SECTIONS[section])}


def variable_of(section: str, field: str) -> str:
    """The variable that sets a field."""
    return f"ZEROSTATE_{section}_{field}".upper()


def load(*, config: Path | None, flags: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    """
    The settings to run with.

    Args:
        config: a TOML file, one table per section.
        flags: `section.field` -> text, from the command line.
        environ: variables; an empty one counts as unset, `none` is an empty list.

    Raises:
        ConfigError: names file and line, variable or flag; the key; what is allowed.
    """
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    warnings: list[str] = []

    from_file = _file_layer(config, "file") if config else []
    from_environ = _environ_layer(environ, warnings)
    from_flags = [(name, text, Origin("flag", _flag(name))) for name, text in flags.items()]
    role = "edge"
    for name, value, origin in (*from_file, *from_environ, *from_flags):
        if name == "node.role":
            role = _checked(name, value, origin)
    preset = resources.find("configs") / f"{role}.toml"
    for name, value, origin in (
        *_file_layer(preset, "preset"),
        *from_file,
        *from_environ,
        *from_flags,
    ):
        if name == "node.role" and origin.kind == "preset":
            continue
        values[name] = _checked(name, value, origin)
        origins[name] = origin
    return _build(values, origins, warnings, environ)


def _build(
    values: dict[str, Any],
    origins: dict[str, Origin],
    warnings: list[str],
    environ: Mapping[str, str],
) -> Settings:
    sections: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        chosen = {}
        for name in fields_of(section):
            key = f"{section}.{name}"
            origins.setdefault(key, Origin("default"))
            if key in values:
                chosen[name] = values[key]
        sections[section] = kind(**chosen)
    node = sections["node"]
    if origins["node.data_dir"].kind == "default" and environ.get("XDG_DATA_HOME"):
        data_dir = Path(environ["XDG_DATA_HOME"]) / "zerostate-node"
        origins["node.data_dir"] = Origin("environment", "XDG_DATA_HOME")
    else:
        data_dir = Path(node.data_dir)
    home = environ.get("HOME")
    if home and data_dir.parts[:1] == ("~",):
        data_dir = Path(home, *data_dir.parts[1:])
    sections["node"] = dataclasses.replace(node, data_dir=data_dir.expanduser().absolute())
    network = load_network(node.network)
    if network.name == "dev" and origins["mesh.dial_private"].kind == "preset":
        # everyone on a dev network is at a private address: a relay there must be able to dial
        sections["mesh"] = dataclasses.replace(sections["mesh"], dial_private=True)
        origins["mesh.dial_private"] = Origin("network", network.file)
    _check_exposure(sections, origins, warnings)
    settings = Settings(
        **sections,
        network=network,
        origins={key: origins[key] for key in _all_names()},
        warnings=tuple(warnings),
    )
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    """What no single value can get wrong."""
    mesh, origins = settings.mesh, settings.origins
    if mesh.relay_serve and not mesh.listen:
        raise config_error(
            "mesh.relay_serve", True, "a relay must listen, and mesh.listen is empty",
            str(origins["mesh.relay_serve"]), secret=False,
            hint="set mesh.listen, or mesh.relay_serve = false",
        )  # fmt: skip


def _check_exposure(
    sections: Mapping[str, Any], origins: Mapping[str, Origin], warnings: list[str]
) -> None:
    """
    What a gateway that other machines can reach must have said.

    The operator key guards it wherever it listens; names are what keeps a web page that resolves
    its own name to this node from being served.
    """
    http = sections["http"]
    if not http.enabled or is_loopback(http.host) or http.allowed_hosts:
        return
    problem = "other machines can reach it, and http.allowed_hosts does not say by which names"
    if sections["node"].environment == "production":
        raise config_error(
            "http.host", http.host, problem, str(origins["http.host"]), secret=False,
            hint="set http.allowed_hosts (localhost is enough for addresses alone), or bind "
            "127.0.0.1 behind a proxy",
        )  # fmt: skip
    warnings.append(f"http.host = {http.host}: {problem}; every name is answered")


def _all_names() -> list[str]:
    return [f"{section}.{name}" for section in SECTIONS for name in fields_of(section)]


_FLAGS = {
    "node.network": "--network",
    "node.role": "--role",
    "node.data_dir": "--data-dir",
    "http.port": "--port",
}


def _flag(name: str) -> str:
    """How a setting is spelled on the command line."""
    return _FLAGS.get(name, f"--set {name}")


def _nearest(word: str, known: Iterable[str]) -> str:
    """The known word closest to a mistyped one, as a sentence; empty when none is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else ""


def _unknown(name: str, where: str) -> ConfigError:
    section, _, field = name.partition(".")
    known = _all_names()
    near = _nearest(name, known)
    if not near and field:  # the right word in the wrong table
        near = next((f"did you mean {k}?" for k in known if k.endswith("." + field)), "")
    if not near and section in SECTIONS:
        near = f"[{section}] has " + ", ".join(fields_of(section))
    return ConfigError(
        f"{where}: {name} is not a setting",
        code="unknown_setting",
        hint=near or "the sections are " + ", ".join(SECTIONS),
    )


def _checked(name: str, value: Any, origin: Origin) -> Any:
    section, _, field_name = name.partition(".")
    if section not in SECTIONS or field_name not in fields_of(section):
        raise _unknown(name, origin.where or origin.kind)
    field = fields_of(section)[field_name]
    try:
        parsed = parse(field, value)
    except ValueError as error:
        raise config_error(
            name, value, str(error), origin.where or origin.kind, secret=about(field).secret
        ) from error
    return Path(parsed) if str(field.type) == "Path" else parsed


# -- files -----------------------------------------------------------------------------------------
def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """A TOML file and its text. Raises ConfigError that names the file and the line."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}", code="unreadable_file"
        ) from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes", code="unreadable_file")
    try:
        text = raw.decode()
        return tomllib.loads(text), text
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {str(error)[:200]}", code="not_toml") from error


def _line_of(text: str, section: str, key: str) -> int:
    """
    The line a key is on, 0 when it cannot be told.

    tomllib keeps no positions; a plain search is right for every file a person writes.
    """
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]", line):
            inside = header[1]
            if inside == section and not key:
                return number
            continue
        # a key is looked for in its table, a stray one (no table) at the top
        wanted, table = (key, section) if key else (section, "")
        if inside == table and re.match(rf'\s*"?{re.escape(wanted)}"?\s*=', line):
            return number
    return 0


def _at(path: Path, text: str, section: str, key: str) -> str:
    line = _line_of(text, section, key)
    return f"{path}:{line}" if line else str(path)


def _file_layer(path: Path, kind: str) -> list[tuple[str, Any, Origin]]:
    tree, text = read_toml(path)
    found = []
    for section, table in tree.items():
        if section not in SECTIONS or not isinstance(table, dict):
            raise _unknown(section, _at(path, text, section, ""))
        for key, value in table.items():
            origin = Origin(kind, _at(path, text, section, key))
            found.append((f"{section}.{key}", value, origin))
    return found


# -- environment -----------------------------------------------------------------------------------
def _environ_layer(
    environ: Mapping[str, str], warnings: list[str]
) -> list[tuple[str, Any, Origin]]:
    found = []
    read: set[str] = set()
    for section in SECTIONS:
        for name, field in fields_of(section).items():
            own = variable_of(section, name)
            read.update((own, *about(field).env))
            # the first that is set wins: our own name before the short ones
            for variable in (own, *about(field).env):
                value = environ.get(variable, "").strip()
                if not value:
                    continue
                if variable == "GIN_MODE":
                    warnings.append("GIN_MODE is deprecated: set ENVIRONMENT instead")
                value = _WORDS.get(variable, {}).get(value, value)
                found.append((f"{section}.{name}", value, Origin("environment", variable)))
                break
    for variable in sorted(environ):
        if variable in read or variable in CLIENT_VARIABLES:
            continue
        near = _nearest(variable, read)
        if variable.startswith("ZEROSTATE_"):
            raise ConfigError(
                f"environment {variable} is not a setting", code="unknown_setting", hint=near
            )
        if variable.startswith(_OTHERS):
            warnings.append(f"{variable} has no effect in this version" + (near and f"; {near}"))
    return found


# -- networks --------------------------------------------------------------------------------------
def load_network(name: str) -> Network:
    """
    A network by name (`bootstrap/networks/<name>.toml`) or by the path of a file.

    Raises:
        ConfigError: no such network or file, or something in it is wrong.
    """
    folder = resources.find("bootstrap") / "networks"
    is_path = "/" in name or name.endswith(".toml")
    path = Path(name).expanduser() if is_path else folder / f"{name}.toml"
    if not is_path and not (is_network(name) and path.is_file()):
        known = sorted(file.stem for file in folder.glob("*.toml"))
        raise ConfigError(
            f"there is no network {name[:80]!r}",
            code="unknown_network",
            hint="known are " + ", ".join(known) + "; or give the path of a network file",
        )
    tree, text = read_toml(path)
    fields = {field.name for field in dataclasses.fields(Network)} - {"file"}
    for key in tree:
        if key not in fields:
            raise ConfigError(
                f"{_at(path, text, '', key)}: {key} is not part of a network file",
                code="unknown_setting",
                hint=_nearest(key, fields) or "known are " + ", ".join(sorted(fields)),
            )

    def wrong(key: str, problem: str) -> ConfigError:
        where = _at(path, text, "", key)
        return config_error(key, tree.get(key), problem, where, secret=False)

    title, shards = tree.get("name"), tree.get("shards", 1)
    if not isinstance(title, str) or not is_network(title):
        raise wrong("name", "must be up to 32 of a-z, 0-9 and -")
    if not isinstance(shards, int) or isinstance(shards, bool) or not 1 <= shards <= SHARDS_MAX:
        raise wrong("shards", f"must be a whole number from 1 to {SHARDS_MAX}")
    lists: dict[str, tuple[str, ...]] = {}
    for key in ("peers", "relays"):
        items = tree.get(key, [])
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise wrong(key, "must be a list of multiaddrs")
        try:
            lists[key] = check_peers(tuple(items))
        except ValueError as error:
            raise wrong(key, str(error)) from error
    return Network(
        name=title,
        why=str(tree.get("why", ""))[:500],
        shards=shards,
        peers=lists["peers"],
        relays=lists["relays"],
        file=str(path),
    )
