"""`protocols/` and `wire/` are held together: ids, limits, schemas."""

from __future__ import annotations

import re
from typing import Any

import pytest
import wire_schemas
from wire_catalogue import CONTRACTS, PROTOCOLS

from zerostate_node.wire import ids
from zerostate_node.wire.cardshape import BINDING_URI, EXTENSION_URI, CardLimits
from zerostate_node.wire.messages import Limits

ROW = re.compile(r"^\| `([^`]+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


def register() -> dict[str, tuple[str, ...]]:
    text = (PROTOCOLS / "README.md").read_text()
    section = text.split("## Register", 1)[1].split("\n## ", 1)[0]
    return {row[0]: tuple(cell.strip() for cell in row[1:]) for row in ROW.findall(section)}


def test_the_register_and_the_program_name_the_same_contracts() -> None:
    assert set(register()) == set(ids.REGISTER)


@pytest.mark.parametrize("contract", ids.REGISTER)
def test_the_register_states_the_limit_that_the_program_enforces(contract: str) -> None:
    stated = register()[contract][2].replace(",", "")
    limit = ids.REGISTER[contract]
    assert stated == (str(limit) if limit else "its own")


@pytest.mark.parametrize("contract", CONTRACTS, ids=[c.folder for c in CONTRACTS])
def test_a_specification_states_its_limits_and_only_true_ones(contract: Any) -> None:
    text = (PROTOCOLS / contract.folder / "README.md").read_text()
    stated = {
        name: int(number.replace(",", ""))
        for name, number in re.findall(r"`([A-Z_]+_MAX)` = ([\d,]+)", text)
    }
    assert set(contract.limits) <= set(stated)
    assert stated == {name: getattr(ids, name) for name in stated}


@pytest.mark.parametrize("path", wire_schemas.schemas(), ids=lambda path: path.parts[-3:][0])
def test_a_schema_is_what_the_types_say(path: Any) -> None:
    assert path.read_text() == wire_schemas.schemas()[path], "run wire_schemas.py --write"


def test_there_is_no_schema_that_nobody_generates() -> None:
    found = {path for c in CONTRACTS for path in (PROTOCOLS / c.folder).glob("*.schema.json")}
    assert found == set(wire_schemas.schemas())


def test_every_contract_folder_is_in_the_register() -> None:
    text = (PROTOCOLS / "README.md").read_text()
    folders = {path.parent.relative_to(PROTOCOLS) for path in PROTOCOLS.glob("*/*/README.md")}
    assert [str(folder) for folder in folders if f"({folder}/README.md)" not in text] == []


def test_the_manifest_specification_names_our_uris() -> None:
    text = (PROTOCOLS / "manifest/1/README.md").read_text()
    assert EXTENSION_URI in text
    assert BINDING_URI in text


def test_a_card_has_every_limit_that_a_task_has() -> None:
    assert CardLimits.__struct_fields__ == Limits.__struct_fields__
