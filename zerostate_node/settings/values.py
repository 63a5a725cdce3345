"""
One value of one setting: what it may be, and how text becomes it.

The same description serves TOML, environment, flags, `config show`, `docs/settings.md` and the
example file, so a setting is described once.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from typing import Any

from zerostate_node.errors import ConfigError
from zerostate_node.units import GIB, KIB, MIB

_SIZE = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")
_SIZES = {
    "": 1,
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024 * GIB,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
TEXT_CHARACTERS_MAX = 4096
ITEMS_MAX = 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is known of a setting beside its name, type and default."""

    why: str
    env: tuple[str, ...] = ()  # further variables that set it, beside ZEROSTATE_<SECTION>_<FIELD>
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    check: Callable[[Any], Any] | None = None  # returns the value to keep; raises ValueError


def setting(
    default: Any,
    why: str,
    *,
    env: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
    check: Callable[[Any], Any] | None = None,
) -> Any:
    """A dataclass field that is a setting: its default, the reason for it, and what is allowed."""
    about = About(
        why=why, env=env, least=least, most=most, choices=choices, secret=secret, check=check
    )
    return dataclasses.field(default=default, metadata={"about": about})


def about(field: dataclasses.Field[Any]) -> About:
    """The description that `setting` attached to a field."""
    found: About = field.metadata["about"]
    return found


def kind_of(field: dataclasses.Field[Any]) -> str:
    """`text`, `switch`, `list`, `path`, `size`, `seconds`, `milliseconds`, `number`, `decimal`."""
    declared = str(field.type)
    if declared.startswith("tuple"):
        return "list"
    if declared == "bool":
        return "switch"
    if declared == "Path":
        return "path"
    if declared == "str":
        return "text"
    words = field.name.split("_")
    if "bytes" in words:
        return "size"
    if "ms" in words:
        return "milliseconds"
    if words[-1] == "s" or words[-2:] == ["s", "max"]:
        # `gossip_per_s` is a rate, not a duration
        return "decimal" if "per" in words else "seconds"
    return "decimal" if declared == "float" else "number"


def _number(text: str) -> float:
    return float(text.replace("_", ""))


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    unit = _SIZES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("must be a size such as 64MiB, 1.5GiB or a number of bytes")
    return int(_number(match[1]) * unit)


def _duration_s(value: Any, plain: float) -> float:
    """Seconds of `15s`, `250ms`, `2m`, or of a plain number in the field's own unit."""
    if isinstance(value, int | float):
        return value * plain
    match = _SIZE.match(value) if isinstance(value, str) else None
    unit = (plain if not match[2] else _SECONDS.get(match[2].lower())) if match else None
    if match is None or unit is None:
        raise ValueError("must be a duration such as 250ms, 15s, 10m, 12h or 7d")
    return _number(match[1]) * unit


def parse_size(text: str) -> int:
    """Bytes of `64MiB`, `1.5GB` or a plain number. Raises ValueError."""
    return _size(text)


def parse_duration_s(text: str) -> float:
    """Seconds of `250ms`, `15s`, `10m`, `12h`, `7d` or a plain number. Raises ValueError."""
    return _duration_s(text, 1.0)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("must be true or false")


