"""What peers tell us about themselves: bounded before it is read, and never in place of our key."""

from __future__ import annotations

import functools
from typing import Any

import libp2p.host.basic_host as basic_host
import libp2p.identity.identify_push.identify_push as identify_push
import libp2p.peer.peerstore as peerstore
import libp2p.protocol_muxer.multiselect_communicator as communicator
import libp2p.utils.varint as varint
from libp2p.exceptions import ParseError

NEGOTIATION_BYTES_MAX = 1024  # one line of multistream-select: a protocol's name
IDENTIFY_BYTES_MAX = 32 * 1024  # go and js: 8 KiB; a peer with many protocols has more

SIGNATURES = {
    "libp2p.utils.varint:read_varint_prefixed_bytes_limited": "reader,max_length",
    "libp2p.protocol_muxer.multiselect_communicator:read_delim": "reader",
    "libp2p.peer.peerstore:PeerStore._enforce_peer_limit": "self",
    "libp2p.host.basic_host:read_length_prefixed_protobuf": "stream,use_varint_format,max_length",
    "libp2p.identity.identify_push.identify_push:read_length_prefixed_protobuf": (
        "stream,use_varint_format,max_length"
    ),
}


def bound_negotiation() -> None:
    """
    Bound a line of multistream-select, and let bytes that are no text be a parse error.

    The length was a varint of up to 64 bits, read whole, before any authentication. A line that is
    not UTF-8 raised UnicodeDecodeError in a stream's task: nothing catches it, the host dies.
    """

    async def read_delim(reader: Any) -> bytes:
        line: bytes = await varint.read_varint_prefixed_bytes_limited(reader, NEGOTIATION_BYTES_MAX)
        if not line.endswith(b"\n"):
            raise ParseError("a line of the negotiation does not end in a line feed")
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise ParseError("a line of the negotiation is not UTF-8") from error
        return line[:-1]

    communicator.read_delim = read_delim


def bound_identify() -> None:
    """
    Bound identify messages, asked for and pushed.

    Each peer that connects could leave 1 MiB of protocols and records in the peer store; and of a
    longer message the host parsed whatever part came next.
    """
    original = varint.read_length_prefixed_protobuf

    async def read_message(
        stream: Any, use_varint_format: bool = True, max_length: int = IDENTIFY_BYTES_MAX
    ) -> bytes:
        try:
            message: bytes = await original(
                stream, use_varint_format, min(max_length, IDENTIFY_BYTES_MAX)
            )
        except BaseException:
            # The host falls back to a plain read then: it is to find nothing.
            await stream.reset()
            raise
        return message

    basic_host.read_length_prefixed_protobuf = read_message
    identify_push.read_length_prefixed_protobuf = read_message


def keep_own_key() -> None:
    """
    Never evict ourselves from the peer store.

    Above a thousand peers it forgets those without addresses first. That is the entry with our own
    private key: a thousand connections with fresh identities, and the host cannot sign any more.
    """
    original = peerstore.PeerStore._enforce_peer_limit

    @functools.wraps(original)
    def enforce(self: Any) -> None:
        own = {peer: data for peer, data in self.peer_data_map.items() if data.privkey is not None}
        original(self)
        self.peer_data_map.update(own)

    peerstore.PeerStore._enforce_peer_limit = enforce


PATCHES = (bound_negotiation, bound_identify, keep_own_key)
