from __future__ import annotations

import importlib.metadata
import io
import logging
import os
import subprocess
import sys
from typing import Any

import mesh_hardening_lab as lab  # noqa: F401 - installs
import pytest
import structlog
from libp2p.network import swarm

from zerostate_node.errors import ConfigError
from zerostate_node.mesh import hardening
from zerostate_node.mesh.hardening import patches, quiet

FRESH = """
import logging, sys
import libp2p
from zerostate_node.mesh import hardening
from zerostate_node.mesh.hardening import patches
patches.check()
{change}
try:
    hardening.install()
except Exception as error:
    print(type(error).__name__, getattr(error, "code", ""), error)
else:
    logging.getLogger("libp2p.host.basic_host").error("noise")
    print("installed", logging.getLogger().handlers)
"""


def fresh(change: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Install in a new process, after a change to what is there."""
    return subprocess.run(
        [sys.executable, "-c", FRESH.format(change=change)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


def test_install_is_idempotent() -> None:
    before = swarm.Swarm._do_handle_inbound_connection
    hardening.install()
    assert swarm.Swarm._do_handle_inbound_connection is before


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "0.8.2")
    with pytest.raises(ConfigError, match=r"libp2p 0\.8\.2 is installed.*0\.8\.1") as raised:
        patches.check()
    assert raised.value.code == "libp2p_changed"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("del libp2p.network.swarm.Swarm.unblock_peer", "Swarm.unblock_peer is gone"),
        (
            "libp2p.network.swarm.Swarm.unblock_peer = lambda self: None",
            "Swarm.unblock_peer takes (self), not (self,peer_id)",
        ),
        ("import libp2p.transport.cmux as c; c._PEEK_SIZE = 4", "_PEEK_SIZE is 4, not 3"),
    ],
)
def test_a_name_that_changed_is_refused_and_named(change: str, named: str) -> None:
    done = fresh(change)
    assert done.stdout.startswith("ConfigError libp2p_changed"), done.stderr
    assert named in done.stdout


def test_libp2p_debug_neither_opens_files_nor_reaches_our_logs(tmp_path: Any) -> None:
    done = fresh("", LIBP2P_DEBUG="DEBUG", LIBP2P_DEBUG_FILE=str(tmp_path / "flood.log"))
    assert done.stdout.splitlines()[-1] == "installed []", done.stderr
    assert "noise" not in done.stderr
    log_file = tmp_path / "flood.log"
    assert not log_file.exists() or log_file.stat().st_size == 0


def test_a_flood_of_libp2p_errors_becomes_a_few_short_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(quiet, "log", structlog.wrap_logger(structlog.PrintLogger(out)))
    handler = quiet.Throttled()
    logger = logging.Logger("libp2p.test")
    logger.addHandler(handler)
    for n in range(1_000):
        logger.error("peer said\n\x1b[31m%s", "x" * 5_000 + str(n))
    lines = out.getvalue().splitlines()
    assert len(lines) == quiet.LINES_PER_MINUTE
    assert all(len(line) < 600 and "\x1b[31m" not in line for line in lines)
    assert handler.suppressed == 1_000 - quiet.LINES_PER_MINUTE
