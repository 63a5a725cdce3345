"""Reads what documents show: links, commands, and the sessions that a test runs for real."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "zerostate-node"
ANY = "…"  # stands for any text in a line; alone on a line, for any lines

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_RUN = re.compile(r"^<!-- run: ([\w-]+) -->\n```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
_ANSI = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][0-9A-B]|[=>78])")
_ASSIGN = re.compile(r"^[A-Z_][A-Z0-9_]*=")


def documents(*, made: bool = False) -> list[Path]:
    """What people read; `made` adds what is generated from the program itself."""
    found = [ROOT / "README.md"]
    for pattern in ("docs/**/*.md", "examples/**/*.md", "protocols/**/*.md"):
        found += sorted(p for p in ROOT.glob(pattern) if "/." not in str(p.relative_to(ROOT)))
    generated = {ROOT / "docs/cli.md", ROOT / "docs/settings.md"}
    return [p for p in found if made or p not in generated]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def links(text: str) -> list[str]:
    return _LINK.findall(without_code(text))


def anchors(text: str) -> set[str]:
    """The fragments that the headings of a document get, as code hosts make them."""
    made: set[str] = set()
    for line in _FENCE.sub("", text).splitlines():
        if heading := re.match(r"^#{1,6} (.*)", line):
            words = re.sub(r"[^\w\- ]", "", heading[1].replace("`", "").lower())
            made.add(words.strip().replace(" ", "-"))
    return made


def command_lines(text: str) -> Iterator[list[str]]:
    """Every command line of ours or of make in a document, as words."""
    lines: list[str] = []
    for language, block in _FENCE.findall(text):
        if language in ("sh", "console", ""):
            joined = block.replace("\\\n", " ")
            lines += [
                line.removeprefix("$ ")
                for line in joined.splitlines()
                if language != "console" or line.startswith("$ ")
            ]
    prose = _FENCE.sub("", text).replace("\\\n", " ")
    lines += [line.strip() for line in prose.splitlines() if line.startswith("    ")]
    lines += re.findall(rf"(?<!`)`((?:{PROGRAM}|make) [^`\n]+)`", prose)
    for line in lines:
        yield from _commands(line)


def _commands(line: str) -> Iterator[list[str]]:
    if PROGRAM not in line and not line.startswith("make "):
        return
    for part in re.split(r"\s(?:\||&&|;)\s", line.partition(" # ")[0]):
        try:
            split = shlex.split(part, comments=True)
        except ValueError:
            continue
        while split and _ASSIGN.match(split[0]):
            split.pop(0)
        if split and split[0] in (PROGRAM, "make"):
            yield split


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a session, and the lines that the document shows as its output."""

    command: str
    shown: tuple[str, ...]


def sessions(text: str) -> dict[str, list[Step]]:
    """The console blocks under `<!-- run: NAME -->`, in order."""
    found: dict[str, list[Step]] = {}
    for name, block in _RUN.findall(text):
        steps: list[Step] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:], ()))
            elif line.strip():
                last = steps[-1]
                steps[-1] = Step(last.command, (*last.shown, line))
        found[name] = steps
    return found


# What differs from run to run, in the form that both sides are brought to before they are compared.
_VARYING = (
    (re.compile(r"(/(?:ip4|dns4)/)\S+"), r"\1ADDRESS"),
    (re.compile(r"did:key:z\w+"), "DID"),
    (re.compile(r"12D3KooW\w+"), "PEER"),
    (re.compile(r"…\w{8}\b"), "PEER"),
    (re.compile(r"\b01[0-9A-HJKMNP-TV-Z]{24}\b"), "TASK"),
    (re.compile(r"http://127\.0\.0\.1:\d+"), "URL"),
    (re.compile(r"/tmp/\S+|(?<=DATA_DIR=)\S+"), "FOLDER"),
    (re.compile(r"\b(now|[\d.]+ (ms|s|m|h)( ago)?)(?=\s|$)"), "TIME"),
    (re.compile(r"runs \d+ at a time"), "runs N at a time"),
    (re.compile(r"(PEER\s+)\d+(\s+(directly|by relay))"), r"\1PID\2"),
    (re.compile(r"[─━]+"), "-"),
    (re.compile(r"[╭╮╰╯│]"), " "),
)


def normal(line: str) -> str:
    """A line without what is its own each time: ids, ages, ports, frames, white space."""
    line = _ANSI.sub("", line)
    for pattern, by in _VARYING:
        line = pattern.sub(by, line)
    return " ".join(line.split())


def _fits(shown: str, got: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, shown.split(ANY))), got) is not None


def differs(shown: tuple[str, ...], output: str) -> str:
    """What of the shown lines the output does not say, in this order; "" when it says them all."""
    got = [line for line in map(normal, output.splitlines()) if line.strip(" -")]
    want = [line for line in map(normal, shown) if line.strip(" -")]
    # After each shown line: the places in the output where the next one may stand.
    places, loose = {0}, False
    for line in want:
        if line == ANY:
            loose = True
            continue
        tried = range(min(places), len(got)) if loose else sorted(places & set(range(len(got))))
        fitting = {at + 1 for at in tried if _fits(line, got[at])}
        if not fitting:
            near = got[min(places)] if min(places) < len(got) else "the end"
            return f"shown: {line}\ngot:   {near}"
        places, loose = fitting, False
    return "" if loose or len(got) in places else f"not shown: {got[max(places)]}"
