from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from mesh_nodes import connected, make_mesh, open_patiently, start

from zerostate_node.errors import Unavailable
from zerostate_node.units import PeerId

CHILD = Path(__file__).resolve().parents[1] / "support" / "mesh_child.py"


class Child:
    """A node in a process of its own."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._text = b""

    async def says(self, ready: Any) -> dict[str, Any]:
        """Its first state that `ready` accepts."""
        with trio.fail_after(40):
            while True:
                line, _, rest = self._text.partition(b"\n")
                if not _:
                    assert self.process.stdout is not None
                    more = await self.process.stdout.receive_some()
                    assert more, "the child died"
                    self._text += more
                    continue
                self._text = rest
                state: dict[str, Any] = json.loads(line)
                if ready(state):
                    return state


async def child(nursery: trio.Nursery, key: bytes, **settings: Any) -> Child:
    process = await trio.lowlevel.open_process(
        [sys.executable, str(CHILD), key.hex(), json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )

    async def reap() -> None:
        try:
            await trio.sleep_forever()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    nursery.start_soon(reap)
    return Child(process)


async def test_processes_killed_without_warning_are_missed_and_found_again(
    nursery: trio.Nursery,
) -> None:
    relay_key, owner_key = os.urandom(32), os.urandom(32)
    relay = await child(nursery, relay_key, listen=["/ip4/127.0.0.1/tcp/0"], relay_serve=True)
    addrs = (await relay.says(lambda state: state["listen"]))["listen"]
    owner = await child(nursery, owner_key, relays=addrs)
    state = await owner.says(lambda state: state["relays"])
    owner_peer = PeerId(state["peer"])

    worker = make_mesh(relays=tuple(addrs), relay_use="never", peers_target=0)
    await start(nursery, worker)
    worker.learn(owner_peer, state["announce"], source="advert")
    link = await open_patiently(worker, owner_peer)
    await link.send(b"one")
    assert link.limited
    assert await link.receive() == b"one"

    relay.process.kill()
    await relay.process.wait()
    with trio.fail_after(5), pytest.raises(Unavailable):
        await link.receive()
    await owner.says(lambda state: not state["relays"])
    listen = [addrs[0].split("/p2p/")[0]]
    relay = await child(nursery, relay_key, listen=listen, relay_serve=True)
    await owner.says(lambda state: state["relays"])
    link = await open_patiently(worker, owner_peer)
    await link.send(b"two")
    assert await link.receive() == b"two"

    owner.process.kill()
    await owner.process.wait()
    with trio.fail_after(5), pytest.raises(Unavailable):
        await link.receive()
    await child(nursery, owner_key, relays=addrs)
    link = await open_patiently(worker, owner_peer, within_s=40)
    await link.send(b"three")
    assert await link.receive() == b"three"
    await connected(worker, owner_peer)