def _list(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        bare = value.strip()
        value = [] if bare.lower() in ("", "none") else bare.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError('must be a list of texts, such as ["a", "b"], or a,b in a variable')
    if len(value) > ITEMS_MAX:
        raise ValueError(f"has {len(value)} items, at most {ITEMS_MAX} are allowed")
    return tuple(_text(item.strip()) for item in value if item.strip())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text in quotes")
    if len(value) > TEXT_CHARACTERS_MAX:
        raise ValueError(f"is longer than {TEXT_CHARACTERS_MAX} characters")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("holds control characters")
    return value


def _plain_number(value: Any, whole: bool) -> float:
    if isinstance(value, str):
        try:
            value = _number(value.strip())
            if whole and value == int(value):
                value = int(value)
        except (ValueError, OverflowError):
            raise ValueError(f"must be a {'whole ' if whole else ''}number") from None
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ValueError(f"must be a {'whole ' if whole else ''}number")
    return value


def parse(field: dataclasses.Field[Any], value: Any) -> Any:
    """
    The value of a setting, out of what a file, variable or flag says.

    Raises:
        ValueError: with a phrase that follows the setting's name ("must be ...").
    """
    described, kind = about(field), kind_of(field)
    if isinstance(value, bool) and kind != "switch":
        raise ValueError(f"must be a {kind}, not true or false")
    match kind:
        case "switch":
            value = _switch(value)
        case "list":
            value = _list(value)
        case "size":
            value = _size(value)
        case "seconds":
            value = float(_duration_s(value, 1.0))
        case "milliseconds":
            value = round(_duration_s(value, 0.001) * 1000)
        case "number" | "decimal":
            value = _plain_number(value, kind == "number")
            value = int(value) if kind == "number" else float(value)
        case _:  # text and path
            value = _text(value)
    if described.choices and value not in described.choices:
        raise ValueError("must be one of " + ", ".join(described.choices))
    if isinstance(value, int | float) and not isinstance(value, bool):
        _in_range(field, value)
    return described.check(value) if described.check else value


def _in_range(field: dataclasses.Field[Any], value: float) -> None:
    described = about(field)
    least, most = described.least, described.most
    if not ((least is None or value >= least) and (most is None or value <= most)):
        low = "" if least is None else f"at least {shown(field, least)}"
        high = "" if most is None else f"at most {shown(field, most)}"
        raise ValueError("must be " + " and ".join(part for part in (low, high) if part))


def allowed(field: dataclasses.Field[Any]) -> str:
    """What a setting may be, in words: for the documents."""
    described, kind = about(field), kind_of(field)
    if described.choices:
        return " \\| ".join(described.choices)
    words = {"switch": "true or false", "path": "a path", "list": "a list of texts"}
    text = words.get(kind, kind)
    if described.least is not None:
        text += f" ≥ {shown(field, described.least)}"
    if described.most is not None:
        text += f" ≤ {shown(field, described.most)}"
    return text


def shown(field: dataclasses.Field[Any], value: Any) -> str:
    """A value as a person writes it: `64MiB`, `15s`, `20_000`."""
    kind = kind_of(field)
    if kind == "size":
        return size_text(int(value))
    if kind == "seconds":
        return f"{value:g}s"
    if kind == "milliseconds":
        return f"{value / 1000:g}s" if value and value % 100 == 0 else f"{value:g}ms"
    if kind == "number":
        return f"{int(value):_}" if abs(value) >= 10_000 else str(int(value))
    if kind == "decimal":
        return f"{value:g}"
    if kind == "switch":
        return "true" if value else "false"
    if kind == "list":
        return ", ".join(value) if value else "none"
    return str(value)


def size_text(value: int) -> str:
    """Bytes in the largest unit that says them exactly."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value >= unit and value * 2 % unit == 0:
            return f"{value / unit:g}{name}"
    return f"{value}B"


def is_loopback(host: str) -> bool:
    """Whether a host to bind is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    """Multiaddrs that can be parsed; ValueError names the one that cannot."""
    if not value:
        return value
    from multiaddr import Multiaddr  # slow to import, and most commands need none

    for address in value:
        try:
            Multiaddr(address)
        except Exception as error:  # the library raises many classes; all mean this one thing
            raise ValueError(
                f"holds {address[:128]!r}, which is no multiaddr; "
                "one looks like /ip4/203.0.113.7/tcp/4001 or /dns4/node.example.org/tcp/4001"
            ) from error
    return value


def check_peers(value: tuple[str, ...]) -> tuple[str, ...]:
    """Multiaddrs that end in the peer id of whom they lead to."""
    for address in check_addresses(value):
        if "/p2p/" not in address:
            raise ValueError(
                f"holds {address[:128]!r}, which does not say whom it leads to; "
                "end it with /p2p/<peer id>"
            )
    return value


def config_error(
    name: str, value: Any, problem: str, where: str, *, secret: bool, hint: str = ""
) -> ConfigError:
    """The one sentence for a bad setting: where, which, what it is, what is allowed."""
    text = "(secret)" if secret else repr(value)
    shown_value = text if len(text) <= 80 else text[:77] + "..."
    return ConfigError(f"{where}: {name} = {shown_value}: {problem}", code="bad_setting", hint=hint)


def redacted(url: str) -> str:
    """An address without the password that may be in it."""
    return re.sub(r"(://[^\s:/@]*):[^\s@]*@", r"\1:[redacted]@", url)
