"""Builds the wheel and installs it beside the locked dependencies, without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What `[tool.hatch.build]` reads, and hatchling with it; the image copies the same.
SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    ".gitignore",
    "zerostate_node",
    "protocols",
    "bootstrap",
    "configs",
)


def tracked(*paths: str) -> list[str]:
    """Files of the checkout below `paths`, as git lists them: new ones too, ignored ones not."""
    listed = subprocess.run(
        [
            *("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"),
            *("--exclude-standard", "--", *paths),
        ],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()})


def copy_sources(to: Path) -> Path:
    """A checkout of its own with what the wheel is made of."""
    for name in tracked(*SOURCES):
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return to


def build_wheel(source: Path, out: Path, **environ: str) -> Path:
    """The wheel that hatchling makes of `source`; nothing is fetched."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=source,
        env={**os.environ, **environ},
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*.whl")
    return wheel


class Installed:
    """An environment with the wheel in it that does not know the checkout."""

    def __init__(self, home: Path, wheel: Path) -> None:
        self.home = home
        self.venv = home / "venv"
        make = [sys.executable, "-m", "venv", "--without-pip", str(self.venv)]
        subprocess.run(make, check=True, capture_output=True)
        self.python = self.venv / "bin" / "python"
        # Path files are not followed from a path file, so the link to the checkout stays behind.
        mine, theirs = self.ask("import sysconfig as s; print(s.get_paths()['purelib'])"), _here()
        Path(mine, "locked-dependencies.pth").write_text(f"{theirs}\n")
        subprocess.run(
            [
                sys.executable, "-m", "pip", "--python", str(self.python), "install",
                "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", str(wheel),
            ],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip

    @property
    def environ(self) -> dict[str, str]:
        """Nothing of the environment that the tests run in."""
        return {
            "PATH": f"{self.venv / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
        }

    def ask(self, code: str) -> str:
        """What a line of Python prints there."""
        done = subprocess.run(
            [str(self.python), "-c", code],
            env=self.environ, cwd="/", capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def run(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The command, from the root directory."""
        return subprocess.run(
            [str(self.venv / "bin" / "zerostate-node"), *args],
            env={**self.environ, **environ},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def start(self, *args: str, **environ: str) -> subprocess.Popen[bytes]:
        """A node, from the root directory, on ports that are free."""
        with (self.home / "node.log").open("wb") as log:
            return subprocess.Popen(
                [
                    str(self.venv / "bin" / "zerostate-node"), "start", "--port", "0",
                    "--network", "dev", "--set", "mesh.listen=/ip4/127.0.0.1/tcp/0", *args,
                ],
                env={**self.environ, **environ}, cwd="/", stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def running(self) -> str:
        """The URL of the node that serves; empty until it does."""
        file = self.home / ".local/share/zerostate-node/node.json"
        return str(json.loads(file.read_text())["http_url"]) if file.exists() else ""


def _here() -> str:
    return sysconfig.get_paths()["purelib"]
