"""
Finds the data directories `protocols/`, `bootstrap/` and `configs/`.

Beside `pyproject.toml` in a checkout, inside the package (`_data`) when installed from a wheel.
"""

from __future__ import annotations

from pathlib import Path

from zerostate_node.errors import ConfigError

NAMES = ("protocols", "bootstrap", "configs")
_PACKAGE = Path(__file__).resolve().parent


def find(name: str) -> Path:
    """
    The directory of one of `NAMES`.

    A checkout is asked first: an editable install also copies `_data` into site-packages, which
    would go stale.

    Raises:
        ConfigError: neither place has it; the installation is broken.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is not one of {NAMES}")
    checkout, wheel = _PACKAGE.parent / name, _PACKAGE / "_data" / name
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    if wheel.is_dir():
        return wheel
    raise ConfigError(
        f"the data directory {name} is missing: neither {wheel} nor {checkout} is there",
        code="broken_install",
        hint="install zerostate-node again",
    )
