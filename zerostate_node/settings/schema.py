"""
Every setting of the node: name, unit, default, reason, and what is allowed.

The docs (`docs/settings.md`), the example file (`configs/node.example.toml`) and `config show` are
made from this one description.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from zerostate_node.settings.values import check_addresses, check_peers, setting
from zerostate_node.units import GIB, KIB, MIB
from zerostate_node.wire.messages import Limits

ROLES = ("edge", "gateway", "relay", "bootstrap")
_REGION = re.compile(r"[A-Za-z0-9._-]{0,32}\Z")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])\Z", re.ASCII)


def _region(value: str) -> str:
    if not _REGION.match(value):
        raise ValueError("must be up to 32 letters, digits, dots, dashes or underscores")
    return value


def _ledger_url(value: str) -> str:
    if value.startswith(("postgres://", "postgresql://")):
        raise ValueError(
            "Postgres is not supported yet by this version; "
            "use sqlite:///path/to/ledger.db, or nothing for a ledger in the data directory"
        )
    if value and not value.startswith("sqlite:///"):
        raise ValueError("must be empty, or sqlite:///path/to/ledger.db")
    return value


def _hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    lower = tuple(item.lower() for item in value)
    for item in lower:
        if not _HOST.match(item):
            raise ValueError(
                f"holds {item[:80]!r}; allowed are names and addresses as they stand in a URL, "
                "without scheme and port, such as node.example.org"
            )
    return lower


def _serves(value: tuple[str, ...]) -> tuple[str, ...]:
    for item in value:
        if not (item == "*" or item.startswith("cap:") or item.startswith("did:key:z")):
            raise ValueError(f"holds {item[:80]!r}; allowed are *, cap:<capability> and agent ids")
    return value


def _publishers(value: tuple[str, ...]) -> tuple[str, ...]:
    for item in value:
        if not (item == "*" or item.startswith("did:key:z")):
            raise ValueError(f"holds {item[:80]!r}; allowed are * and did:key:z...")
    return value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What this node is and where it keeps its things."""

    network: str = setting(
        "main", "Which mesh to join: main, test, dev, or a path to a network file of your own."
    )
    role: str = setting(
        "edge",
        "The preset this node starts from; every part of a preset can be set otherwise.",
        choices=ROLES,
    )
    data_dir: Path = setting(  # noqa: RUF009
        Path("~/.local/share/zerostate-node"),
        "Identity, ledger, blobs and caches live here (0700); one running node per directory. "
        "The default follows $XDG_DATA_HOME.",
        env=("ZEROSTATE_DATA_DIR",),
    )
    region: str = setting(
        "",
        "A label peers may prefer when they choose who runs what, such as ord or eu-west.",
        env=("REGION", "FLY_REGION"),
        check=_region,
    )
    environment: str = setting(
        "development",
        "How strict to be: production logs JSON and refuses what only a developer would want.",
        env=("ENVIRONMENT", "GIN_MODE"),
        choices=("development", "staging", "production", "test"),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """How this node meets others."""

    listen: tuple[str, ...] = setting(
        ("/ip4/0.0.0.0/tcp/4001",),
        "Where peers can dial this node; none means it only dials out and is reached by relays.",
        env=("P2P_LISTEN_ADDRS",),
        check=check_addresses,
    )
    announce: tuple[str, ...] = setting(
        (),
        "What peers are told to dial, when that differs from where this node listens.",
        env=("P2P_ANNOUNCE_ADDRS",),
        check=check_addresses,
    )
    bootstrap: tuple[str, ...] = setting(
        (),
        "Peers to dial first, added to those of the network file; retried for ever with backoff.",
        env=("P2P_BOOTSTRAP_PEERS",),
        check=check_peers,
    )
    relay_serve: bool = setting(
        False,
        "Whether peers behind a NAT may hold a reservation here and be reached through this node.",
        env=("P2P_RELAY_ENABLED",),
    )
    relay_use: str = setting(
        "auto",
        "Whether to reserve on relays: auto does so when there is no listen address or nobody "
        "reaches us.",
        choices=("auto", "always", "never"),
    )
    relays: tuple[str, ...] = setting(
        (), "Relays to reserve on, added to those of the network file.", check=check_peers
    )
    dial_private: bool = setting(
        True,
        "Whether private and loopback addresses learned from peers may be dialled; "
        "false where strangers could use this node to probe a private network.",
    )
    connections_max: int = setting(
        128, "Peers connected at once; more are refused.", least=4, most=10_000
    )
    gossip_per_s: float = setting(
        50.0,
        "Gossip messages accepted and sent each second; the rest is dropped.",
        least=1,
        most=5_000,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnerSettings:
    """Accepting tasks and leasing them to workers."""

    enabled: bool = setting(True, "Whether tasks can be submitted at this node.")
    tasks_open_max: int = setting(
        100_000,
        "Unsettled tasks kept; further ones are turned away with a 503.",
        least=1,
        most=10**7,
    )
    lease_ttl_s: float = setting(
        15.0,
        "How long a silent worker keeps a task before another may have it.",
        least=1,
        most=3_600,
    )
    deadline_default_s: float = setting(
        600.0,
        "How long a task may take in all, when the submitter does not say.",
        least=1,
        most=604_800,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Claiming tasks and running them."""

    enabled: bool = setting(True, "Whether this node runs tasks, its own and those of others.")
    slots: int = setting(0, "Tasks run at once; 0 means one per core.", least=0, most=1_024)
    serves: tuple[str, ...] = setting(
        ("*",),
        "What to claim: * for everything, cap:<capability>, or agent ids.",
        check=_serves,
    )
    owners_max: int = setting(
        8, "Owners that this node keeps a work stream to.", least=1, most=1_024
    )
    publishers: tuple[str, ...] = setting(
        ("*",),
        "Whose agents may run here: * for anyone's (the sandbox holds them), or did:key ids.",
        check=_publishers,
    )
    price_floor_ucr: int = setting(
        0, "Least price of a task worth claiming, micro-credits.", least=0, most=10**12
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """The most that any guest may use here; an agent's own limits are cut to these."""

    fuel_max: int = setting(
        1_000_000_000_000, "Instructions' worth of fuel of one run.", least=1, most=10**14
    )
    wall_ms_max: int = setting(300_000, "Wall clock of one run.", least=1, most=3_600_000)
    memory_bytes_max: int = setting(
        512 * MIB, "Linear memory of one run.", least=64 * KIB, most=4 * GIB
    )
    stdin_bytes_max: int = setting(64 * MIB, "Input of one run.", least=0, most=GIB)
    stdout_bytes_max: int = setting(64 * MIB, "Result of one run.", least=0, most=GIB)
    stderr_bytes_max: int = setting(
        MIB, "Log lines of one run; what follows is dropped.", least=0, most=16 * MIB
    )
    table_elements_max: int = setting(1 << 16, "Table elements of one run.", least=0, most=1 << 20)
    module_bytes_max: int = setting(50 * MIB, "Largest module compiled.", least=KIB, most=GIB)
    compile_cpu_s_max: float = setting(
        20.0,
        "CPU time of one compilation; small modules can be made slow on purpose.",
        least=1,
        most=600,
    )
    compile_memory_bytes_max: int = setting(
        1536 * MIB, "Memory of one compilation.", least=128 * MIB, most=64 * GIB
    )
    compile_wall_s_max: float = setting(60.0, "Wall clock of one compilation.", least=1, most=600)
    cache_bytes_max: int = setting(
        GIB, "Compiled modules kept on disk; the longest unused go first.", least=0, most=1024 * GIB
    )
    recycle_runs_max: int = setting(
        5_000, "Runs after which a sandbox process is replaced by a fresh one.", least=1, most=10**9
    )

    @property
    def ceiling(self) -> Limits:
        """The same as the `Limits` that a task's limits are cut to."""
        return Limits(
            fuel_max=self.fuel_max,
            wall_ms_max=self.wall_ms_max,
            memory_bytes_max=self.memory_bytes_max,
            table_elements_max=self.table_elements_max,
            stdin_bytes_max=self.stdin_bytes_max,
            stdout_bytes_max=self.stdout_bytes_max,
            stderr_bytes_max=self.stderr_bytes_max,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The HTTP API that programs, browsers and the other commands use."""

    enabled: bool = setting(True, "Whether to serve HTTP at all; the commands need it.")
    host: str = setting(
        "127.0.0.1",
        "Address to bind; 0.0.0.0 lets other machines in, who then need the operator key.",
    )
    port: int = setting(
        8080, "Port to bind; 0 takes a free one.", env=("PORT",), least=0, most=65_535
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Names that requests may be addressed to, beside loopback; none means loopback alone while "
        "host is loopback, and any name otherwise. Keeps web pages from reaching a node by a name "
        "that is theirs.",
        check=_hosts,
    )
    body_bytes_max: int = setting(
        1 * MIB, "Largest JSON body; larger inputs are uploaded as blobs.", least=KIB, most=64 * MIB
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """Where tasks, receipts and agents are kept."""

    url: str = setting(
        "",
        "Empty: SQLite in the data directory. Or sqlite:////var/lib/ledger.db; with three slashes "
        "the path starts at the data directory.",
        env=("DATABASE_URL",),
        secret=True,
        check=_ledger_url,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlobsSettings:
    """Inputs, outputs and modules by content address."""

    bytes_max: int = setting(
        20 * GIB,
        "Disk for blobs that can be fetched again; the longest unused go first.",
        least=MIB,
        most=1 << 50,
    )
    upload_bytes_max: int = setting(50 * MIB, "Largest single upload.", least=KIB, most=GIB)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What the node says of itself as it runs."""

    level: str = setting(
        "info",
        "Least severe lines shown.",
        env=("LOG_LEVEL",),
        choices=("debug", "info", "warning", "error"),
    )
    format: str = setting(
        "auto",
        "auto: coloured lines on a terminal in development, JSON otherwise.",
        choices=("auto", "console", "json"),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Figures for Prometheus."""

    enabled: bool = setting(
        True, "Whether /metrics is served; 404 otherwise.", env=("PROMETHEUS_ENABLED",)
    )


SECTIONS: dict[str, type] = {
    "node": NodeSettings,
    "mesh": MeshSettings,
    "owner": OwnerSettings,
    "worker": WorkerSettings,
    "sandbox": SandboxSettings,
    "http": HttpSettings,
    "ledger": LedgerSettings,
    "blobs": BlobsSettings,
    "log": LogSettings,
    "metrics": MetricsSettings,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A mesh to join: the contents of `bootstrap/networks/<name>.toml`."""

    name: str
    why: str = ""
    shards: int = 1
    peers: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    file: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: default, preset, file, network, environment, flag."""

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".strip()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    All settings of one node, checked.

    `origins` maps `section.field` to where its value came from; `warnings` are sentences to log
    once at start.
    """

    node: NodeSettings = NodeSettings()
    mesh: MeshSettings = MeshSettings()
    owner: OwnerSettings = OwnerSettings()
    worker: WorkerSettings = WorkerSettings()
    sandbox: SandboxSettings = SandboxSettings()
    http: HttpSettings = HttpSettings()
    ledger: LedgerSettings = LedgerSettings()
    blobs: BlobsSettings = BlobsSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    network: Network = Network(name="dev")
    origins: dict[str, Origin] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def bootstrap_peers(self) -> tuple[str, ...]:
        """Peers of the network file, then those of `mesh.bootstrap`, each once."""
        return tuple(dict.fromkeys((*self.network.peers, *self.mesh.bootstrap)))

    @property
    def relay_peers(self) -> tuple[str, ...]:
        """Relays of the network file, then those of `mesh.relays`, each once."""
        return tuple(dict.fromkeys((*self.network.relays, *self.mesh.relays)))

    @property
    def worker_slots(self) -> int:
        """Tasks run at once: `worker.slots`, or one per core this process may use; 0 when off."""
        if not self.worker.enabled:
            return 0
        return self.worker.slots or len(os.sched_getaffinity(0))

    @property
    def ledger_path(self) -> Path:
        """The SQLite file of the ledger."""
        if self.ledger.url:
            return self.node.data_dir / self.ledger.url.removeprefix("sqlite:///")
        return self.node.data_dir / "ledger.sqlite"
