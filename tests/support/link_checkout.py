"""Make this environment run the checkout in place: a path entry and the command."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """#!{python}
import sys

from zerostate_node.cli import main

sys.exit(main())
"""


def link() -> None:
    """Write both; idempotent."""
    purelib = Path(sysconfig.get_paths()["purelib"])
    (purelib / "zerostate-node-checkout.pth").write_text(f"{ROOT}\n")
    script = Path(sys.executable).parent / "zerostate-node"
    script.write_text(SCRIPT.format(python=sys.executable))
    script.chmod(0o755)


if __name__ == "__main__":
    link()
