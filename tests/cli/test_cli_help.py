"""Help teaches, documents are current, command lines that make no sense end with USAGE."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from zerostate_node import __version__
from zerostate_node.cli import perform
from zerostate_node.cli.app import COMMANDS, EXIT_CODES, root
from zerostate_node.cli.docs import MADE, commands
from zerostate_node.errors import Exit

ROOT = Path(__file__).parents[2]
ALL = list(commands(root, click.Context(root, info_name="zerostate-node")))


@pytest.mark.parametrize(("command", "context"), ALL, ids=[c.command_path for _, c in ALL])
def test_every_command_and_option_is_explained_with_an_example(
    command: click.Command, context: click.Context
) -> None:
    assert command.help, context.command_path
    assert getattr(command, "examples", ()), context.command_path
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("limit",):
            assert parameter.help, f"{context.command_path} {parameter.opts}"


def test_every_option_in_an_example_exists() -> None:
    known = {
        opt for command, _ in ALL for p in command.params for opt in (*p.opts, *p.secondary_opts)
    } | {"--help"}
    for command, context in ALL:
        for line, _ in getattr(command, "examples", ()):
            mine = line.rpartition("|")[0] or line
            for word in mine.partition(" --arg ")[0].split():
                if word.startswith("-") and word != "-":
                    assert word in known, f"{context.command_path}: {line}"


@pytest.mark.parametrize("words", [["--help"], ["task", "submit", "--help"], ["task"], ["config"]])
def test_help_is_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = perform(words)
    printed = capsys.readouterr()
    assert "Usage: zerostate-node" in printed.out + printed.err
    assert "Examples:" in printed.out + printed.err
    assert code == (Exit.DONE if "--help" in words else Exit.USAGE)


def test_the_root_help_lists_every_command_and_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    perform(["--help"])
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in out
    assert set(EXIT_CODES) == set(Exit)
    for code in Exit:
        assert f"  {int(code)}  {code.name}" in out


def test_help_imports_nothing_slow() -> None:
    probe = (
        "import sys; from zerostate_node.cli import perform; perform(['--help']); "
        "slow = {'libp2p','wasmtime','quart','trio','httpx','rich','structlog','cryptography'}; "
        "print('SLOW', sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert "SLOW []" in done.stdout


def test_help_is_quick() -> None:
    best = min(_timed() for _ in range(5))
    assert best < 0.6  # 0.06 s on an idle machine; this one may be busy


def _timed() -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "zerostate_node", "--help"],
        check=True, capture_output=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    return time.perf_counter() - began


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert perform(["--version"]) == Exit.DONE
    assert capsys.readouterr().out == f"zerostate-node {__version__}\n"


@pytest.mark.parametrize("name", MADE)
def test_generated_documents_are_current(name: str) -> None:
    assert (ROOT / name).read_text() == MADE[name](), "run: python -m zerostate_node.cli.docs"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["tsk"], "did you mean 'task'?"),
        (["task", "sumbit"], "did you mean 'submit'?"),
        (["start", "--prot", "1"], "no such option"),
        (["start", "--set", "nonsense"], "must be SECTION.FIELD=VALUE"),
        (["start", "--set", "worker.slot=1"], "worker.slot is not a setting"),
        (["start", "--port", "99999"], "--port: http.port = '99999'"),
        (["start", "--role", "boss"], "must be one of edge, gateway"),
        (["start", "--network", "nowhere"], "there is no network 'nowhere'"),
        (["start", "--config", "/none.toml"], "cannot read /none.toml"),
        (["start", "--set", "mesh.listen=/ip4/1.2.3.4/udpp/1"], "is no multiaddr"),
        (["task", "show", "not-an-id"], "is no task id"),
        (["task", "submit"], "say what to run"),
        (["task", "submit", "a", "--capability", "b"], "say what to run"),
        (["task", "submit", "a", "--input", "x", "--file", "y"], "not both"),
        (["task", "submit", "a", "--file", "/no/such"], "there is no file /no/such"),
        (["task", "submit", "a", "--timeout", "soon"], "--timeout must be a duration"),
        (["task", "submit", "a", "--memory", "lots"], "--memory must be a size"),
        (["run", "/no/such.wasm"], "there is no file"),
        (["agent", "publish", "/no/such.wasm"], "there is no file"),
        (["receipt", "show", "/no/such"], "neither a file nor a task id"),
        (["devnet", "-n", "2"], "is not in the range"),
    ],
)
def test_a_command_line_that_makes_no_sense_says_why_and_ends_with_usage(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perform(words) == Exit.USAGE
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_errors_are_json_with_json_and_have_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert perform(["task", "show", "x", "--json"]) == Exit.USAGE
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "usage"
    assert error["exit"] == Exit.USAGE
    assert error["hint"]


def test_a_defect_is_said_in_words_and_shown_with_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by \x1b[31mzero")

    monkeypatch.setitem(root.commands, "broken", click.Command("broken", callback=fail))
    assert perform(["broken"]) == Exit.FAILED
    err = capsys.readouterr().err
    assert "this is a defect in zerostate-node: ZeroDivisionError: by \\x1b[31mzero" in err
    assert "Traceback" not in err
    assert perform(["--debug", "broken"]) == Exit.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_a_group_of_errors_shows_the_one_raised_on_purpose(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zerostate_node.errors import Busy

    def fail() -> None:
        raise BaseExceptionGroup("x", [ValueError(), ExceptionGroup("y", [Busy("port taken")])])

    monkeypatch.setitem(root.commands, "broken", click.Command("broken", callback=fail))
    assert perform(["broken"]) == Exit.BUSY
    assert capsys.readouterr().err == "error: port taken\n"
