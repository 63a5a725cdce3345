"""Documents tell the truth: links lead somewhere, commands exist, the first five minutes run."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_readme import (
    PROGRAM,
    ROOT,
    anchors,
    command_lines,
    differs,
    documents,
    links,
    name_of,
    sessions,
)
from house_terminal import Terminal

from zerostate_node.settings import SECTIONS, fields_of, variable_of
from zerostate_node.settings.values import about

DOCUMENTS = documents()
README = ROOT / "README.md"
OWN_VARIABLES = {"ZEROSTATE_CONFIG", "ZEROSTATE_URL", "ZEROSTATE_KEY_FILE"}  # of commands
TEST_VARIABLES = {"ZEROSTATE_BUILD_EXAMPLES"}


@pytest.mark.parametrize("path", documents(made=True), ids=name_of)
def test_every_link_leads_to_something_that_is_there(path: Path) -> None:
    for link in links(path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, fragment = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{name_of(path)} links to {link}"
        if fragment:
            assert fragment in anchors(found.read_text()), f"{name_of(path)} links to {link}"


def test_every_document_can_be_reached_from_the_readme() -> None:
    seen, ahead = set(), [README]
    while ahead:
        path = ahead.pop()
        if path in seen or path.suffix != ".md" or not path.exists():
            continue
        seen.add(path)
        for link in links(path.read_text()):
            if not re.match(r"[a-z]+:|#", link):
                found = (path.parent / link.partition("#")[0]).resolve()
                ahead.append(found / "README.md" if found.is_dir() else found)
    unreached = [name_of(p) for p in ROOT.glob("docs/**/*.md") if p not in seen]
    assert not unreached


# -- commands ------------------------------------------------------------------------------------


@functools.cache
def help_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "zerostate_node", *words, "--help"],
        capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0, f"{PROGRAM} {' '.join(words)}: {done.stderr}"
    return done.stdout


@functools.cache
def options_of(*words: str) -> dict[str, bool]:
    """The options that a command's help names, and whether each takes a value."""
    found = {"--help": False}
    for line in help_of(*words).splitlines():
        if match := re.match(
            r"  ((?:-\w, )?--[\w-]+(?:, -\w)?(?: / --[\w-]+)?)(?: (\S+(?: \S+)*))?(  .*)?$", line
        ):
            value = match[2]
            for name in re.findall(r"--?[\w-]+", match[1]):
                found[name] = bool(value)
    return found


def subcommands_of(*words: str) -> set[str]:
    _, _, below = help_of(*words).partition("\nCommands:\n")
    return set(re.findall(r"^  (\w+)  ", below.partition("\n\n")[0], re.MULTILINE))


