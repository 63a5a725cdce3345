"""Documents that others count on exist, made files are current, locks pin everything."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import house_tree as house
import pytest

from zerostate_node.cli.docs import MADE
from zerostate_node.settings import SECTIONS, fields_of, variable_of

MARKDOWN = [name for name in house.tracked() if name.endswith(".md")]
LOCKS = [name for name in house.tracked() if name.endswith(".lock")]
EXPECTED = (
    "README.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "bootstrap/README.md",
    *(f"docs/operations/{name}.md" for name in ("docker", "fly", "relay", "upgrade-and-backup")),
)


def test_the_documents_that_others_count_on_are_there() -> None:
    assert [name for name in EXPECTED if name not in house.tracked()] == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_each_target_of_make_that_is_written_down_exists(name: str) -> None:
    targets = house.make_targets(house.text_of("Makefile"))
    lines = house.command_lines(house.text_of(name))
    wrong = [(line, bad) for line in lines if (bad := house.wrong_targets(line, targets))]
    assert not wrong


def test_a_target_that_does_not_exist_is_found() -> None:
    text = "`make x`\n```sh\nmake strat  # make it so\n```\n```console\n$ make\nmake no\n```\n"
    wrong, alone = house.command_lines(text)
    assert house.wrong_targets(wrong, {"start"}) == ["strat"]
    assert not house.wrong_targets(alone, {"start"})
    assert not house.wrong_targets("make start test", {"start", "test"})


def test_each_setting_and_each_variable_is_documented() -> None:
    text = house.text_of("docs/settings.md")
    for section in SECTIONS:
        part = text.split(f"\n## [{section}]\n", 1)[1].split("\n## [", 1)[0]
        for field in fields_of(section):
            assert f"| `{field}` |" in part, f"{section}.{field}"
            assert f"`{variable_of(section, field)}`" in part


def test_what_is_made_from_the_code_is_current() -> None:
    assert set(MADE) <= set(house.tracked())
    done = subprocess.run(
        [sys.executable, "-m", "zerostate_node.cli.docs", "--check"],
        cwd=house.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}run `make docs`"


def test_the_makefile_says_what_each_target_does() -> None:
    text = house.text_of("Makefile")
    done = subprocess.run(["make"], cwd=house.ROOT, capture_output=True, text=True, check=True)
    for target in house.make_targets(text) - {"help"}:
        if f"\n{target}:" in text and "##" in text.split(f"\n{target}:", 1)[1].split("\n", 1)[0]:
            assert f"make {target}" in done.stdout
    for wanted in ("start", "devnet", "test", "check", "bench", "docs", "lock"):
        assert f"make {wanted} " in done.stdout, wanted


# -- locks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCKS)
def test_each_requirement_of_a_lock_is_pinned_with_hashes_and_comes_from_nowhere_special(
    name: str,
) -> None:
    text = house.text_of(name)
    assert house.wrong_lock_lines(text) == []
    assert len(house.locked(text)) > 5
    assert "://" not in text


@pytest.mark.parametrize(
    "text",
    [
        "trio==0.35.0\n",
        "trio>=0.35.0 \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "trio @ https://a.example/trio.whl \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "--index-url https://a.example\n",
        "trio==0.35.0 \\\n    --hash=md5:" + "0" * 32 + "\n",
    ],
)
def test_a_lock_line_that_pins_nothing_is_found(text: str) -> None:
    assert house.wrong_lock_lines(text)


def test_the_locks_agree_and_hold_what_the_project_asks_for() -> None:
    run, dev, build = (
        house.locked(house.text_of(name))
        for name in ("requirements.lock", "requirements-dev.lock", "requirements-build.lock")
    )
    for smaller in (run, build):
        assert {name: dev.get(name) for name in smaller} == smaller
    project = tomllib.loads(house.text_of("pyproject.toml"))["project"]
    for line in project["dependencies"]:
        name = line.replace(">", "=").replace("<", "=").split("=")[0].split("[")[0].strip().lower()
        assert name in run, line
        if "==" in line:
            assert run[name] == {line.split("==")[1]}, line
    assert "hatchling" in build
