"""What a client does when the other end lies, stalls, breaks, or tries to command the terminal."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from zerostate_node.cli import perform
from zerostate_node.errors import Exit

TASK = "01JCAAAAAAAAAAAAAAAAAAAAAA"
EVIL = "\x1b]0;owned\x07\x1b[31m[red]bold[/red]\u202egnp.exe\r\nfake\x9b2J"

Answer = Callable[[BaseHTTPRequestHandler], None]


def reply(body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("content-length") or 0))
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def problem(status: int, code: str, **more: str) -> Answer:
    tree = {"type": "about:blank", "title": "T", "status": status, "code": code, **more}
    return reply(json.dumps(tree).encode(), status, "application/problem+json")


def json_of(value: Any) -> Answer:
    return reply(json.dumps(value).encode())


class Other:
    """An HTTP server that answers by a table of paths, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        other = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                path = self.path.partition("?")[0]
                headers = {name.lower(): value for name, value in self.headers.items()}
                other.asked.append((self.command, self.path, headers))
                queue = other.answers.get(path) or [reply(b"<html>hello</html>", 200, "text/html")]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    (queue.pop(0) if len(queue) > 1 else queue[0])(self)

            do_GET = do_POST = do_DELETE = do

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Other]:
    found = Other()
    key = tmp_path / "key"
    key.write_text("K" * 43)
    key.chmod(0o600)
    monkeypatch.setenv("ZEROSTATE_URL", found.url)
    monkeypatch.setenv("ZEROSTATE_KEY_FILE", str(key))
    monkeypatch.setenv("COLUMNS", "100")
    yield found
    found.server.shutdown()
    found.server.server_close()


def error_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    error: dict[str, Any] = json.loads(printed.err.splitlines()[-1])["error"]
    return error


def view(**more: Any) -> dict[str, Any]:
    return {"task_id": TASK, "phase": "leased", "outcome": None, "agent_name": "a", **more}


@pytest.mark.parametrize(
    ("answer", "code", "exit_code"),
    [
        (reply(b"<html>", 200, "text/html"), "not_a_node", Exit.UNREACHABLE),
        (reply(b"<html>", 500, "text/html"), "not_a_node", Exit.UNREACHABLE),
        (reply(b"[" * 100_000), "not_a_node", Exit.UNREACHABLE),
        (reply(b"", 302, Location="http://127.0.0.1:1/"), "not_a_node", Exit.UNREACHABLE),
        (problem(500, "internal"), "internal", Exit.FAILED),
        (problem(503, "ledger_away"), "ledger_away", Exit.UNREACHABLE),
        (problem(404, "not_found"), "not_found", Exit.NOT_FOUND),
        (problem(409, "version_exists"), "version_exists", Exit.REFUSED),
        (problem(422, "bad_limits"), "bad_limits", Exit.REFUSED),
        (problem(400, "bad_request"), "bad_request", Exit.USAGE),
        (problem(401, "unauthorized"), "wrong_key", Exit.REFUSED),
    ],
)
def test_every_answer_becomes_a_named_error_with_its_exit_code(
    other: Other,
    capsys: pytest.CaptureFixture[str],
    answer: Answer,
    code: str,
    exit_code: Exit,
) -> None:
    other.answers["/api/v1/peers"] = [answer]
    assert perform(["peers", "--json"]) == exit_code
    assert error_of(capsys)["code"] == code