def wrong_in(words: list[str]) -> str:
    """What a command line has that the program does not; "" when there is nothing."""
    command: list[str] = []
    rest = words[1:]
    while rest and rest[0] in subcommands_of(*command):
        command.append(rest.pop(0))
    known = options_of(*command)
    if subcommands_of(*command):
        if rest and rest[0].startswith("-"):
            return "" if rest[0] in known else f"no option {rest[0]}"
        return "" if not rest or rest[0].isupper() else f"no command {rest[0]}"
    operands = 0
    while rest:
        word = rest.pop(0)
        if word in ("<", ">", "2>"):
            rest.pop(0)
        elif word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            if name not in known:
                return f"no option {name}"
            if known[name] and not equals:
                if not rest:
                    return f"{name} needs a value"
                rest.pop(0)
        else:
            operands += 1
    usage = help_of(*command).partition("\n\n")[0]
    most = len(re.findall(r"\S+", usage.partition("[OPTIONS]")[2]))
    return "" if operands <= most else f"{operands} operands where {most} are taken"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_shown_exists_with_its_options(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in command_lines(path.read_text()):
        if words[0] == PROGRAM:
            wrong = wrong_in(words)
            assert not wrong, f"{name_of(path)}: {' '.join(words)}: {wrong}"
        elif "-C" not in words and len(words) > 1:
            assert words[1] in targets, f"{name_of(path)}: {' '.join(words)}"


def test_the_check_of_commands_can_fail() -> None:
    assert wrong_in([PROGRAM, "task", "submit", "a", "--input", "x"]) == ""
    assert wrong_in([PROGRAM, "task", "sumbit"]) == "no command sumbit"
    assert wrong_in([PROGRAM, "task", "submit", "a", "--inptu", "x"]) == "no option --inptu"
    assert wrong_in([PROGRAM, "run", "a.wasm", "b"]) == "2 operands where 1 are taken"
    assert wrong_in([PROGRAM, "start", "--port"]) == "--port needs a value"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_setting_and_variable_named_is_one(path: Path) -> None:
    fields = {f"{s}.{f}" for s in SECTIONS for f in fields_of(s)}
    variables = OWN_VARIABLES | TEST_VARIABLES
    variables |= {variable_of(s, f) for s in SECTIONS for f in fields_of(s)}
    variables |= {v for s in SECTIONS for f in fields_of(s).values() for v in about(f).env}
    text = path.read_text()
    for name in re.findall(r"\bZEROSTATE_[A-Z_]+[A-Z]\b", text):
        assert name in variables, f"{name_of(path)}: {name}"
    for section, field in re.findall(rf"[`\s]({'|'.join(SECTIONS)})\.([a-z_]+)\b", text):
        is_file = field in ("toml", "md", "py", "sqlite", "log", "json", "lock")
        assert is_file or f"{section}.{field}" in fields, f"{name_of(path)}: {section}.{field}"


def test_every_test_that_a_document_names_exists() -> None:
    defined = {
        name
        for path in ROOT.glob("tests/**/test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    files = {path.stem for path in ROOT.glob("tests/**/test_*.py")}
    for path in DOCUMENTS:
        named = set(re.findall(r"\btest_\w+", path.read_text())) - files
        assert named <= defined, f"{name_of(path)} names {sorted(named - defined)}"


# -- the first five minutes ----------------------------------------------------------------------


class Reader:
    """Somebody who follows the README: terminals, and a shell in each."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.terminals: list[Terminal] = []
        programs = home / "bin"
        programs.mkdir()
        script = programs / PROGRAM
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m zerostate_node "$@"\n')
        script.chmod(0o755)
        self.env = {
            "HOME": str(home),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            # What a reader with a machine of their own does not need: ports nobody else has.
            "ZEROSTATE_HTTP_PORT": "0",
            "ZEROSTATE_MESH_LISTEN": "/ip4/127.0.0.1/tcp/0",
        }

    def stay(self, command: str, shown: tuple[str, ...], ready: str, **env: str) -> Terminal:
        terminal = Terminal(command, env={**self.env, **env}, cwd=ROOT)
        self.terminals.append(terminal)
        terminal.until(lambda text: ready in text, within_s=90, what=ready)
        end = time.monotonic() + 30
        while wrong := differs(shown, terminal.text):
            assert time.monotonic() < end, f"$ {command}\n{wrong}"
            time.sleep(0.2)
        return terminal

    def do(self, command: str, shown: tuple[str, ...], **env: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True, text=True, timeout=120, cwd=ROOT, env={**self.env, **env},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert not differs(shown, done.stdout), f"$ {command}\n{differs(shown, done.stdout)}"
        return done.stdout

    def newest_task(self, **env: str) -> str:
        found = json.loads(self.do(f"{PROGRAM} task list --json", ("…",), **env))
        return str(found["tasks"][0]["task_id"])


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    for terminal in reversed(reader.terminals):
        terminal.end()


def peer_of(screen: str) -> str:
    found = re.search(r"peer +(12D3KooW\w+)", screen)
    assert found
    return found[1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="sessions are written for bash")
def test_the_first_five_minutes_of_the_readme_run(reader: Reader) -> None:
    shown = sessions(README.read_text())
    assert list(shown) == ["node", "alone", "devnet", "in-devnet", "second", "on-second"]

    # One node, alone.
    (make,) = shown["node"]
    quietly = ["make", "-n", "--no-print-directory", "--old-file=.venv/.runtime"]
    dry = subprocess.run(
        [*quietly, *make.command.split()[1:]],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},  # of an outer make
    )  # fmt: skip
    assert dry.stdout.strip().splitlines()[-1].strip() == f".venv/bin/{PROGRAM} start", dry
    first = reader.stay(f"{PROGRAM} start", make.shown, "everything all right?")
    for step in shown["alone"]:
        command = step.command
        if found := re.search(r"\b01[0-9A-Z]{24}\b", command):
            command = command.replace(found[0], reader.newest_task())
        reader.do(command, step.shown)

    # Two machines: the second has a home of its own.
    (start,) = shown["second"]
    listens = json.loads((reader.home / ".local/share/zerostate-node/node.json").read_text())
    assert listens["peer"] == peer_of(first.text)
    address = re.search(r"reached at +(/ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+)", first.text)
    assert address
    command = re.sub(r"/ip4/\S+", address[1], start.command)
    there = {"ZEROSTATE_DATA_DIR": str(reader.home / "second")}
    second = reader.stay(command, start.shown, "everything all right?", **there)
    look = f"until {PROGRAM} agent list | grep -q markdown; do sleep 0.1; done"
    reader.do(look, (), **there)
    for step in shown["on-second"]:
        reader.do(step.command, step.shown, **there)
    assert peer_of(second.text) != peer_of(first.text)
    assert second.end() == 0
    assert first.end() == 0
    reader.terminals.clear()

    # A mesh on one machine.
    (devnet,) = shown["devnet"]
    mesh = reader.stay(devnet.command, devnet.shown, "in another terminal")
    export = re.findall(r"export ZEROSTATE_DATA_DIR=(\S+)", mesh.text)[-1]
    submit = shown["in-devnet"][-1]
    assert shown["in-devnet"][0].command.startswith("export ZEROSTATE_DATA_DIR=")
    reader.do(submit.command, submit.shown, ZEROSTATE_DATA_DIR=export)
    task = json.loads(reader.do(f"{PROGRAM} task list --json", ("…",), ZEROSTATE_DATA_DIR=export))[
        "tasks"
    ][0]
    workers = re.findall(r"worker-\d +ready +(12D3KooW\w+)", mesh.text)
    assert task["worker"] in workers


ZIG = sorted(ROOT.glob("examples/.toolchains/zig-*/bin/python"))


@pytest.mark.skipif(not ZIG, reason="no compiler here; make -C examples/noop brings one")
def test_the_agent_of_the_readme_builds_and_runs(reader: Reader) -> None:
    text = README.read_text()
    source = re.search(r"```c\n(.*?)```", text, re.DOTALL)
    build, run = re.findall(rf"^(python -m ziglang .*|{PROGRAM} run shout.*)$", text, re.MULTILINE)
    assert source
    (reader.home / "shout.c").write_text(source[1])
    built = build.replace("python", str(ZIG[0]), 1)
    cache = str(ZIG[0].parents[2] / "zig-cache")
    env = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    reader.do(f"cd {reader.home} && {built} && {run}", ("HELLO",), **env)
