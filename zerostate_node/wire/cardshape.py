"""
The shape of a manifest: an A2A 1.0 AgentCard, and the params of our one extension to it.

JSON spells these fields in camelCase. `protocols/manifest/1` is the specification.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from zerostate_node.errors import WireError
from zerostate_node.wire import strictjson
from zerostate_node.wire.messages import (
    BlobRef,
    DigestText,
    FuelMax,
    Limits,
    MemoryBytesMax,
    Price,
    StderrBytesMax,
    StdinBytesMax,
    StdoutBytesMax,
    TableElementsMax,
    WallMsMax,
)

EXTENSION_URI = "https://zerostate.ai/a2a/extensions/wasm-agent/v1"
BINDING_URI = "https://zerostate.ai/a2a/bindings/work/v1"
A2A_VERSION = "1.0"
ARGS_BYTES_MAX = 4 * 1024  # all together, UTF-8: a receipt repeats them and must stay small

NameText = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$(?!\n)", max_length=63)]
VersionText = Annotated[
    str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._+-]{0,63}$(?!\n)", max_length=64)
]
DescriptionText = Annotated[str, Meta(min_length=1, max_length=4_096)]
SkillText = Annotated[str, Meta(min_length=1, max_length=128)]
ModeText = Annotated[str, Meta(pattern=r"^[!-~]+/[!-~]+$(?!\n)", max_length=128)]
Modes = Annotated[tuple[ModeText, ...], Meta(min_length=1, max_length=16)]
UriText = Annotated[str, Meta(min_length=1, max_length=512)]
DidText = Annotated[str, Meta(pattern=r"^did:key:z6Mk[1-9A-HJ-NP-Za-km-z]{44}$(?!\n)")]
SourceText = Annotated[
    str,
    Meta(
        pattern=r"^https://[A-Za-z0-9]([A-Za-z0-9.-]{0,252})(:[0-9]{1,5})?(/[!-~]*)?$(?!\n)",
        max_length=512,
    ),
]
ArgText = Annotated[str, Meta(pattern=r"^[^\x00]+$(?!\n)", max_length=512)]  # argv ends at a NUL
Base64Text = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+$(?!\n)", max_length=1_024)]
Whole = Annotated[int, Meta(ge=0, le=strictjson.INTEGER_MAX)]
Sequence = Annotated[int, Meta(ge=1, le=strictjson.INTEGER_MAX)]
ModuleBytes = Annotated[int, Meta(ge=1, le=1 << 43)]
Status = Literal["active", "deprecated", "revoked"]


class _Camel(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base: camelCase on the wire, unknown members ignored (they are signed all the same)."""


class CardLimits(_Camel, frozen=True, kw_only=True):
    """`wire.messages.Limits` with every field spelled out: a signature covers no default."""

    fuel_max: FuelMax
    wall_ms_max: WallMsMax
    memory_bytes_max: MemoryBytesMax
    table_elements_max: TableElementsMax
    stdin_bytes_max: StdinBytesMax
    stdout_bytes_max: StdoutBytesMax
    stderr_bytes_max: StderrBytesMax

    def limits(self) -> Limits:
        """The same as the wire value."""
        return Limits(**msgspec.structs.asdict(self))


class CardPrice(_Camel, frozen=True, kw_only=True):
    """Integer micro-credits per call and per million fuel."""

    per_call: Whole
    per_million_fuel: Whole

    def price(self) -> Price:
        """The same as the wire value."""
        return Price(per_call_ucr=self.per_call, per_mfuel_ucr=self.per_million_fuel)


class WasmAgent(_Camel, frozen=True, kw_only=True):
    """Params of the extension: what is run, within what, for how much, said by whom, until when."""

    module_digest: DigestText
    module_bytes: ModuleBytes
    script_digest: DigestText | None = None
    script_bytes: ModuleBytes | None = None
    guest_abi: Annotated[str, Meta(min_length=1, max_length=32)]
    args: Annotated[tuple[ArgText, ...], Meta(max_length=32)] = ()
    limits: CardLimits
    price: CardPrice
    publisher: DidText
    sequence: Sequence
    issued_ms: Whole
    expires_ms: Whole
    status: Status
    reason: Annotated[str, Meta(min_length=1, max_length=512)] = ""
    sources: Annotated[tuple[SourceText, ...], Meta(max_length=8)] = ()
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None

    def module(self) -> BlobRef:
        """The module by its content address."""
        return BlobRef(digest=self.module_digest, size_bytes=self.module_bytes)

    def script(self) -> BlobRef | None:
        """The script by its content address, for an agent that is an engine plus a script."""
        if self.script_digest is None or self.script_bytes is None:
            return None
        return BlobRef(digest=self.script_digest, size_bytes=self.script_bytes)