def test_the_operator_key_goes_to_the_node_alone(
    other: Other, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    elsewhere = Other()
    other.answers["/api/v1/peers"] = [reply(b"", 307, Location=elsewhere.url)]
    assert perform(["peers"]) == Exit.UNREACHABLE
    assert other.asked[0][2]["authorization"] == "Bearer " + "K" * 43
    assert elsewhere.asked == []
    assert "K" * 43 not in capsys.readouterr().err
    elsewhere.server.shutdown()
    elsewhere.server.server_close()


def test_a_node_that_does_not_answer_in_time_is_said_so(
    other: Other, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    other.answers["/api/v1/peers"] = [lambda _handler: release.wait(30) and None]
    assert perform(["peers", "--http-timeout", "0.3", "--json"]) == Exit.UNREACHABLE
    release.set()
    assert error_of(capsys)["code"] == "timeout"


def test_strangers_names_cannot_command_the_terminal(
    other: Other, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = {"name": EVIL, "version": EVIL, "status": EVIL, "description": EVIL * 50,
             "publisher": EVIL, "agent_id": EVIL, "capabilities": [EVIL]}  # fmt: skip
    other.answers["/api/v1/agents"] = [json_of({"agents": [agent]})]
    other.answers["/api/v1/agents/x"] = [json_of({"agent": agent, "card": {"skills": [EVIL]}})]
    other.answers["/api/v1/peers"] = [
        json_of({"peers": [{"peer": EVIL, "via": EVIL, "region": EVIL, "program": EVIL}]})
    ]
    task = view(outcome=EVIL, phase=EVIL, agent_name=EVIL, worker=EVIL, detail=EVIL,
                attempts=[{"worker": EVIL, "detail": EVIL, "outcome": EVIL}])  # fmt: skip
    other.answers["/api/v1/tasks"] = [json_of({"tasks": [task], "cursor": EVIL})]
    other.answers[f"/api/v1/tasks/{TASK}"] = [json_of(task)]
    other.answers["/api/v1/doctor"] = [
        json_of({"checks": [{"name": EVIL, "ok": False, "detail": EVIL, "hint": EVIL}]})
    ]
    for words in (
        ["agent", "list"],
        ["agent", "show", "x"],
        ["peers"],
        ["task", "list"],
        ["task", "show", TASK],
        ["doctor"],
    ):
        perform(words)
        printed = capsys.readouterr()
        text = printed.out + printed.err
        assert "Traceback" not in text, words
        assert "defect" not in text, words
        for character in ("\x1b", "\x07", "\u202e", "\r", "\x9b"):
            assert character not in text, words
        assert "\\x1b" in text, words
    other.answers["/api/v1/peers"] = [problem(409, EVIL, detail=EVIL, hint=EVIL)]
    perform(["peers"])
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["40", "60", "200"])
def test_tables_fit_any_terminal(
    other: Other,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    agent = {"name": "long-name-" * 8, "version": "1.0.0-" * 9, "status": "active",
             "publisher": "did:key:z6Mk" + "a" * 44, "description": "words " * 60}  # fmt: skip
    other.answers["/api/v1/agents"] = [json_of({"agents": [agent] * 3})]
    other.answers["/api/v1/tasks"] = [json_of({"tasks": [view(agent_name="n" * 99)] * 3})]
    other.answers["/api/v1/peers"] = [
        json_of({"peers": [{"peer": "12D3KooW" + "a" * 44, "connected": True, "works": True}]})
    ]
    for words in (["agent", "list"], ["task", "list"], ["peers"]):
        assert perform(words) == Exit.DONE
        for line in capsys.readouterr().out.splitlines():
            assert len(line) <= int(columns), words


def events(*blocks: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for block in blocks:
            handler.wfile.write(block)
        handler.wfile.flush()

    return answer


def event(seq: int, kind: str, **body: Any) -> bytes:
    tree = {"seq": seq, "at_ms": 1, "kind": kind, "task_id": TASK, "body": body}
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(tree)}\n\n".encode()


def test_a_broken_event_stream_is_resumed_where_it_broke(
    other: Other, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"/api/v1/tasks/{TASK}"
    done = view(phase="settled", outcome="completed")
    other.answers[path] = [json_of(view()), json_of(view()), json_of(view()), json_of(done)]
    other.answers["/api/v1/events"] = [
        events(event(1, "snapshot"), event(2, "task.leased", worker="12D3KooWabcdefgh")),
        events(b": ping\n\n", event(3, "task.log", text="one\x1b[31m\ntwo"), b"data: {bro"),
        events(event(4, "task.settled", outcome="completed")),
    ]
    assert perform(["task", "watch", TASK]) == Exit.DONE
    streams = [headers for _, path, headers in other.asked if path.startswith("/api/v1/events")]
    assert [headers.get("last-event-id") for headers in streams] == [None, "2", "3"]
    err = capsys.readouterr().err
    assert "leased by …abcdefgh" in err
    assert "one\\x1b[31m" in err
    assert "connection to the node was lost and is back" in err


def test_waiting_ends_at_the_timeout_although_the_stream_goes_on(
    other: Other, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()

    def stalled(handler: BaseHTTPRequestHandler) -> None:
        events(event(1, "snapshot"))(handler)
        release.wait(30)

    other.answers[f"/api/v1/tasks/{TASK}"] = [json_of(view())]
    other.answers["/api/v1/events"] = [stalled]
    assert perform(["task", "watch", TASK, "--timeout", "0.5s", "--json"]) == Exit.TIMED_OUT
    release.set()
    assert TASK in str(error_of(capsys)["message"])


def test_submitting_is_tried_again_with_the_same_key_when_the_answer_is_lost(
    other: Other, capsys: pytest.CaptureFixture[str]
) -> None:
    def drop(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.close()

    accepted = {"task_id": TASK, "created": True, "agent_id": "a", "agent_version": "1"}
    other.answers["/api/v1/tasks"] = [drop, problem(503, "busy"), json_of(accepted)]
    assert perform(["task", "submit", "a", "--input", "x", "--no-wait"]) == Exit.DONE
    assert capsys.readouterr().out.strip() == TASK
    keys = {headers["idempotency-key"] for _, _, headers in other.asked}
    assert len(other.asked) == 3
    assert len(keys) == 1


def test_a_download_that_breaks_leaves_no_half_file(
    other: Other, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.write(b"x" * 1000)
        handler.connection.close()

    other.answers[f"/api/v1/tasks/{TASK}/result"] = [half]
    folder = tmp_path / "out"
    folder.mkdir()
    words = ["task", "result", TASK, "-o", str(folder / "r"), "--json"]
    assert perform([w for w in words if w != "--json"]) == Exit.UNREACHABLE
    assert list(folder.iterdir()) == []
    assert "broke" in capsys.readouterr().err
