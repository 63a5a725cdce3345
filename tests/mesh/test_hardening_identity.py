from __future__ import annotations

from typing import Any

import mesh_hardening_lab as lab
import pytest
from libp2p import generate_new_ed25519_identity
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.secio import transport as secio
from multiaddr import Multiaddr

from zerostate_node.errors import Unavailable


class Liar:
    """A private key that shows another's public key."""

    def __init__(self, real: KeyPair, claimed: KeyPair) -> None:
        self._real = real.private_key
        self._claimed = claimed.public_key

    def get_public_key(self) -> Any:
        return self._claimed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_nobody_becomes_a_peer_by_knowing_its_public_key() -> None:
    victim_key = generate_new_ed25519_identity()
    victim = ID.from_pubkey(victim_key.public_key)
    own = generate_new_ed25519_identity()
    claimed: Any = KeyPair(Liar(own, victim_key), victim_key.public_key)
    sec_opt = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(claimed)}
    async with lab.running() as node, lab.running(key=claimed, sec_opt=sec_opt) as evil:
        with pytest.raises(Unavailable):
            await evil.dial(node)
        assert not node.network.get_connections(victim)
        assert not node.network.get_connections()


@pytest.mark.parametrize("protocol", ["plaintext", "secio"])
async def test_a_channel_other_than_noise_is_refused(protocol: str) -> None:
    key = generate_new_ed25519_identity()
    sec_opt = {
        "plaintext": {PLAINTEXT_PROTOCOL_ID: InsecureTransport(key)},
        "secio": {secio.ID: secio.Transport(key)},
    }[protocol]
    async with lab.running() as node, lab.running(key=key, sec_opt=sec_opt) as old:
        with pytest.raises(Unavailable):
            await old.dial(node)
        with pytest.raises(Unavailable):
            await node.dial(old)
        assert not node.network.get_connections()


async def test_a_thousand_strangers_do_not_push_our_own_key_out() -> None:
    async with lab.running() as node, lab.running() as friend:
        store = node.host.get_peerstore()
        addr = [Multiaddr("/ip4/192.0.2.1/tcp/1")]
        for n in range(1_200):
            stranger = ID(b"\x12\x20" + n.to_bytes(32, "big"))
            store.add_addrs(stranger, addr, 60)
        assert len(store.peer_ids()) <= 1_001
        assert node.host.get_private_key() == node.key.private_key
        await friend.dial(node)
        await node.ping(friend)
