"""Commands about a node that does or does not run, as real processes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from conftest import Command, LiveNode

from zerostate_node.errors import Exit
from zerostate_node.home import Running, announce_running

EXAMPLE = Path(__file__).parents[2] / "examples" / "markdown"


def test_without_a_node_every_client_command_says_how_to_start_one(cli: Command) -> None:
    for words in (["peers"], ["task", "list"], ["agent", "list"]):
        done = cli(*words)
        assert done.code == Exit.UNREACHABLE
        assert "no node is running on" in done.err
        assert "hint: start one with: zerostate-node start" in done.err


def test_a_node_that_died_is_told_from_one_that_never_ran(cli: Command, tmp_path: Path) -> None:
    data = tmp_path / "d"
    assert cli("init", "--data-dir", str(data)).code == 0
    pid = 4_194_300  # above what Linux gives out by default
    announce_running(
        data, Running(pid=pid, http_url="http://127.0.0.1:9", peer="x", network="dev", started_ms=1)
    )
    done = cli("peers", "--data-dir", str(data), "--json")
    assert (done.code, done.error["code"]) == (Exit.UNREACHABLE, "stale_node")
    # a process with that id lives, but nobody listens
    announce_running(
        data,
        Running(pid=os.getpid(), http_url="http://127.0.0.1:9", peer="", network="", started_ms=1),
    )
    done = cli("peers", "--data-dir", str(data), "--json")
    assert (done.code, done.error["code"]) == (Exit.UNREACHABLE, "stale_node")
    (data / "node.json").write_text("{")
    done = cli("peers", "--data-dir", str(data), "--json")
    assert (done.code, done.error["code"]) == (Exit.USAGE, "bad_node_file")


def test_a_wrong_key_is_refused_and_a_loose_one_is_not_even_sent(
    at: Command, node: LiveNode, tmp_path: Path
) -> None:
    key = tmp_path / "other.key"
    key.write_text("A" * 43)
    key.chmod(0o600)
    done = at("peers", "--url", node.url, "--key-file", str(key), "--json")
    assert (done.code, done.error["code"]) == (Exit.REFUSED, "wrong_key")
    key.chmod(0o644)
    done = at("peers", "--url", node.url, "--key-file", str(key), "--json")
    assert (done.code, done.error["code"]) == (Exit.USAGE, "loose_key")
    assert "chmod 600" in str(done.error["hint"])


def test_an_agent_is_published_called_and_its_receipt_verified(
    at: Command, node: LiveNode, tmp_path: Path
) -> None:
    published = at("agent", "publish", str(EXAMPLE), "--json")
    assert published.code == 0, published.err
    view = json.loads(published.out)
    assert view["name"] == "markdown"

    done = at("task", "submit", "markdown", "--input", "# Hi *you*")
    assert (done.code, done.out) == (0, "<h1>Hi <em>you</em></h1>\n"), done.err

    piped = at("task", "submit", "markdown", "--input", "-", "--json", input=b"# Hi *you*")
    task = json.loads(piped.out)
    assert task["outcome"] == "completed"
    assert task["result"] == {"text": done.out}
    task_id = task["task_id"]

    saved = tmp_path / "page.html"
    assert at("task", "result", task_id, "-o", str(saved)).code == 0
    assert saved.read_text() == done.out
    assert at("task", "result", task_id).out == done.out

    assert task_id in at("task", "list").out
    assert "completed" in at("task", "show", task_id).out
    assert json.loads(at("task", "show", task_id, "--json").out)["attempts"]
    assert "markdown" in at("agent", "list").out
    shown = json.loads(at("agent", "show", "markdown", "--json").out)
    assert shown["card"]["signatures"]

    receipt = tmp_path / "a.receipt"
    assert at("receipt", "show", task_id, "-o", str(receipt)).code == 0
    offline = at("receipt", "verify", str(receipt), "--json", ZEROSTATE_DATA_DIR=str(tmp_path))
    assert offline.code == 0, offline.err
    assert json.loads(offline.out)["receipt"]["task_id"] == task_id

    replayed = at("receipt", "verify", task_id, "--replay", "--json")
    assert replayed.code == 0, replayed.err + replayed.out
    assert json.loads(replayed.out)["replay"]["fuel_matches"] is True

    text = tmp_path / "in.md"
    text.write_text("# Hi *you*")
    words = ["--replay", "--module", str(EXAMPLE / "markdown.wasm"), "--input", str(text)]
    alone = at("receipt", "verify", str(receipt), *words, ZEROSTATE_DATA_DIR=str(tmp_path))
    assert alone.code == 0, alone.err
    assert "same fuel" in alone.out
    text.write_text("another")
    other = at("receipt", "verify", str(receipt), *words, "--json")
    assert (other.code, other.error["code"]) == (Exit.NOT_FOUND, "wrong_file")

    raw = bytearray(receipt.read_bytes())
    raw[-1] ^= 1
    receipt.write_bytes(raw)
    forged = at("receipt", "verify", str(receipt), "--json")
    assert (forged.code, forged.error["code"]) == (Exit.FAILED, "bad_signature")
    receipt.write_bytes(b"junk")
    assert at("receipt", "verify", str(receipt), "--json").error["code"] == "not_a_receipt"


def test_a_large_input_is_uploaded_and_comes_back_byte_for_byte(
    at: Command, node: LiveNode
) -> None:
    at("agent", "publish", str(EXAMPLE))
    text = ("word " * 60_000 + "\n").encode()
    done = at("task", "submit", "markdown", "--input", "-", input=text)
    assert done.code == 0, done.err
    assert len(done.out) > 290_000


def test_a_task_that_fails_ends_with_its_honest_outcome(at: Command, node: LiveNode) -> None:
    at("agent", "publish", str(EXAMPLE))
    done = at("task", "submit", "markdown", "--input", "# x", "--fuel", "100", "--json")
    assert done.code == Exit.TASK_FAILED
    assert json.loads(done.out)["outcome"] == "out_of_fuel"
    done = at("task", "submit", "markdown", "--input", "# x", "--fuel", "100", "--watch")
    assert done.code == Exit.TASK_FAILED
    assert "the task ended out_of_fuel" in done.err
    assert "--fuel" in done.err


def test_the_same_idempotency_key_opens_one_task(at: Command, node: LiveNode) -> None:
    at("agent", "publish", str(EXAMPLE))
    words = ["task", "submit", "markdown", "--no-wait", "--json", "--idempotency-key", "once"]
    first = json.loads(at(*words, "--input", "a").out)
    again = json.loads(at(*words, "--input", "a").out)
    assert first["task_id"] == again["task_id"]
    conflict = at(*words, "--input", "b")
    assert (conflict.code, conflict.error["code"]) == (Exit.REFUSED, "idempotency_conflict")


def test_watch_prints_events_to_the_end(at: Command, node: LiveNode) -> None:
    at("agent", "publish", str(EXAMPLE))
    task_id = at("task", "submit", "markdown", "--input", "x", "--no-wait").out.strip()
    done = at("task", "watch", task_id, "--timeout", "30s")
    assert done.code == 0, done.err


def test_what_is_not_there_is_not_found(at: Command, node: LiveNode) -> None:
    for words in (
        ["task", "show", "01JCAAAAAAAAAAAAAAAAAAAAAA"],
        ["task", "submit", "no-such-agent", "--input", "x"],
        ["agent", "show", "no-such-agent"],
        ["receipt", "show", "01JCAAAAAAAAAAAAAAAAAAAAAA"],
    ):
        assert at(*words).code == Exit.NOT_FOUND, words


def test_a_file_that_is_no_module_is_refused_by_name(at: Command, tmp_path: Path) -> None:
    file = tmp_path / "x.wasm"
    for data, words in (
        (b"hello", "is no WASM module"),
        (b"(module)", "it is WASM text"),
        (b"\x00asm\x0d\x00\x01\x00", "is a WASM component"),
    ):
        file.write_bytes(data)
        for command in (["agent", "publish"], ["run"]):
            done = at(*command, str(file))
            assert done.code == Exit.REFUSED
            assert words in done.err
    file.write_bytes(b"\x00asm\x01\x00\x00\x00" + b"\xff" * 64)  # the right start, then nonsense
    assert at("agent", "publish", str(file)).code == Exit.REFUSED
    assert at("run", str(file)).code == Exit.REFUSED


def test_doctor_and_peers_answer(at: Command, node: LiveNode) -> None:
    done = at("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert checks["node"]["ok"] is True
    assert len(checks) > 6
    assert at("peers").code == 0
    assert json.loads(at("peers", "--json").out)["peers"] == []


def test_a_second_node_on_one_data_directory_is_refused_as_busy(
    at: Command, node: LiveNode
) -> None:
    done = at("start", "--port", "0", "--data-dir", str(node.data_dir), "--json")
    assert done.code == Exit.BUSY
    assert str(node.process.pid) in str(done.error["message"])


def test_a_taken_port_is_busy_and_named(cli: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        listen = ["--set", "mesh.listen=none", "--network", "dev"]
        done = cli("start", "--port", port, *listen, "--json")
        assert done.code == Exit.BUSY, done.err
        assert port in str(done.error["message"])
        checked = cli("config", "check", "--port", port)
        assert checked.code == Exit.BUSY
        assert port in checked.out


def test_a_loose_key_file_is_refused_by_name(cli: Command, tmp_path: Path) -> None:
    assert cli("init", "n.toml", "--data-dir", "d").code == 0
    (tmp_path / "d" / "identity.key").chmod(0o644)
    for words in (["start"], ["identity", "show"], ["config", "check"]):
        done = cli(*words, "--data-dir", "d")
        assert done.code == Exit.USAGE
        assert "chmod 600" in done.err + done.out


def test_migrate_only_makes_the_ledger_and_stops(cli: Command, tmp_path: Path) -> None:
    for _ in range(2):
        done = cli("start", "--migrate-only", "--data-dir", "d")
        assert done.code == 0, done.err
    assert (tmp_path / "d" / "ledger.sqlite").exists()


def test_init_makes_what_start_needs_and_never_overwrites(cli: Command, tmp_path: Path) -> None:
    made = cli("init", "n.toml", "--data-dir", "d", "--network", "dev", "--json")
    peer = json.loads(made.out)["peer"]
    assert json.loads(cli("identity", "show", "--config", "n.toml", "--json").out)["peer"] == peer
    for secret in ("identity.key", "operator.key"):
        assert (tmp_path / "d" / secret).stat().st_mode & 0o077 == 0
    assert cli("init", "n.toml", "--data-dir", "d").code == Exit.USAGE
    checked = cli("config", "check", "--config", "n.toml", "--port", "0",
                  "--set", "mesh.listen=none")  # fmt: skip
    assert checked.code == 0, checked.out
    assert peer in checked.out


def test_an_identity_is_replaced_only_when_told_and_the_former_is_kept(
    cli: Command, tmp_path: Path
) -> None:
    assert cli("identity", "show").code == Exit.NOT_FOUND
    first = json.loads(cli("identity", "new", "--data-dir", "d", "--json").out)
    assert cli("identity", "new", "--data-dir", "d").code == Exit.BUSY
    second = json.loads(cli("identity", "new", "--data-dir", "d", "--replace", "--json").out)
    assert first["peer"] != second["peer"]
    assert Path(second["former"]).exists()


def test_config_show_names_where_each_value_came_from(cli: Command) -> None:
    done = cli("config", "show", "--role", "relay", "--json", PORT="9000")
    found = json.loads(done.out)["settings"]
    assert found["http.port"] == {"value": 9000, "origin": "environment PORT"}
    assert found["mesh.relay_serve"]["origin"].startswith("preset relay.toml:")
    assert found["node.role"]["origin"] == "flag --role"
    assert "relay" in cli("config", "show", "--role", "relay", "--changed").out


@pytest.mark.parametrize("words", [["--input", "# Hi"], []])
def test_run_needs_no_node_and_is_deterministic(cli: Command, words: list[str]) -> None:
    runs = [cli("run", str(EXAMPLE), *words, "--json", input=b"# Hi") for _ in range(2)]
    first, second = (json.loads(done.out) for done in runs)
    assert first["outcome"] == "completed", runs[0].err
    assert first["result"] == {"text": "<h1>Hi</h1>\n"}
    assert first["fuel_used"] == second["fuel_used"]
    assert first["nearest_limit"]["name"] in ("fuel", "memory", "wall clock", "output")


def test_run_prints_the_result_alone_on_stdout_and_fails_with_the_outcome(cli: Command) -> None:
    done = cli("run", str(EXAMPLE), "--input", "# Hi")
    assert done.out == "<h1>Hi</h1>\n"
    assert "completed" in done.err
    assert "fuel" in done.err
    done = cli("run", str(EXAMPLE), "--input", "# Hi", "--fuel", "10")
    assert done.code == Exit.TASK_FAILED
    assert "the run ended out_of_fuel" in done.err
