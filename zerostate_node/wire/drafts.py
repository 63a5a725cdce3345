"""
From what an author writes to a complete card, and from a card to its next issue. Pure.

Authors write TOML or JSON, so `fuel_max` and `fuelMax` are both read. Every refusal names the
field, since the reader is a person with an editor open.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from zerostate_node.errors import Refused, WireError
from zerostate_node.units import Did
from zerostate_node.wire import ids, strictjson
from zerostate_node.wire.cardshape import (
    A2A_VERSION,
    ARGS_BYTES_MAX,
    BINDING_URI,
    EXTENSION_URI,
    AgentSkill,
    ArgText,
    CardLimits,
    CardPrice,
    DescriptionText,
    Modes,
    NameText,
    SourceText,
    UriText,
    VersionText,
    refuse_empties,
)
from zerostate_node.wire.messages import BlobRef, Limits

T = TypeVar("T")

SCHEMA_BYTES_MAX = 8 * 1024  # of one input or output schema
SKILLS_MAX = 32
SIGNATURE_ROOM_BYTES = 512  # what signing adds to a card
EXTENSION_DESCRIPTION = "A WASM module that any ZeroState node can fetch by digest and run."

FIELDS = (
    "name",
    "version",
    "description",
    "skills",
    "args",
    "limits",
    "price",
    "inputModes",
    "outputModes",
    "inputSchema",
    "outputSchema",
    "sources",
    "documentationUrl",
    "iconUrl",
    "provider",
)


def draft_card(
    draft: dict[str, Any],
    *,
    module: BlobRef,
    script: BlobRef | None,
    publisher: Did,
    sequence: int,
    now_ms: int,
    ttl_ms: int,
) -> dict[str, Any]:
    """
    The unsigned card that an author's draft stands for.

    Args:
        draft: `name`, `version`, `description`; the rest of `FIELDS` where it differs from the
            default. `limits` and `price` may be partial.
        module: the WASM module, which the caller has seen and validated.
        script: the script that the module interprets, for a script agent.
        sequence: larger than that of any card of this agent issued before.
        now_ms: wall clock, ms.
        ttl_ms: how long others may go by the card, ms.

    Raises:
        Refused: with a code: unknown_field, bad_name, bad_version, bad_description, bad_skills,
            bad_args, bad_limits, bad_price, bad_modes, bad_schema, bad_sources, bad_url,
            bad_provider, bad_card, too_large.
    """
    given = _camel_keys(draft, "bad_card", FIELDS)
    name = _part("bad_name", "name", given.get("name"), NameText)
    description = _part("bad_description", "description", given.get("description"), DescriptionText)
    params: dict[str, Any] = {
        "moduleDigest": module.digest,
        "moduleBytes": module.size_bytes,
        "guestAbi": ids.GUEST_ABI,
        "limits": _limits(given.get("limits", {})),
        "price": _price(given.get("price", {})),
        "publisher": publisher,
        "sequence": sequence,
        "issuedMs": now_ms,
        "expiresMs": now_ms + ttl_ms,
        "status": "active",
    }
    if script is not None:
        params |= {"scriptDigest": script.digest, "scriptBytes": script.size_bytes}
    if args := given.get("args"):
        params["args"] = [
            _part("bad_args", f"args[{i}]", arg, ArgText)
            for i, arg in enumerate(_list(args, "args"))
        ]
        if len(params["args"]) > 32:
            raise Refused("args: at most 32", code="bad_args")
        if sum(len(arg.encode()) for arg in params["args"]) > ARGS_BYTES_MAX:
            raise Refused(f"args: at most {ARGS_BYTES_MAX} bytes together", code="bad_args")
    if sources := given.get("sources"):
        params["sources"] = [
            _part("bad_sources", f"sources[{i}]", url, SourceText)
            for i, url in enumerate(_list(sources, "sources"))
        ]
        if len(params["sources"]) > 8:
            raise Refused("sources: at most 8", code="bad_sources")
    for field in ("inputSchema", "outputSchema"):
        if given.get(field):
            params[field] = _schema(field, given[field])
    card: dict[str, Any] = {
        "name": name,
        "description": description,
        "version": _part("bad_version", "version", given.get("version"), VersionText),
        "supportedInterfaces": [
            {
                "url": f"zerostate:{ids.agent_id_of(publisher, name)}",
                "protocolBinding": BINDING_URI,
                "protocolVersion": A2A_VERSION,
            }
        ],
        "capabilities": {
            "streaming": False,
            "pushNotifications": False,
            "extensions": [
                {
                    "uri": EXTENSION_URI,
                    "description": EXTENSION_DESCRIPTION,
                    "required": True,
                    "params": params,
                }
            ],
        },
        "defaultInputModes": _modes(given, "inputModes"),
        "defaultOutputModes": _modes(given, "outputModes"),
        "skills": _skills(given.get("skills"), name, description),
    }
    for field in ("documentationUrl", "iconUrl"):
        if given.get(field):
            card[field] = _part("bad_url", field, given[field], SourceText)
    if provider := given.get("provider"):
        card["provider"] = _provider(provider)
    return _checked(card)


def reissue_card(
    card: bytes,
    *,
    sequence: int,
    now_ms: int,
    ttl_ms: int,
    status: str = "active",
    reason: str = "",
) -> dict[str, Any]:
    """
    The next issue of a card, unsigned: the same code for longer, deprecated, or revoked.

    It lives at least as long as the card it follows, so that a revocation is never forgotten
    while something it revoked is still good.

    Args:
        card: `Manifest.raw` of the issue that it follows.
        sequence: larger than that of `card`.
        status: active, deprecated, or revoked (final).
        reason: why, for people; at most 512 characters.

    Raises:
        Refused: bad_status, bad_reason.
    """
    if status not in ("active", "deprecated", "revoked"):
        raise Refused(f"status {status!r}: active, deprecated or revoked", code="bad_status")
    if len(reason) > 512:
        raise Refused("reason: at most 512 characters", code="bad_reason")
    value: dict[str, Any] = json.loads(card)
    value.pop("signatures", None)
    for extension in value["capabilities"]["extensions"]:
        if extension.get("uri") == EXTENSION_URI:
            params = extension["params"]
            params.pop("reason", None)
            params |= {
                "sequence": sequence,
                "issuedMs": now_ms,
                "expiresMs": max(now_ms + ttl_ms, params["expiresMs"]),
                "status": status,
            } | ({"reason": reason} if reason else {})
    return value


def _checked(card: dict[str, Any]) -> dict[str, Any]:
    try:
        refuse_empties(card)
        strictjson.check_bounds(card)
        size = len(strictjson.canonical(card)) + SIGNATURE_ROOM_BYTES
    except WireError as error:
        raise Refused(error.message, code="bad_card") from error
    if size > ids.MANIFEST_BYTES_MAX:
        raise Refused(
            f"the card takes {size} bytes, at most {ids.MANIFEST_BYTES_MAX} travel",
            code="too_large",
            hint="shorten the description, examples or schemas",
        )
    return card


def _part(code: str, field: str, value: Any, kind: Any) -> Any:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        missing = "is missing" if value is None else str(error)[:200]
        raise Refused(f"{field}: {missing}", code=code) from error
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise Refused(f"{field}: a list is wanted", code=f"bad_{field}")
    return list(value)


def _camel(key: str) -> str:
    head, *tail = key.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in tail)


def _camel_keys(value: Any, code: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused("an object of named fields is wanted", code=code)
    out: dict[str, Any] = {}
    for key, member in value.items():
        field = _camel(str(key))
        if field not in allowed:
            raise Refused(
                f"unknown field {str(key)[:64]!r}; known: {', '.join(allowed)}",
                code="unknown_field" if code == "bad_card" else code,
            )
        if field in out:
            raise Refused(f"{field} is given twice", code=code)
        out[field] = member
    return out


def _limits(value: Any) -> dict[str, Any]:
    default = {_camel(key): number for key, number in msgspec.structs.asdict(Limits()).items()}
    full = default | _camel_keys(value, "bad_limits", tuple(default))
    checked: dict[str, Any] = _part("bad_limits", "limits", full, CardLimits)
    return checked


# Authors also write the names that settings and messages use: per_call_ucr, per_mfuel_ucr.
_PRICE_AS_SETTING = {"perCallUcr": "perCall", "perMfuelUcr": "perMillionFuel"}


def _price(value: Any) -> dict[str, Any]:
    spelled = _camel_keys(value, "bad_price", ("perCall", "perMillionFuel", *_PRICE_AS_SETTING))
    given = {_PRICE_AS_SETTING.get(key, key): member for key, member in spelled.items()}
    full = {"perCall": 0, "perMillionFuel": 0} | given
    checked: dict[str, Any] = _part("bad_price", "price", full, CardPrice)
    return checked


def _modes(given: dict[str, Any], field: str) -> list[str]:
    modes = given.get(field) or ["application/json"]
    if isinstance(modes, str):
        modes = [modes]
    checked: list[str] = _part("bad_modes", field, modes, Modes)
    return list(checked)


def _skills(value: Any, name: str, description: str) -> list[dict[str, Any]]:
    skills = []
    for index, skill in enumerate(_list(value or [{"id": name}], "skills")):
        given = _camel_keys(
            {"id": skill} if isinstance(skill, str) else skill,
            "bad_skills",
            ("id", "name", "description", "tags", "examples", "inputModes", "outputModes"),
        )
        skill_id = given.get("id") or given.get("name") or name
        full = {"id": skill_id, "name": skill_id, "description": description, "tags": [skill_id]}
        full |= {key: member for key, member in given.items() if member not in ("", [], (), None)}
        skills.append(_part("bad_skills", f"skills[{index}]", full, AgentSkill))
    if len(skills) > SKILLS_MAX:
        raise Refused(f"skills: at most {SKILLS_MAX}", code="bad_skills")
    if len({skill["id"] for skill in skills}) != len(skills):
        raise Refused("skills: two have one id", code="bad_skills")
    return skills


def _schema(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{field}: a JSON Schema object is wanted", code="bad_schema")
    try:
        refuse_empties(value, field)
        strictjson.check_bounds(value)
        size = len(strictjson.canonical(value))
    except WireError as error:
        raise Refused(
            error.message,
            code="bad_schema",
            hint="a signed card cannot hold null, empty text, lists or objects",
        ) from error
    if size > SCHEMA_BYTES_MAX:
        raise Refused(f"{field}: {size} bytes, at most {SCHEMA_BYTES_MAX}", code="bad_schema")
    return value


def _provider(value: Any) -> dict[str, Any]:
    given = _camel_keys(value, "bad_provider", ("organization", "url"))
    return {
        "organization": _part(
            "bad_provider", "provider.organization", given.get("organization"), UriText
        ),
        "url": _part("bad_provider", "provider.url", given.get("url"), SourceText),
    }
