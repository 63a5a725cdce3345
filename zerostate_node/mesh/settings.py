"""What the mesh needs to know of the operator's wishes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from zerostate_node.errors import ConfigError
from zerostate_node.mesh.addrs import Addr, parse_addr, parse_peer_addr
from zerostate_node.units import HOUR_MS, MIB, SECOND_MS
from zerostate_node.wire.ids import is_network

RelayUse = Literal["auto", "always", "never"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """
    How this node takes part in the mesh. Checked when made: a bad address is a ConfigError.

    An empty `listen` means that nobody can dial this node directly: it dials, and is reached
    through relays.
    """

    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()  # told to others instead of what is bound (port forwarding)
    bootstrap: tuple[str, ...] = ()  # full multiaddrs with /p2p/; pinned as anchors
    relays: tuple[str, ...] = ()  # full multiaddrs with /p2p/; empty = ask the bootstrap peers
    relay_serve: bool = False
    relay_use: RelayUse = "auto"  # auto = when no address of ours could be dialled
    dial_private: bool = False  # dial loopback and private addresses that peers tell us
    connections_max: int = 128
    gossip_per_s: float = 20.0  # messages this node publishes itself
    network: str = "main"

    gossip_forwarder_per_s: float = 200.0  # accepted from one neighbour, all authors together
    peers_target: int = 8  # kept connected by the dial loop
    dials_per_s: float = 10.0
    relay_circuit_bytes_max: int = 128 * MIB
    relay_circuit_s_max: int = 4 * HOUR_MS // SECOND_MS
    relay_reservations_max: int = 256

    def __post_init__(self) -> None:
        for text in self.listen:
            addr = parse_addr(text)
            if addr.is_dns or addr.circuit or addr.peer is not None:
                raise ConfigError(
                    f"cannot listen on {text!r}: it must be an IP address and a port",
                    code="bad_addr",
                    hint="for example /ip4/0.0.0.0/tcp/4001",
                )
        for text in self.announce:
            parse_addr(text)
        for text in (*self.bootstrap, *self.relays):
            parse_peer_addr(text)
        if self.relay_use not in ("auto", "always", "never"):
            raise ConfigError(f"relay_use is auto, always or never, not {self.relay_use!r}")
        if not is_network(self.network):
            raise ConfigError(f"{self.network!r} is not the name of a network")
        if self.connections_max < 4 or self.connections_max > 10_000:
            raise ConfigError(f"connections_max is 4 to 10000, not {self.connections_max}")
        if self.gossip_per_s <= 0 or self.gossip_forwarder_per_s <= 0 or self.dials_per_s <= 0:
            raise ConfigError("gossip and dial rates are greater than zero")

    def bootstrap_addrs(self) -> tuple[Addr, ...]:
        """The bootstrap peers, parsed."""
        return tuple(parse_peer_addr(text) for text in self.bootstrap)

    def relay_addrs(self) -> tuple[Addr, ...]:
        """The relays, parsed."""
        return tuple(parse_peer_addr(text) for text in self.relays)
