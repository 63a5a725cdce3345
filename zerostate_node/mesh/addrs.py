"""Multiaddrs as this node speaks them: parse with bounds, and say which may be dialled."""

from __future__ import annotations

import dataclasses
import ipaddress
import re

from zerostate_node.errors import ConfigError, WireError
from zerostate_node.units import PeerId
from zerostate_node.wire.ids import public_key_of

ADDR_CHARS_MAX = 512

_HOST_KINDS = ("ip4", "ip6", "dns", "dns4", "dns6")
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.?)+\Z")

# Cloud metadata services: never a peer, whatever the policy says.
_NEVER = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclasses.dataclass(frozen=True, slots=True)
class Addr:
    """
    One parsed multiaddr: `[/<host>/tcp/<port>[/ws]][/p2p/<id>][/p2p-circuit[/p2p/<dest>]]`.

    `peer` is who answers at the transport address (the relay, when `circuit`); `dest` is who is
    behind the relay.
    """

    text: str
    host_kind: str = ""  # "" when the address has no transport part
    host: str = ""
    port: int = 0
    ws: bool = False
    peer: PeerId | None = None
    circuit: bool = False
    dest: PeerId | None = None

    @property
    def transport(self) -> str:
        """The part that a socket is opened to; empty when there is none."""
        if not self.host_kind:
            return ""
        return f"/{self.host_kind}/{self.host}/tcp/{self.port}" + ("/ws" if self.ws else "")

    @property
    def is_dns(self) -> bool:
        """Whether the host is a name, so that what it resolves to must pass the policy too."""
        return self.host_kind.startswith("dns")

    def with_host(self, ip: str) -> str:
        """The transport part with `ip` in place of the name."""
        kind = "ip6" if ":" in ip else "ip4"
        return f"/{kind}/{ip}/tcp/{self.port}" + ("/ws" if self.ws else "")


def _bad(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"not a multiaddr this node can use: {text[:ADDR_CHARS_MAX]!r}: {why}",
        code="bad_addr",
        hint="the form is /ip4/<ip>/tcp/<port>[/ws][/p2p/<peer id>][/p2p-circuit[/p2p/<peer id>]]",
    )


def _peer(text: str, value: str) -> PeerId:
    try:
        public_key_of(value)
    except WireError as error:
        raise _bad(text, str(error)) from error
    return PeerId(value)


def _host(text: str, kind: str, value: str) -> str:
    if kind.startswith("dns"):
        if not _DNS_NAME.match(value):
            raise _bad(text, f"{value[:64]!r} is not a host name")
        return value.lower()
    try:
        address = ipaddress.ip_address(value)
    except ValueError as error:
        raise _bad(text, f"{value[:64]!r} is not an IP address") from error
    if (address.version == 4) != (kind == "ip4"):
        raise _bad(text, f"{value!r} does not belong behind /{kind}")
    return str(address)


def parse_addr(text: str) -> Addr:
    """
    Parse a multiaddr of the kinds this node uses. Pure; bounded before it is looked at.

    Raises:
        ConfigError: code=bad_addr, naming the address and what is wrong with it.
    """
    if len(text) > ADDR_CHARS_MAX:
        raise _bad(text, f"longer than {ADDR_CHARS_MAX} characters")
    parts = text.split("/")
    if len(parts) < 3 or parts[0]:
        raise _bad(text, "it starts with a slash and names a protocol and a value")
    parts = parts[1:]
    at = 0

    def pair() -> str:
        nonlocal at
        if at + 1 >= len(parts) or not parts[at + 1]:
            raise _bad(text, f"/{parts[at]} needs a value")
        at += 2
        return parts[at - 1]

    kind, host, port, ws = "", "", 0, False
    if parts[0] in _HOST_KINDS:
        kind = parts[0]
        host = _host(text, kind, pair())
        if at >= len(parts) or parts[at] != "tcp":
            raise _bad(text, "only TCP, and WebSocket over it, is spoken here")
        number = pair()
        if not (number.isascii() and number.isdigit() and int(number[:6]) <= 65535):
            raise _bad(text, f"{number[:16]!r} is not a TCP port")
        port = int(number)
        if at < len(parts) and parts[at] == "ws":
            ws, at = True, at + 1
    peer = _peer(text, pair()) if at < len(parts) and parts[at] == "p2p" else None
    circuit, dest = False, None
    if at < len(parts) and parts[at] == "p2p-circuit":
        circuit, at = True, at + 1
        if peer is None:
            raise _bad(text, "a circuit address names its relay: .../p2p/<relay>/p2p-circuit")
        if at < len(parts) and parts[at] == "p2p":
            dest = _peer(text, pair())
    if at != len(parts):
        raise _bad(text, f"/{parts[at][:32]} is not understood here")
    if not kind and not circuit:
        raise _bad(text, "it has no host and no port")
    return Addr(
        text="/" + "/".join(parts),
        host_kind=kind,
        host=host,
        port=port,
        ws=ws,
        peer=peer,
        circuit=circuit,
        dest=dest,
    )


def parse_peer_addr(text: str) -> Addr:
    """
    Parse an address that can be dialled as it stands: host, port and `/p2p/<peer id>`.

    Raises:
        ConfigError: as `parse_addr`, and when the port is 0 or the peer id is missing.
    """
    addr = parse_addr(text)
    if addr.circuit or not addr.host_kind or addr.port == 0 or addr.peer is None:
        raise _bad(text, "a bootstrap or relay address has a host, a port and /p2p/<peer id>")
    return addr


def ip_may_be_dialled(ip: str, *, dial_private: bool) -> bool:
    """
    Whether an address that a stranger told us may be dialled.

    Without this any peer could aim our sockets at the machine's own services or the cloud's
    metadata service. Addresses that carry an IPv4 address inside are judged by that one.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return ip_may_be_dialled(str(inner), dial_private=dial_private)
    if address in _NEVER or address.is_multicast or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv4Address) and int(address) == 0xFFFFFFFF:
        return False
    if dial_private:
        return not address.is_link_local
    return address.is_global


def may_be_dialled(addr: Addr, *, dial_private: bool) -> bool:
    """The policy for one learned address; a name passes here and is judged again once resolved."""
    if not addr.host_kind:
        return addr.circuit  # the relay's own addresses are judged when it is dialled
    if addr.port == 0:
        return False
    if addr.is_dns:
        return dial_private or (addr.host != "localhost" and not addr.host.endswith(".localhost"))
    return ip_may_be_dialled(addr.host, dial_private=dial_private)
