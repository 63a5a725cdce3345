"""Reads a Dockerfile into stages: enough of the language for ours, and an error for the rest."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import shlex
from pathlib import Path

_KNOWN = {
    "FROM", "RUN", "COPY", "ENV", "LABEL", "WORKDIR", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL",
    "HEALTHCHECK", "ENTRYPOINT", "CMD",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its base, its name, and its instructions in order."""

    base: str
    name: str
    steps: tuple[tuple[str, str], ...]

    def all(self, word: str) -> list[str]:
        """The arguments of every instruction of one kind."""
        return [arguments for kind, arguments in self.steps if kind == word]

    def last(self, word: str) -> str:
        """The one that is in force."""
        found = self.all(word)
        if not found:
            raise AssertionError(f"no {word} in the stage from {self.base}")
        return found[-1]

    def command(self, word: str) -> list[str]:
        """ENTRYPOINT, CMD or the command of HEALTHCHECK: only the form without a shell."""
        text = self.last(word)
        value: list[str] = json.loads(text[text.index("[") :])
        return value

    @property
    def environ(self) -> dict[str, str]:
        """ENV, all of it."""
        pairs = [pair for line in self.all("ENV") for pair in shlex.split(line)]
        return dict(pair.split("=", 1) for pair in pairs)

    @property
    def copied(self) -> list[str]:
        """What is copied from the build's context."""
        lines = [line.split() for line in self.all("COPY") if not line.startswith("--from=")]
        return [source for words in lines for source in words[:-1]]


def stages_of(path: Path) -> list[Stage]:
    """The stages of a Dockerfile."""
    text = "\n".join(
        line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")
    ).replace("\\\n", " ")
    stages: list[Stage] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word not in _KNOWN:
            raise AssertionError(f"{path}: {word} is not understood here")
        arguments = " ".join(rest.split()) if word != "HEALTHCHECK" else rest.strip()
        if word == "FROM":
            base, *named = arguments.split()
            stages.append(Stage(base, named[1] if named else "", ()))
        else:
            stages[-1] = dataclasses.replace(
                stages[-1], steps=(*stages[-1].steps, (word, arguments))
            )
    return stages


def in_context(ignore: Path, name: str) -> bool:
    """Whether `.dockerignore` lets a path through: the last pattern that matches decides."""
    inside = True
    parts = name.split("/")
    heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in ignore.read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep, bare = pattern.startswith("!"), pattern.lstrip("!").removeprefix("**/")
        anywhere = "**/" in pattern
        names = [*heads, *parts] if anywhere else heads
        if any(fnmatch.fnmatchcase(head, bare) for head in names):
            inside = keep
    return inside
