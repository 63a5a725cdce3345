"""
What py-libp2p 0.8.1 needs before it may face strangers.

Call `install()` once, before the first host is made; then, for every host, `noise_only` and
`connection_config` when it is built, `guard_all` before it listens, `fix_pubsub` before its
services run, and `dial_all` instead of `host.connect`. Each patch names the defect it is for, and
each has a test that fails without it. Another version of libp2p is refused: read its source first.
"""

from __future__ import annotations

from zerostate_node.mesh.hardening.dialling import connection_config, dial_all
from zerostate_node.mesh.hardening.gossip import fix_pubsub, make_gossip
from zerostate_node.mesh.hardening.guards import close_stream, guard, guard_all
from zerostate_node.mesh.hardening.patches import LIBP2P_VERSION, install, noise_only

__all__ = [
    "LIBP2P_VERSION",
    "close_stream",
    "connection_config",
    "dial_all",
    "fix_pubsub",
    "guard",
    "guard_all",
    "install",
    "make_gossip",
    "noise_only",
]
