"""Install every patch, once, on exactly the version they were written for."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport

from zerostate_node.errors import ConfigError
from zerostate_node.mesh.hardening import gossip, inbound, quiet, reads, sockets, streams

LIBP2P_VERSION = "0.8.1"

# Written down by hand from the source of that version: what the patches replace or lean on.
SIGNATURES: dict[str, str] = {
    **streams.SIGNATURES,
    **inbound.SIGNATURES,
    **reads.SIGNATURES,
    **gossip.SIGNATURES,
    **sockets.SIGNATURES,
}

PATCHES: tuple[Callable[[], None], ...] = (
    *streams.PATCHES,
    *inbound.PATCHES,
    *reads.PATCHES,
    *gossip.PATCHES,
    *sockets.PATCHES,
)

_installed = False


def install() -> None:
    """
    Patch libp2p in this process. Idempotent; call it before the first host is made.

    Raises:
        ConfigError: (code=libp2p_changed) another version is installed, or a name the patches
            need is gone or takes other arguments; nothing has been patched then.
    """
    global _installed
    if _installed:
        return
    check()
    quiet.apply()
    for patch in PATCHES:
        patch()
    _installed = True


def check() -> None:
    """
    Compare the installed libp2p with what the patches expect.

    Raises:
        ConfigError: (code=libp2p_changed) with every difference named.
    """
    version = importlib.metadata.version("libp2p")
    if version != LIBP2P_VERSION:
        raise ConfigError(
            f"libp2p {version} is installed, but the mesh hardening is for {LIBP2P_VERSION}",
            code="libp2p_changed",
            hint=f"install libp2p=={LIBP2P_VERSION}",
        )
    wrong = [line for name, expected in SIGNATURES.items() if (line := _differs(name, expected))]
    if wrong:
        raise ConfigError(
            "libp2p differs from what the mesh hardening patches: " + "; ".join(wrong),
            code="libp2p_changed",
            hint=f"reinstall libp2p=={LIBP2P_VERSION}",
        )


def noise_only(key_pair: KeyPair) -> dict[str, Any]:
    """
    Give the `sec_opt` of a host that speaks Noise and nothing else.

    The default also accepts plaintext and secio: whoever has a peer's *public* key is then
    accepted as that peer. TLS is off too, its authentication had bypasses.
    """
    noise_key = create_new_key_pair().private_key
    return {NOISE_ID: NoiseTransport(key_pair, noise_privkey=noise_key)}


def _differs(name: str, expected: str) -> str:
    """Say how the thing at dotted `name` differs from `expected`; "" when it does not."""
    module_name, _, path = name.partition(":")
    target: Any
    try:
        target = importlib.import_module(module_name)
        for part in path.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError):
        return f"{name} is gone"
    if callable(target):
        found = ",".join(inspect.signature(target).parameters)
        return "" if found == expected else f"{name} takes ({found}), not ({expected})"
    return "" if repr(target) == expected else f"{name} is {target!r}, not {expected}"
