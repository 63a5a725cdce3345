"""The answers of the examples, checked against other implementations and against themselves."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import statistics
import struct
import zlib
from typing import Any

import examples_guest as guest
import examples_patch
import jsonschema  # type: ignore[import-untyped]
import pytest


# -- textdiff ----------------------------------------------------------------------
def lcs_length(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        corner = 0
        for k, y in enumerate(b):
            corner, row[k + 1] = (
                row[k + 1],
                corner + 1 if x == y else max(row[k + 1], row[k]),
            )
    return row[-1]


@pytest.mark.parametrize("seed", range(40))
def test_a_diff_applied_to_a_gives_b_and_none_is_shorter(seed: int) -> None:
    rng = random.Random(seed)
    letters = rng.choice(["ab", "abcdef"])
    a = [rng.choice(letters) for _ in range(rng.randint(0, 30))]
    b = list(a)
    for _ in range(rng.randint(0, 8)):
        if b and rng.random() < 0.5:
            del b[rng.randrange(len(b))]
        else:
            b.insert(rng.randint(0, len(b)), rng.choice(letters))
    before, after = ("\n".join(x) + ("\n" if x and rng.random() < 0.7 else "") for x in (a, b))
    request = json.dumps({"a": before, "b": after}).encode()
    for context in ("0", "1", "3"):
        ran = guest.run("textdiff", request, (f"--context={context}",))
        assert examples_patch.apply(ran.stdout, before.encode()) == after.encode()
        changed = sum(line[:1] in (b"+", b"-") for line in ran.stdout.split(b"\n")[2:])
        lines = before.splitlines(True), after.splitlines(True)
        assert changed == len(lines[0]) + len(lines[1]) - 2 * lcs_length(*lines)


# -- qrcode --------------------------------------------------------------------------
def pixels(png: bytes) -> list[list[int]]:
    """A one-bit PNG without filters, by the standard library's inflate, checksums looked at."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size]) == (
            zlib.crc32(kind + data),
        )
        chunks[kind] = data
        at += 12 + size
    width, height, depth = struct.unpack(">IIB", chunks[b"IHDR"][:9])
    assert depth == 1
    raw, row = zlib.decompress(chunks[b"IDAT"]), (width + 7) // 8 + 1
    lines = [raw[i * row : (i + 1) * row] for i in range(height)]
    assert all(line[0] == 0 for line in lines)
    return [[line[1 + x // 8] >> (7 - x % 8) & 1 for x in range(width)] for line in lines]


def svg_modules(svg: str) -> list[list[int]]:
    side = int(re.search(r'viewBox="0 0 (\d+)', svg).group(1))  # type: ignore[union-attr]
    out = [[0] * side for _ in range(side)]
    for x, y, run, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", svg):
        assert run == back
        out[int(y)][int(x) : int(x) + int(run)] = [1] * int(run)
    return out


def text_modules(text: str) -> list[list[int]]:
    rows: list[list[int]] = []
    for line in text.splitlines():
        rows.append([int(c in "▄ ") for c in line])
        rows.append([int(c in "▀ ") for c in line])
    return rows[: len(rows[0])]


@pytest.mark.parametrize("level", "LMQH")
@pytest.mark.parametrize("version", [1, 6, 7, 14, 21, 28, 35, 40])
def test_all_three_formats_show_the_same_symbol(version: int, level: str) -> None:
    args = (f"--version={version}", f"--level={level}", "--margin=1")
    svg = svg_modules(guest.run("qrcode", b"AB12", (*args, "--format=svg")).stdout.decode())
    png = pixels(guest.run("qrcode", b"AB12", (*args, "--format=png", "--scale=1")).stdout)
    scaled = pixels(guest.run("qrcode", b"AB12", (*args, "--format=png", "--scale=3")).stdout)
    text = text_modules(guest.run("qrcode", b"AB12", (*args, "--format=text")).stdout.decode())
    assert len(svg) == 17 + 4 * version + 2
    assert svg == png == text
    assert [row[1::3] for row in scaled[1::3]] == png


def modules(text: bytes, *args: str) -> list[list[int]]:
    return pixels(
        guest.run("qrcode", text, (*args, "--format=png", "--scale=1", "--margin=0")).stdout
    )


def unmasked_bits(symbol: list[list[int]]) -> tuple[int, int, list[int]]:
    """Level, mask and data bits of a version 1 symbol, by ISO/IEC 18004 read the other way."""
    side = 21
    assert len(symbol) == side
    places = (
        [(8, i) for i in range(6)] + [(8, 7), (8, 8), (7, 8)] + [(14 - i, 8) for i in range(9, 15)]
    )
    word = sum(symbol[y][x] << i for i, (x, y) in enumerate(places)) ^ 0x5412
    level, mask = word >> 13, word >> 10 & 7
    rest = word >> 10
    for _ in range(10):
        rest = rest << 1 ^ (rest >> 9) * 0x537
    assert word & 0x3FF == rest  # the format's own check bits
    rules = [
        lambda x, y: (x + y) % 2,
        lambda x, y: y % 2,
        lambda x, y: x % 3,
        lambda x, y: (x + y) % 3,
        lambda x, y: (x // 3 + y // 2) % 2,
        lambda x, y: x * y % 2 + x * y % 3,
        lambda x, y: (x * y % 2 + x * y % 3) % 2,
        lambda x, y: ((x + y) % 2 + x * y % 3) % 2,
    ]

    def is_fixed(x: int, y: int) -> bool:
        corner = (x < 9 and y < 9) or (x > 12 and y < 9) or (x < 9 and y > 12)
        return corner or x == 6 or y == 6

    bits, up = [], True
    for right in (20, 18, 16, 14, 12, 10, 8, 5, 3, 1):
        for y in range(side - 1, -1, -1) if up else range(side):
            for x in (right, right - 1):
                if not is_fixed(x, y):
                    bits.append(symbol[y][x] ^ (rules[mask](x, y) == 0))
        up = not up
    return level, mask, bits


@pytest.mark.parametrize(
    ("text", "level", "name"),
    [(b"hello", "L", 1), (b"hello", "M", 0), (b"hi", "H", 2), (b"abc xyz", "Q", 3)],
)
def test_a_small_symbol_reads_back_by_the_standard(text: bytes, level: str, name: int) -> None:
    found, _, bits = unmasked_bits(modules(text, f"--level={level}"))
    assert found == name
    assert len(bits) == 208
    stream = "".join(map(str, bits))
    assert stream[:4] == "0100"  # bytes
    size = int(stream[4:12], 2)
    assert bytes(int(stream[12 + 8 * i : 20 + 8 * i], 2) for i in range(size)) == text


def test_the_standard_s_own_example_has_its_check_bytes() -> None:
    # ISO/IEC 18004 annex I: "01234567", version 1-M; data 10 20 0C 56 61 80 EC 11 ...
    _, _, bits = unmasked_bits(modules(b"01234567", "--level=M"))
    data = bytes(int("".join(map(str, bits[i : i + 8])), 2) for i in range(0, 208, 8))
    assert data.hex(" ") == (
        "10 20 0c 56 61 80 ec 11 ec 11 ec 11 ec 11 ec 11 a5 24 d4 c1 ed 36 c7 87 2c 55"
    )


@pytest.mark.parametrize(
    ("text", "fits"),
    [(b"1" * 7089, True), (b"1" * 7090, False), (b"a" * 2953, True), (b"a" * 2954, False)],
)
def test_the_largest_symbol_holds_what_the_standard_says(text: bytes, fits: bool) -> None:
    ran = guest.run("qrcode", text, ("--level=L", "--format=png", "--scale=1", "--margin=0"))
    assert (ran.exit_code == 0) == fits
    if fits:
        assert len(pixels(ran.stdout)) == 177


# -- csvstats ---------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(10))
def test_statistics_are_those_of_the_standard_library(seed: int) -> None:
    rng = random.Random(seed)
    offset = rng.choice([0, 1e9, -5e5])
    numbers = [round(rng.gauss(offset, 1000), 3) for _ in range(rng.randint(2, 500))]
    words = [rng.choice(["a", "b,c", 'd"e', "f\ng", "", "é"]) for _ in numbers]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["n", "w"])
    writer.writerows(zip(numbers, words, strict=True))
    answer = json.loads(guest.run("csvstats", out.getvalue().encode()).stdout)
    n, w = answer["stats"]
    assert answer["rows"] == len(numbers) == n["count"]
    assert n["mean"] == pytest.approx(statistics.fmean(numbers), rel=1e-12)
    assert n["stddev"] == pytest.approx(statistics.stdev(numbers), rel=1e-9)
    assert n["median"] == pytest.approx(statistics.median(numbers), rel=1e-12)
    quartiles = statistics.quantiles(numbers, n=4, method="inclusive")
    assert [n["q1"], n["median"], n["q3"]] == pytest.approx(quartiles, rel=1e-12)
    assert (n["min"], n["max"]) == (min(numbers), max(numbers))
    assert w["nulls"] == words.count("")
    assert {t["value"]: t["count"] for t in w["top"]} == {
        x: words.count(x) for x in set(words) if x
    }


# -- grep ---------------------------------------------------------------------------------
def pattern_of(rng: random.Random, depth: int = 0) -> str:
    roll = rng.random()
    if depth > 3 or roll < 0.4:
        return rng.choice(["a", "b", "é", ".", "[ab]", "[^a]", "[b-d]", r"\.", r"\d", r"\s"])
    if roll < 0.6:
        return pattern_of(rng, depth + 1) + pattern_of(rng, depth + 1)
    if roll < 0.75:
        return f"({pattern_of(rng, depth + 1)}|{pattern_of(rng, depth + 1)})"
    return f"({pattern_of(rng, depth + 1)}){rng.choice(['*', '+', '?', '{1,2}', '{2}'])}"


@pytest.mark.parametrize("seed", range(60))
def test_grep_finds_the_lines_that_python_finds(seed: int) -> None:
    rng = random.Random(seed)
    pattern = rng.choice(["", "^"]) + pattern_of(rng) + rng.choice(["", "$"])
    lines = [
        "".join(rng.choice("aabbcdé .19") for _ in range(rng.randint(0, 10))) for _ in range(20)
    ]
    ran = guest.run("grep", "\n".join(lines).encode(), ("--", pattern))
    want = [f"{i}:{x}\n" for i, x in enumerate(lines, 1) if re.search(pattern, x, re.ASCII)]
    assert ran.stdout.decode() == "".join(want)


# -- jsonschema ---------------------------------------------------------------------------
def schema_of(rng: random.Random, depth: int = 0) -> object:
    def inner() -> object:
        return schema_of(rng, depth + 1)

    number = rng.choice([0, 1, 2, 3, 2.5, -1])
    kinds = ["integer", "number", "string", "array", "object", "null"]
    leaves: list[dict[str, object]] = [
        {"type": rng.choice(kinds)},
        {"minimum": number},
        {"exclusiveMaximum": number},
        {"multipleOf": rng.choice([2, 0.5, 3])},
        {"enum": [1, "a", [1, 2], {"a": 1}, None]},
        {"minLength": rng.randint(0, 3), "pattern": rng.choice(["^a", "b$", "[0-9]"])},
        {"maxItems": rng.randint(0, 3), "uniqueItems": rng.random() < 0.5},
        {"required": rng.sample(["a", "b", "c"], 2)},
        {"const": rng.choice([1, 1.0, True, False, "a", []])},
    ]
    schema = {k: v for leaf in rng.sample(leaves, rng.randint(0, 2)) for k, v in leaf.items()}
    if depth < 3 and rng.random() < 0.8:
        shape = rng.randrange(7)
        if shape == 0:
            schema |= {rng.choice(["allOf", "anyOf", "oneOf"]): [inner(), inner()]}
        elif shape == 1:
            schema |= {"not": inner()}
        elif shape == 2:
            schema |= {"if": inner(), "then": inner(), "else": inner()}
        elif shape == 3:
            schema |= {"items": inner(), "prefixItems": [inner()]}
        elif shape == 4:
            schema |= {"properties": {"a": inner()}, "additionalProperties": inner()}
        elif shape == 5:
            schema |= {"anyOf": [{"properties": {"b": inner()}}, inner()]}
            schema |= {"unevaluatedProperties": rng.random() < 0.5}
        else:
            schema |= {"contains": inner(), "minContains": rng.randint(0, 2)}
            schema |= {"unevaluatedItems": inner()}
    return schema


def value_of(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 6:
        return [value_of(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if kind > 6:
        return {k: value_of(rng, depth + 1) for k in rng.sample("abcd", rng.randint(0, 3))}
    return rng.choice([None, True, False, 0, 1, 1.0, 2.5, 3, 0.3, -4, "", "a", "ab", "b1", "é"])


@pytest.mark.parametrize("seed", range(120))
def test_a_verdict_is_that_of_the_reference_implementation(seed: int) -> None:
    rng = random.Random(seed)
    schema, instance = schema_of(rng), value_of(rng)
    ran = guest.run("jsonschema", json.dumps({"schema": schema, "instance": instance}).encode())
    assert ran.exit_code == 0, ran.stderr
    answer = json.loads(ran.stdout)
    wants = jsonschema.Draft202012Validator(schema).is_valid(instance)
    assert answer["valid"] == wants, (schema, instance)
    assert bool(answer["errors"]) != wants
    for error in answer["errors"]:
        at = instance
        for token in error["instanceLocation"].split("/")[1:]:
            at = at[int(token)] if isinstance(at, list) else at[token]  # type: ignore[index]


BOUNDS: dict[str, tuple[Any, list[tuple[Any, bool]]]] = {
    "maximum": (2, [(2, True), (2.0, True), (2.1, False), (1, True)]),
    "minimum": (2, [(2, True), (20e-1, True), (1.9, False), (3, True)]),
    "exclusiveMaximum": (2, [(2, False), (1.9, True), (3, False)]),
    "exclusiveMinimum": (2, [(2, False), (2.1, True), (1, False)]),
    "multipleOf": (0.1, [(0.3, True), (0.35, False), (0, True), (1e300, True), (-0.7, True)]),
    "minLength": (2, [("é", False), ("éé", True), ("😀", False)]),
    "maxLength": (2, [("é", True), ("ééé", False), ("😀😀", True)]),
    "minItems": (1, [([], False), ([1], True)]),
    "maxItems": (1, [([1], True), ([1, 2], False)]),
    "minProperties": (1, [({}, False), ({"a": 1}, True)]),
    "maxProperties": (1, [({"a": 1}, True), ({"a": 1, "b": 1}, False)]),
    "uniqueItems": (True, [([1, 1.0], False), ([1, True], True), ([{"a": 1}, {"a": 2}], True)]),
    "const": (1, [(1.0, True), (True, False)]),
    "type": ("integer", [(1.0, True), (1.5, False), (True, False)]),
    "pattern": ("^\\S+$", [("ab", True), ("a b", False), ("", False)]),
}


@pytest.mark.parametrize("keyword", BOUNDS)
def test_a_keyword_holds_up_to_its_bound_and_not_beyond(keyword: str) -> None:
    limit, cases = BOUNDS[keyword]
    for instance, valid in cases:
        request = json.dumps({"schema": {keyword: limit}, "instance": instance}).encode()
        answer = json.loads(guest.run("jsonschema", request).stdout)
        assert answer["valid"] == valid, instance
        assert [e["keywordLocation"] for e in answer["errors"]] == [f"/{keyword}"] * (not valid)
