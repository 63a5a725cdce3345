"""A mesh node as a process of its own: settings as JSON in argv, its state as JSON lines out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mesh_nodes import ECHO, FRAME_MAX, echo, make_mesh

from zerostate_node.ports.mesh import Link

SINK = "/test/sink/1"


async def sink(link: Link) -> None:
    """Count frames; at `count` say how many came since the last time."""
    count = 0
    while True:
        if await link.receive() == b"count":
            await link.send(b"%d" % count)
            count = 0
        else:
            count += 1


async def main(key: str, settings: dict[str, object]) -> None:
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    mesh = make_mesh(bytes.fromhex(key), **lists)
    mesh.handle(ECHO, echo, frame_bytes_max=FRAME_MAX)
    mesh.handle(SINK, sink, frame_bytes_max=FRAME_MAX)
    async with trio.open_nursery() as nursery:
        await nursery.start(mesh.run)
        said = ""
        while True:
            status = mesh.status()
            now = json.dumps(
                {
                    "peer": mesh.peer,
                    "listen": status.listen_addrs,
                    "announce": status.announce_addrs,
                    "relays": status.relays,
                }
            )
            if now != said:
                said = now
                print(now, flush=True)
            await trio.sleep(0.05)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main, sys.argv[1], json.loads(sys.argv[2]))
