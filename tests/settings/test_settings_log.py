"""The log: one shape, no secrets, nothing a stranger wrote commands the terminal."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from zerostate_node import log


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def line(format: str, event: str, level: str = "info", **facts: Any) -> str:
    out = io.StringIO()
    log.configure(level, format, stream=out)
    structlog.get_logger().info(event, **facts)
    return out.getvalue()


@pytest.mark.parametrize("format", ["json", "console"])
def test_secrets_are_left_out_by_key_and_by_shape(format: str) -> None:
    text = line(
        format,
        "started",
        operator_key="hunter2",
        url="postgresql://me:hunter2@host/db",
        header="Bearer hunter2hunter2",
        nested={"password": "hunter2", "deep": [{"token": "hunter2"}]},
    )
    assert "hunter2" not in text
    assert "host/db" in text


def test_control_and_bidi_characters_are_escaped_on_a_console() -> None:
    text = line("console", "heard", name="\x1b[31mred\u202eevil\r\nfake line\x9b1m")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\x9b" not in text
    assert text.count("\n") == 1


def test_json_lines_are_one_line_each_and_parse() -> None:
    text = line("json", "heard", name="two\nlines\u2028", count=3, raw=b"\x00\x01")
    tree = json.loads(text)
    assert text.count("\n") == 1
    assert (tree["event"], tree["count"], tree["raw"]) == ("heard", 3, "(2 bytes)")
    assert tree["level"] == "info"


def test_a_huge_fact_is_cut() -> None:
    assert len(line("json", "heard", text="x" * 1_000_000)) < 3_000


def test_lines_below_the_level_are_not_written() -> None:
    assert line("json", "detail", level="warning") == ""
    assert line("json", "detail", level="info") != ""


def test_a_trace_bound_around_a_call_is_on_every_line_within() -> None:
    out = io.StringIO()
    log.configure("info", "json", stream=out)
    with log.bind(trace="00-abc-def-01"):
        structlog.get_logger().info("within")
    structlog.get_logger().info("after")
    within, after = map(json.loads, out.getvalue().splitlines())
    assert within["trace"] == "00-abc-def-01"
    assert "trace" not in after


def test_stdlib_lines_take_the_same_shape_and_noisy_libraries_are_quiet() -> None:
    out = io.StringIO()
    log.configure("info", "json", stream=out)
    logging.getLogger("some.library").warning("password=%s", "hunter2")
    logging.getLogger("libp2p.network").warning("chatter")
    logging.getLogger("hypercorn.access").info("GET /")
    (tree,) = map(json.loads, out.getvalue().splitlines())
    assert tree["logger"] == "some.library"
    assert "hunter2" not in tree["event"]


def test_auto_is_json_where_nobody_looks_and_in_production() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert log.chosen_format("auto", "development", Terminal()) == "console"
    assert log.chosen_format("auto", "production", Terminal()) == "json"
    assert log.chosen_format("auto", "development", io.StringIO()) == "json"


def test_short_ids_keep_what_differs() -> None:
    did = "did:key:z6MkuhDXgSQ19KbinNES2xwXJHt69wy5oB5DEWMnr1uJMT4u"
    assert log.short("12D3KooWR4KeqKjGzgNk5ku9yzj2DzQvphjsQyuLW5otPj6BLB1T") == "Pj6BLB1T"
    assert log.short(did + "/markdown") == "r1uJMT4u/markdown"
    assert log.short("sha256:" + "ab" * 32) == "abababababab"


@pytest.mark.parametrize(
    "text",
    ["Bearer hunter2hunter2", "basic\thunter2hunter2", "a://b:hunter2@c", "password=hunter2"],
)
def test_no_secret_hides_from_the_first_look(text: str) -> None:
    # Most facts are ids, and only what passes this look is searched by the patterns.
    assert "hunter2" not in line("json", "heard", text=text)
