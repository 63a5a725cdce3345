"""What people do wrong, and what they are told then."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import Command, LiveNode  # type: ignore[import-not-found]
from rich.console import Console

from zerostate_node.cli import perform, render

DIGEST = "sha256:" + "0123456789abcdef" * 4
PEER = "12D3KooWAnfQqgUwxg2jTWgxroGWeuM2oJedUfTzQRqD1wwtAbUL"


def test_a_settings_file_is_written_while_the_node_runs(
    cli: Command, node: LiveNode, tmp_path: Path
) -> None:
    done = cli("init", "node.toml", "--data-dir", str(node.data_dir))
    assert done.code == 0, done.err
    assert str(node.data_dir) in (tmp_path / "node.toml").read_text()


def test_a_locale_without_the_letters_is_no_defect(cli: Command) -> None:
    done = cli("config", "check", "--port", "0", "--set", "mesh.listen=none",
               LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")  # fmt: skip
    assert done.code == 0, done.err
    assert "\\u2713  settings" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "64"], "less than one page, 64KiB"),
        (["--arg", "x"] * 33, "33 --arg are given; at most 32"),
        (["--arg", "x" * 513], "513 characters; at most 512"),
    ],
)
def test_limits_are_said_in_the_words_of_the_command_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perform(["task", "submit", "a", "--input", "x", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "hint:" in error


def test_a_name_that_cannot_be_is_explained_without_a_pattern(at: Command, tmp_path: Path) -> None:
    module = tmp_path / "Été.wasm"
    module.write_bytes(b"\0asm\x01\0\0\0")
    done = at("agent", "publish", str(module))
    assert done.code == 2
    assert "cannot be an agent's name" in done.err
    assert "--name" in done.err


def test_revoking_asks_for_yes_where_nobody_can_answer(at: Command) -> None:
    done = at("agent", "revoke", "markdown@1.0.0")
    assert done.code == 2
    assert "--yes" in done.err


def test_a_file_that_is_no_receipt_is_the_callers_mistake(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# not a receipt")
    done = cli("receipt", "verify", "notes.md")
    assert done.code == 2
    assert "this is no receipt" in done.err


def test_no_command_is_proposed_that_has_nothing_to_do_with_what_was_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert perform(["version"]) == 2
    assert "did you mean" not in capsys.readouterr().err
    assert perform(["task", "lst"]) == 2
    assert "did you mean 'list'" in capsys.readouterr().err


def test_watching_a_task_that_ended_says_how(at: Command) -> None:
    at("agent", "publish", str(Path(__file__).parents[2] / "examples" / "markdown"))
    task_id = at("task", "submit", "markdown", "--input", "x", "--no-wait").out.strip()
    at("task", "watch", task_id)
    assert "ended: completed" in at("task", "watch", task_id).err


def _printed(columns: int, *, soft: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=columns, highlight=False, markup=False)
    console.print(
        render.facts([("module", f"51.3 KiB  {DIGEST}"), ("peer", PEER), ("what it does", "x")]),
        soft_wrap=soft,
    )
    return file.getvalue()


def test_a_digest_is_never_broken_over_lines_of_a_usual_terminal() -> None:
    text = _printed(80)
    assert f"  51.3 KiB\n  {DIGEST}" in text
    assert f"peer          {PEER}" in text
    assert f"module        51.3 KiB  {DIGEST}" in _printed(120)


def test_an_address_too_long_for_the_terminal_is_left_to_the_terminal_to_wrap() -> None:
    assert DIGEST in _printed(60, soft=True)
    assert PEER in _printed(60, soft=True)


@pytest.mark.parametrize(
    ("passed_ms", "said"),
    [
        (0, "now"),
        (4_490, "4 s ago"),
        (71_000, "1 min ago"),
        (3_600_000 * 5, "5 h ago"),
        (-86_400_000 * 60 + 2_000, "60 d"),
    ],
)
def test_ages_are_whole(passed_ms: int, said: str) -> None:
    now_ms = 1_790_000_000_000
    assert render.age(now_ms - passed_ms, now_ms) == said


def test_a_narrow_task_list_still_says_how_old_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from zerostate_node.cli import task_view

    monkeypatch.setenv("COLUMNS", "80")
    view = {"task_id": "0" * 26, "outcome": "output_too_large", "agent_name": "markdown",
            "agent_version": "1.0.0", "created_ms": 1_790_000_000_000}  # fmt: skip
    task_view.print_page({"tasks": [view]})
    lines = capsys.readouterr().out.splitlines()
    assert "age" in lines[0]
    assert lines[2].rstrip().endswith(" ago") or lines[2].rstrip().endswith(" d")
    assert max(map(len, lines)) <= 80


def test_more_tasks_are_listed_than_the_node_gives_at_once(
    at: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from zerostate_node.cli import client, task

    asked: list[int] = []

    class Pages:
        def get(self, path: str, *, phase: str | None, limit: int, cursor: str) -> object:
            asked.append(limit)
            start = int(cursor or 0)
            tasks = [{"task_id": f"{n:026}"} for n in range(start, start + limit)]
            return {"tasks": tasks, "cursor": str(start + limit)}

    monkeypatch.setattr(client, "connect", lambda place: Pages())
    monkeypatch.setattr(task, "PAGE_TASKS_MAX", 200)
    assert perform(["task", "list", "--limit", "450", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert asked == [200, 200, 50]
    assert [view["task_id"] for view in shown["tasks"]] == [f"{n:026}" for n in range(450)]
    assert shown["cursor"] == "450"
    assert at("task", "list", "--limit", "1000").code == 0  # and a real node takes each of them
