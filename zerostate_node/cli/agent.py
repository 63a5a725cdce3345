"""`zerostate-node agent`: publish agents, look at them, take them back."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerostate_node.cli.shape import Group, Place, command, json_option, node_options
from zerostate_node.errors import ConfigError, Refused
from zerostate_node.units import MIB

CARD_FILE = "agent.toml"
CARD_BYTES_MAX = MIB
if TYPE_CHECKING:
    from zerostate_node.cli.client import Client

GUEST_ABI = "guest/1"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
WASM_MAGIC = b"\x00asm\x01\x00\x00\x00"
COMPONENT_MAGIC = b"\x00asm\x0d\x00\x01\x00"

agent = Group("agent", help="Publish agents and look at them.", no_args_is_help=True)
agent.examples = (
    ("zerostate-node agent publish examples/markdown", "a folder with agent.toml and the module"),
    ("zerostate-node agent list --capability text/markdown", ""),
)


def read_card(path: Path) -> dict[str, Any]:
    """An `agent.toml`. Raises ConfigError that names the file and line."""
    try:
        with path.open("rb") as file:
            raw = file.read(CARD_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", code="no_file") from error
    if len(raw) > CARD_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {CARD_BYTES_MAX} bytes", code="too_large")
    try:
        return tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {str(error)[:200]}", code="not_toml") from error


def check_module(path: Path) -> None:
    """
    Whether a file can be a module at all, before anyone is asked.

    Raises:
        ConfigError: no such file.
        Refused: (code=not_wasm) it is something else; says what, where that can be told.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", code="no_file") from error
    if head == WASM_MAGIC:
        return
    if head == COMPONENT_MAGIC:
        raise Refused(
            f"{path} is a WASM component; agents are plain modules (WASI preview 1 commands)",
            code="not_wasm",
            hint="build for the target wasm32-wasip1",
        )
    text = path.suffix in (".wat", ".wast") or head.lstrip().startswith(b"(")
    raise Refused(
        f"{path} is no WASM module" + (", it is WASM text" if text else ""),
        code="not_wasm",
        hint="compile it with wat2wasm first" if text else "a module begins with \\0asm",
    )


def find_parts(path: Path, engine: Path | None) -> tuple[Path, Path | None, Path]:
    """
    (module, script, where its card would be) of what was named: a module, a script, or a folder.

    Raises:
        ConfigError: a folder without exactly one module; a script without an engine.
    """
    if path.name == CARD_FILE:
        path = path.parent
    if path.is_dir():
        modules = sorted(path.glob("*.wasm"))
        if len(modules) != 1:
            found = ", ".join(module.name for module in modules) or "none"
            raise ConfigError(
                f"{path} must hold exactly one .wasm module; found {found}",
                code="no_file",
                hint="name the module itself",
            )
        return modules[0], None, path / CARD_FILE
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", code="no_file")
    if path.suffix in (".py", ".js"):
        if engine is None:
            raise ConfigError(
                f"{path} is a script, and this version ships no engine that runs it",
                code="no_engine",
                hint="give the engine's module with --engine, or build the agent to WASM",
            )
        return engine, path, path.parent / CARD_FILE
    return path, None, path.parent / CARD_FILE


def _draft(
    source: Path, card: Path | None, beside: Path, given: dict[str, str | None]
) -> tuple[dict[str, Any], list[str]]:
    """The draft to post, and what its author may want to know."""
    warnings = []
    if card is not None or beside.is_file():
        draft = read_card(card or beside)
        if draft.get("abi", GUEST_ABI) != GUEST_ABI:
            raise ConfigError(
                f"abi = {draft['abi']!r}: this version runs {GUEST_ABI}", code="bad_card"
            )
        for side in ("input", "output"):
            about = draft.pop(side, None)
            if isinstance(about, dict):
                if about.get("mediaType"):
                    draft.setdefault(f"{side}Modes", [about["mediaType"]])
                if about.get("schema"):
                    draft.setdefault(f"{side}Schema", about["schema"])
        for ours in ("module", "script", "abi", "examples"):  # for the build and its tests
            draft.pop(ours, None)
    else:
        draft = {}
        warnings.append(f"there is no {beside}: name and description are made up from the file's")
    draft.update({key: value for key, value in given.items() if value is not None})
    draft.setdefault("name", source.stem.lower().replace("_", "-").replace(" ", "-"))
    if not _NAME.match(str(draft["name"])):
        raise ConfigError(
            f"{str(draft['name'])[:80]!r} cannot be an agent's name",
            code="bad_card",
            hint="a-z 0-9 . _ -, at most 63, a letter or digit first; give one with --name",
        )
    draft.setdefault("version", "0.1.0")
    draft.setdefault("description", f"The module {source.name}.")
    if not draft.get("skills"):
        warnings.append("it lists no skills: it can be found by name only, not by --capability")
    return draft, warnings


