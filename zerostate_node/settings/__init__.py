"""
One typed `Settings`: defaults < role preset < file < environment < flags.

No other module reads the environment, and no setting is read twice.
"""

from zerostate_node.settings.loading import (
    CLIENT_VARIABLES,
    fields_of,
    load,
    load_network,
    variable_of,
)
from zerostate_node.settings.schema import (
    ROLES,
    SECTIONS,
    BlobsSettings,
    HttpSettings,
    LedgerSettings,
    LogSettings,
    MeshSettings,
    MetricsSettings,
    Network,
    NodeSettings,
    Origin,
    OwnerSettings,
    SandboxSettings,
    Settings,
    WorkerSettings,
)

__all__ = [
    "CLIENT_VARIABLES",
    "ROLES",
    "SECTIONS",
    "BlobsSettings",
    "HttpSettings",
    "LedgerSettings",
    "LogSettings",
    "MeshSettings",
    "MetricsSettings",
    "Network",
    "NodeSettings",
    "Origin",
    "OwnerSettings",
    "SandboxSettings",
    "Settings",
    "WorkerSettings",
    "fields_of",
    "load",
    "load_network",
    "variable_of",
]
