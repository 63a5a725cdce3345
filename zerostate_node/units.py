"""Units and the plain types whose name carries a meaning a bare `str` or `int` would lose."""

from __future__ import annotations

from typing import NewType

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

MEGA_FUEL = 1_000_000  # prices are quoted per million fuel

PeerId = NewType("PeerId", str)  # libp2p peer id, base58btc: "12D3KooW..."
Did = NewType("Did", str)  # the same key as W3C did:key: "did:key:z6Mk..."
TaskId = NewType("TaskId", str)  # ULID, 26 characters, sorts by time of submission
AgentId = NewType("AgentId", str)  # "<did>/<name>"
Digest = NewType("Digest", str)  # "sha256:<64 lower-case hex digits>"
Fence = NewType("Fence", int)  # grows by one with every lease of a task
UnixMs = NewType("UnixMs", int)  # wall clock, milliseconds since 1970-01-01 UTC
MicroCredits = NewType("MicroCredits", int)  # 1_000_000 = one credit