def publish_at(
    client: Client,
    file: Path,
    *,
    card: Path | None = None,
    engine: Path | None = None,
    given: dict[str, str | None] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """
    Publish a module, script or folder at a node; the agent's view, and remarks for its author.

    Raises:
        ConfigError: a file is missing or is not what it should be.
        Refused: the node does not accept it; `code` says why.
    """
    module, script, beside = find_parts(file, engine)
    check_module(module)
    draft, warnings = _draft(script or module, card, beside, given or {})
    digests = {}
    for part, path in (("module", module), ("script", script)):
        if path is not None:
            with path.open("rb") as data:
                digests[part] = client.upload("/api/v1/blobs", data)["digest"]
    body = {"draft": draft, "module": digests["module"], "script": digests.get("script", "")}
    view: dict[str, Any] = client.post("/api/v1/agents", body)
    return view, warnings


@command(
    "publish",
    examples=(
        ("zerostate-node agent publish examples/markdown", "the module and agent.toml in a folder"),
        ("zerostate-node agent publish hello.wasm --name hello --version 1.0.0", "without a card"),
        ("zerostate-node agent publish build/a.wasm --card a.toml --json", "for a program"),
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--card",
    type=click.Path(path_type=Path),
    help="What the agent is (TOML).  [default: agent.toml beside FILE]",
)
@click.option("--engine", type=click.Path(path_type=Path), help="Module that runs a script FILE.")
@click.option("--name", help="Instead of the card's.")
@click.option("--version", help="Instead of the card's; a published version never changes.")
@click.option("--description", help="Instead of the card's.")
@json_option
@node_options
def publish(
    place: Place, as_json: bool, file: Path, card: Path | None, engine: Path | None, **given: Any
) -> None:
    """
    Publish FILE, a WASM module or a folder with one, as an agent of this node.

    The node checks and signs its card and tells the mesh of it. From then on any node can submit
    tasks for it, and any worker may run it.
    """
    from zerostate_node.cli import agent_view
    from zerostate_node.cli.client import connect
    from zerostate_node.cli.render import emit_json

    check_module(find_parts(file, engine)[0])  # before anyone is asked
    view, warnings = publish_at(connect(place), file, card=card, engine=engine, given=given)
    if as_json:
        emit_json({**view, "warnings": warnings})
    else:
        agent_view.print_published(view, warnings)


@command(
    "list",
    examples=(
        ("zerostate-node agent list", "all that this node has heard of"),
        ("zerostate-node agent list --query markdown --json", "for a program"),
    ),
)
@click.option("--query", default="", help="Words in the name or description.")
@click.option("--capability", default="", help="Only agents that have this capability.")
@json_option
@node_options
def list_agents(place: Place, as_json: bool, query: str, capability: str) -> None:
    """List the agents that this node knows."""
    from zerostate_node.cli import agent_view
    from zerostate_node.cli.client import connect
    from zerostate_node.cli.render import emit_json

    found = connect(place).get("/api/v1/agents", q=query, capability=capability)
    if as_json:
        emit_json(found)
    else:
        agent_view.print_list(found.get("agents") or [], narrowed=bool(query or capability))


@command(
    "show",
    examples=(
        ("zerostate-node agent show markdown", ""),
        ("zerostate-node agent show markdown@1.0.0 --json", "with its signed card"),
    ),
)
@click.argument("ref", metavar="AGENT")
@json_option
@node_options
def show(place: Place, as_json: bool, ref: str) -> None:
    """Show AGENT: a name, an agent id, or either with @VERSION."""
    from zerostate_node.cli import agent_view
    from zerostate_node.cli.client import connect, path_part
    from zerostate_node.cli.render import emit_json

    found = connect(place).get(f"/api/v1/agents/{path_part(ref)}")
    if as_json:
        emit_json(found)
    else:
        agent_view.print_agent(found.get("agent") or {}, found.get("card") or {})


@command(
    "revoke",
    examples=(("zerostate-node agent revoke markdown@1.0.0 --reason 'wrong output' --yes", ""),),
)
@click.argument("ref", metavar="AGENT")
@click.option("--reason", default="", help="Why; everyone will read it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@node_options
def revoke(place: Place, as_json: bool, ref: str, reason: str, yes: bool) -> None:
    """Revoke AGENT for ever: no node runs it again."""
    from zerostate_node.cli.client import connect, path_part
    from zerostate_node.cli.render import emit_json, out, safe

    client = connect(place)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to confirm it", code="usage", hint="say --yes")
        click.confirm(f"Revoke {ref[:200]!r} for ever, on every node?", abort=True, err=True)
    view = client.delete(f"/api/v1/agents/{path_part(ref)}", {"reason": reason})
    if as_json:
        emit_json(view)
    else:
        out().print(safe(f"revoked {view.get('agent_id')} {view.get('version')}"))


for _command in (publish, list_agents, show, revoke):
    agent.add_command(_command)