class AgentInterface(_Camel, frozen=True, kw_only=True):
    """A2A AgentInterface: where the agent can be called, and how."""

    url: UriText
    protocol_binding: UriText
    protocol_version: Annotated[str, Meta(min_length=1, max_length=16)]


class AgentExtension(_Camel, frozen=True, kw_only=True):
    """A2A AgentExtension; ours carries `WasmAgent` in `params`."""

    uri: Annotated[str, Meta(max_length=512)] = ""
    description: Annotated[str, Meta(max_length=1_024)] = ""
    required: bool = False
    params: dict[str, Any] | None = None


class AgentCapabilities(_Camel, frozen=True, kw_only=True):
    """A2A AgentCapabilities."""

    streaming: bool | None = None
    push_notifications: bool | None = None
    extensions: Annotated[tuple[AgentExtension, ...], Meta(min_length=1, max_length=8)]


class AgentSkill(_Camel, frozen=True, kw_only=True):
    """A2A AgentSkill; its id and tags are what a task may ask for as a capability."""

    id: SkillText
    name: SkillText
    description: DescriptionText
    tags: Annotated[tuple[SkillText, ...], Meta(min_length=1, max_length=16)]
    examples: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=2_048)], ...], Meta(max_length=16)
    ] = ()
    input_modes: Annotated[tuple[ModeText, ...], Meta(max_length=16)] = ()
    output_modes: Annotated[tuple[ModeText, ...], Meta(max_length=16)] = ()


class CardSignature(_Camel, frozen=True, kw_only=True):
    """A2A AgentCardSignature: one JWS over the card."""

    protected: Base64Text
    signature: Base64Text


class AgentCard(_Camel, frozen=True, kw_only=True):
    """A2A AgentCard, as far as a manifest reads it. All other members are signed and ignored."""

    name: NameText
    description: DescriptionText
    version: VersionText
    supported_interfaces: Annotated[tuple[AgentInterface, ...], Meta(min_length=1, max_length=8)]
    capabilities: AgentCapabilities
    default_input_modes: Modes
    default_output_modes: Modes
    skills: Annotated[tuple[AgentSkill, ...], Meta(min_length=1, max_length=32)]


# Members with implicit presence in a2a.proto: absent and default are the same message, so A2A
# 8.4.1 takes the default out before signing. What lies in `params` is a Struct and stays.
_IMPLICIT = {
    "card": {"securitySchemes", "securityRequirements"},
    "interface": {"tenant"},
    "capabilities": {"extensions"},
    "extension": {"uri", "description", "required"},
    "skill": {"examples", "inputModes", "outputModes", "securityRequirements"},
    "provider": set(),
}
_NESTED = {
    "card": {
        "supportedInterfaces": "interface",
        "capabilities": "capabilities",
        "skills": "skill",
        "provider": "provider",
    },
    "capabilities": {"extensions": "extension"},
}


def without_defaults(value: Any, message: str = "card") -> Any:
    """A card (or a message in it) without the members that A2A 8.4.1 leaves unsigned."""
    if not isinstance(value, dict):
        return value
    nested = _NESTED.get(message, {})
    out = {}
    for key, member in value.items():
        if member is None or (key in _IMPLICIT[message] and not member):
            continue
        if key in nested:
            if isinstance(member, list):
                member = [without_defaults(item, nested[key]) for item in member]
            else:
                member = without_defaults(member, nested[key])
        out[key] = member
    return out


def refuse_empties(value: Any, path: str = "$") -> None:
    """
    Refuse null, "", [] and {} anywhere: verifiers disagree whether such a member is signed.

    The specification signs an empty REQUIRED or Struct member, the A2A Python SDK drops it. A card
    with none of them has one payload, whoever computes it.

    Raises:
        WireError: wrong_shape, with the path.
    """
    if value is None or (isinstance(value, str | list | dict) and not value):
        raise WireError(f"empty value at {path[:200]}: leave the member out", code="wrong_shape")
    if isinstance(value, dict):
        for key, member in value.items():
            refuse_empties(member, f"{path}.{key}")
    elif isinstance(value, list):
        for index, member in enumerate(value):
            refuse_empties(member, f"{path}[{index}]")
