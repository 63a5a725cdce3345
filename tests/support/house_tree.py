"""The tree as git has it, and the checks that the house tests hold it to: text in, findings out."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Put together here, so that this file is not what it looks for.
_HOSTS = ("pypi.%s", "pythonhosted.%s", "npmjs.%s", "crates.%s", "proxy.golang.%s")
_HOST = re.compile(
    "|".join(re.escape(h.replace("%s", end)) for h in _HOSTS for end in ("org", "io", "com"))
)
_MACHINE = re.compile(
    r"(?<![\w.:/-])/(?:work/(?:main|shared)|tmp/(?:lab|pkg)|root|home/[a-z]{2,}|Users/\w+)\b(?:/|$)|\.py"
    r"env/"
)
_SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "an access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of a code host": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "a token of a chat": r"\bxox[baprs]-[A-Za-z0-9-]{10,}",
    "a key of a model's API": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a JWT": r"\beyJ[A-Za-z0-9_-]{16,}\.eyJ[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    "an identity": r"\bed25519:[A-Za-z0-9+/]{43}=",
    "a password in an address": r"://[^\s:/@\"'<]{1,64}:(?!\[redacted)[^\s@\"'<{]{6,64}@[a-z]",
}
# What a reader takes for something else: say open/closed lists, primary, and what is missing.
_WORDS = re.compile(
    "|".join(("white" + "list", "black" + "list", "master" + "/slave", r"\bTO" + r"DO\b"))
    + r"|\bFIX"
    + r"ME\b",
    re.IGNORECASE,
)


@functools.cache
def tracked() -> tuple[str, ...]:
    """Every file that git knows and that is there."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return tuple(sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file()))


@functools.cache
def text_of(name: str) -> str:
    """A file's text; empty for what is not text."""
    raw = (ROOT / name).read_bytes()
    try:
        return "" if b"\0" in raw else raw.decode()
    except UnicodeDecodeError:
        return ""


def machine_paths(text: str) -> list[str]:
    """Places that exist on somebody's machine only."""
    return [match[0] for match in _MACHINE.finditer(text)]


def registry_hosts(text: str) -> list[str]:
    """Host names of package registries: which one is used is up to whoever installs."""
    return [match[0] for match in _HOST.finditer(text)]


def secrets(text: str) -> list[str]:
    """What must never be in a tree."""
    return [what for what, pattern in _SECRETS.items() if re.search(pattern, text)]


def unwanted_words(text: str) -> list[str]:
    """Words of another time, and notes to oneself."""
    return [match[0] for match in _WORDS.finditer(text)]


def sleeps(source: str) -> list[int]:
    """Lines with a `time.sleep` that is not inside a loop that polls against a deadline."""
    found: list[int] = []

    def visit(at: ast.AST, polls: bool, timed: bool) -> None:
        if isinstance(at, ast.FunctionDef | ast.AsyncFunctionDef):
            polls, timed = False, "monotonic" in ast.dump(at)
        polls = polls or isinstance(at, ast.While | ast.For)
        waits = isinstance(at, ast.Call) and ast.unparse(at.func) == "time.sleep"
        if waits and not (polls and timed):
            found.append(at.lineno)  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(at):
            visit(child, polls, timed)

    visit(ast.parse(source), False, False)
    return found


def mocks(source: str) -> list[str]:
    """Imports of what replaces our own parts in tests."""
    names: list[str] = []
    for at in ast.walk(ast.parse(source)):
        if isinstance(at, ast.ImportFrom):
            names += [f"{at.module}.{alias.name}" for alias in at.names]
        elif isinstance(at, ast.Import):
            names += [alias.name for alias in at.names]
    return [name for name in names if re.match(r"unittest\.mock|mock\b|pytest_mock", name)]


def environment_reads(source: str) -> list[str]:
    """Variables that a module reads from the environment by name."""
    return re.findall(r"os\.(?:environ(?:\.get\(|\[)|getenv\()\s*[\"'](\w+)", source)


# -- documents -------------------------------------------------------------------------------------

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def command_lines(markdown: str) -> Iterator[str]:
    """Lines to type: those of `sh` blocks, and those after `$` of `console` blocks."""
    for match in _FENCE.finditer(markdown):
        language, body = match[2], match[3].replace("\\\n", " ")
        for line in body.splitlines():
            bare = line.strip()
            if language == "console" and bare.startswith("$ "):
                yield bare[2:]
            elif language in ("sh", "bash", "shell"):
                yield bare.removeprefix("$ ")


def _without_comment(line: str) -> str:
    return re.sub(r"(?:^|\s)#(?=\s).*", "", re.sub(r"'[^']*'|\"[^\"]*\"", "QUOTED", line))


def make_targets(text: str) -> set[str]:
    """Targets of a Makefile."""
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def wrong_targets(line: str, targets: set[str]) -> list[str]:
    """Targets of plain `make` that a line names and the Makefile does not have."""
    used = re.findall(r"(?:^|[;&|]\s*)make((?:\s+[a-z][a-z-]*)+)", _without_comment(line))
    return [word for words in used for word in words.split() if word not in targets]


# -- locks -----------------------------------------------------------------------------------------

_PINNED = re.compile(r"([a-z0-9][a-z0-9._-]*)==([^\s;]+)(?:\s*;\s*[^\\]+)?\s*\\?$")
_HASH = re.compile(r"\s+--hash=sha256:[0-9a-f]{64}\s*\\?$")


def wrong_lock_lines(text: str) -> list[str]:
    """Lines of a lock that are no pinned requirement with hashes, and requirements without any."""
    problems = []
    hashes: dict[str, int] = {}
    last = ""
    for line in text.splitlines():
        if _PINNED.match(line):
            last = line.strip()
            hashes[last] = 0
        elif _HASH.match(line) and last:
            hashes[last] += 1
        elif line.strip():
            problems.append(line.strip())
    return problems + [f"{line}: no hash" for line, count in hashes.items() if not count]


def locked(text: str) -> dict[str, set[str]]:
    """Normalised name -> versions of a lock."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := _PINNED.match(line):
            found.setdefault(match[1].replace("_", "-").replace(".", "-"), set()).add(match[2])
    return found
