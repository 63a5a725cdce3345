"""
Names that cross a process boundary: protocol ids, topics, peer ids, digests, and their limits.

`protocols/README.md` is the register; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import base58

from zerostate_node.errors import WireError
from zerostate_node.units import KIB, MIB, AgentId, Did, Digest, PeerId, TaskId

# -- protocols ---------------------------------------------------------------------------------
WORK = "/zerostate/work/1"
BLOB = "/zerostate/blob/1"
SYNC = "/zerostate/sync/1"

ENVELOPE = "envelope/1"
MANIFEST = "manifest/1"
NODE = "node/1"  # types of envelope, from here
ANNOUNCEMENT = "announcement/1"
LEASE = "lease/1"
RECEIPT = "receipt/1"

ENVELOPE_DOMAIN = b"zerostate/envelope/1\x00"
GUEST_ABI = "guest/1"

# -- limits, enforced before anything is parsed -------------------------------------------------
ENVELOPE_BYTES_MAX = 256 * KIB  # a frame of leases with its inline inputs is the largest one
ANNOUNCEMENT_BYTES_MAX = 4 * KIB  # gossip is for hints
NODE_ADVERT_BYTES_MAX = 4 * KIB
MANIFEST_BYTES_MAX = 32 * KIB  # must fit one gossip message with room to spare
WORK_FRAME_BYTES_MAX = 4 * MIB  # 64 receipts with their inline outputs
SYNC_FRAME_BYTES_MAX = 512 * KIB
BLOB_CHUNK_BYTES_MAX = 1 * MIB
BLOB_FRAME_BYTES_MAX = BLOB_CHUNK_BYTES_MAX + 4 * KIB
LEASE_BYTES_MAX = WORK_FRAME_BYTES_MAX - KIB  # a signed batch, within its frame
RECEIPT_BYTES_MAX = 16 * KIB
VOUCHER_BYTES_MAX = 1 * KIB
INLINE_BYTES_MAX = 32 * KIB  # input or output that travels in the message; larger ones go by digest

# Every contract that crosses a process boundary, and its size limit in bytes (0: its own rules).
REGISTER = {
    ENVELOPE: ENVELOPE_BYTES_MAX,
    MANIFEST: MANIFEST_BYTES_MAX,
    NODE: NODE_ADVERT_BYTES_MAX,
    ANNOUNCEMENT: ANNOUNCEMENT_BYTES_MAX,
    LEASE: LEASE_BYTES_MAX,
    RECEIPT: RECEIPT_BYTES_MAX,
    WORK: WORK_FRAME_BYTES_MAX,
    BLOB: BLOB_FRAME_BYTES_MAX,
    SYNC: SYNC_FRAME_BYTES_MAX,
    GUEST_ABI: 0,
}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")
_NETWORK = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")
_AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_PEER = re.compile(r"[1-9A-HJ-NP-Za-km-z]{52}\Z")  # the one length of an Ed25519 peer id
_DID = re.compile(r"did:key:z[1-9A-HJ-NP-Za-km-z]{47}\Z")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

_ED25519_PEER_PREFIX = bytes.fromhex("002408011220")  # identity multihash of protobuf{type=Ed25519}
_ED25519_DID_PREFIX = b"\xed\x01"  # multicodec ed25519-pub

# y coordinates of the eight points of small order (RFC 7748 section 7, libsodium's list). Under
# such a key one signature fits every message, so what it "signed" proves nothing.
_P = 2**255 - 19
_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _P - 1,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
    }
)


def topic(network: str, kind: str, shard: int = 0) -> str:
    """The gossip topic of one kind of message (`nodes`, `manifests`, `work`) in one network."""
    return f"/zerostate/{network}/{kind}/1/{shard}"


def shard_of(key: str, shards: int) -> int:
    """Which of `shards` topics a capability or agent id belongs to; stable across programs."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % shards


def is_network(name: str) -> bool:
    """Whether `name` may name a network."""
    return bool(_NETWORK.match(name))


def digest_of(data: bytes) -> Digest:
    """The content address of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def is_digest(text: str) -> bool:
    """Whether `text` is a content address in the one spelling allowed."""
    return bool(_DIGEST.match(text))


def is_task_id(text: str) -> bool:
    """Whether `text` is a ULID in the one spelling allowed."""
    return bool(_ULID.match(text))


def is_agent_name(text: str) -> bool:
    """Whether `text` may be the name part of an agent id."""
    return bool(_AGENT_NAME.match(text))


def ulid(now_ms: int, entropy: bytes) -> TaskId:
    """
    A ULID from a time and 10 random bytes, both handed in.

    Source: github.com/ulid/spec.
    """
    if len(entropy) != 10:
        raise ValueError("a ULID takes exactly 10 bytes of entropy")
    number = (now_ms << 80) | int.from_bytes(entropy, "big")
    return TaskId("".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5)))


def check_public_key(public_key: bytes) -> None:
    """
    Refuse an Ed25519 key that is spelled in a second way, or under which signatures prove nothing.

    Raises:
        WireError: bad_key (not 32 bytes, not canonical, of small order). OpenSSL checks neither.
    """
    if len(public_key) != 32:
        raise WireError("an Ed25519 public key has 32 bytes", code="bad_key")
    y = int.from_bytes(public_key, "little") & ((1 << 255) - 1)
    if y >= _P or y in _SMALL_ORDER_Y:
        raise WireError("an Ed25519 key that proves nothing", code="bad_key")


def peer_id_of(public_key: bytes) -> PeerId:
    """The libp2p peer id of a raw 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise WireError("an Ed25519 public key has 32 bytes", code="bad_key")
    return PeerId(base58.b58encode(_ED25519_PEER_PREFIX + public_key).decode())


@lru_cache(maxsize=1024)  # base58 is slow, and the peers of a node are few
def public_key_of(peer: str) -> bytes:
    """
    The raw Ed25519 public key inside a libp2p peer id.

    Raises:
        WireError: bad_peer_id (not an Ed25519 peer id in base58btc), bad_key. Their fault.
    """
    # base58 itself forgives white space, which would give one key many names
    raw = base58.b58decode(peer) if _PEER.match(peer) else b""
    if len(raw) != 38 or not raw.startswith(_ED25519_PEER_PREFIX):
        raise WireError(f"not an Ed25519 peer id: {peer[:64]!r}", code="bad_peer_id")
    check_public_key(raw[6:])
    return raw[6:]


@lru_cache(maxsize=1024)
def did_of(peer: str) -> Did:
    """The did:key of a peer id: the same key, spelled the W3C way."""
    return Did("did:key:z" + base58.b58encode(_ED25519_DID_PREFIX + public_key_of(peer)).decode())


@lru_cache(maxsize=1024)
def peer_of_did(did: str) -> PeerId:
    """
    The peer id of an Ed25519 did:key.

    Raises:
        WireError: bad_did (not an Ed25519 did:key), bad_key. Their fault.
    """
    raw = base58.b58decode(did.removeprefix("did:key:z")) if _DID.match(did) else b""
    if len(raw) != 34 or not raw.startswith(_ED25519_DID_PREFIX):
        raise WireError(f"not an Ed25519 did:key: {did[:80]!r}", code="bad_did")
    check_public_key(raw[2:])
    return peer_id_of(raw[2:])


def agent_id_of(publisher: Did, name: str) -> AgentId:
    """The id of the agent that `publisher` calls `name`."""
    return AgentId(f"{publisher}/{name}")


def split_agent_id(agent_id: str) -> tuple[Did, str]:
    """
    Publisher and name of an agent id.

    Raises:
        WireError: not `<did:key>/<name>`.
    """
    did, _, name = agent_id.partition("/")
    peer_of_did(did)
    if not is_agent_name(name):
        raise WireError(f"not an agent id: {agent_id[:128]!r}", code="bad_agent_id")
    return Did(did), name


def run_seed(module: str, script: str, args: tuple[str, ...], input_digest: str) -> bytes:
    """
    The 32 bytes that a guest's randomness grows from.

    A function of what is run and of nothing else, so that the same work gives the same output on
    any node and a receipt can be replayed.
    """
    parts = ["zerostate/seed/1", module, script, str(len(args)), *args, input_digest]
    return hashlib.sha256("\x00".join(parts).encode()).digest()
