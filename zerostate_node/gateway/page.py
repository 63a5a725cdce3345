"""
The page at /: who this node is, how it is, and what to try next.

Made on the server, without scripts. What it shows anyone on the network may know; what comes from
other nodes (names, descriptions) is hostile text, so all of it is escaped and cut.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any, TypeVar

import trio

from zerostate_node.errors import ZeroStateError
from zerostate_node.gateway.route import Answer, Call, Handler
from zerostate_node.ports.desk import AgentView, Check, Desk

FRESH_S = 1.0  # the page needs no key, so asking often must cost the node nothing
AGENTS_SHOWN_MAX = 60
COUNTED_MAX = 100
MICRO = 1_000_000  # micro-credits in a credit
_OPERATOR = "operator"

_CSS = files("zerostate_node.gateway").joinpath("page.css").read_text(encoding="utf-8")
_CSS_HASH = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
CSP = (
    f"default-src 'none'; style-src 'sha256-{_CSS_HASH}'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_MARK = (
    '<svg class="mark" viewBox="0 0 32 32" fill="none" stroke="currentColor" stroke-width="2.5" '
    'aria-hidden="true"><circle cx="16" cy="16" r="12"/><path d="M10 22 22 10"/>'
    '<circle cx="22" cy="10" r="2.5" fill="currentColor"/>'
    '<circle cx="10" cy="22" r="2.5" fill="currentColor"/></svg>'
)
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32' fill='none' "
    "stroke='%232f5bd7' stroke-width='4'%3E%3Ccircle cx='16' cy='16' r='12'/%3E"
    "%3Cpath d='M10 22 22 10'/%3E%3C/svg%3E"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the page says."""

    peer: str
    network: str
    roles: str
    version: str
    uptime_ms: int
    checks: Sequence[Check]
    peers: int
    agents: Sequence[AgentView]
    waiting: str
    running: str


def page_handler(version: str) -> Handler:
    """The handler; the desk is asked once a second at most."""
    made: Facts | None = None
    made_at = -FRESH_S

    async def page(call: Call) -> Answer:
        nonlocal made, made_at
        if made is None or trio.current_time() - made_at >= FRESH_S:
            made = await gather(call.desk, version)
            made_at = trio.current_time()
        body = render(
            made, call.exchange.heads.first("host"), metrics_on=call.settings.metrics_enabled
        )
        headers = {"content-security-policy": CSP}
        return Answer(body.encode(), content_type="text/html; charset=utf-8", headers=headers)

    return page


async def gather(desk: Desk, version: str) -> Facts:
    """Ask the desk; a part that cannot answer now is left out, the page is still made."""
    info = desk.info()
    down = Check(name="ready", ok=False, detail="the node does not say", hint="see its log")
    return Facts(
        peer=str(info.get("peer", "")),
        network=str(info.get("network", "")),
        roles=", ".join(_texts(info.get("roles"))) or str(info.get("role", "")),
        version=version,
        uptime_ms=info["uptime_ms"] if isinstance(info.get("uptime_ms"), int) else -1,
        checks=await _or(desk.ready, [down]),
        peers=sum(peer.connected for peer in desk.peers()),
        agents=await _or(desk.agents, []),
        waiting=await _count(desk, "open"),
        running=await _count(desk, "leased"),
    )


async def _or(ask: Callable[[], Awaitable[T]], otherwise: T) -> T:
    try:
        return await ask()
    except ZeroStateError:
        return otherwise


async def _count(desk: Desk, phase: str) -> str:
    try:
        page = await desk.tasks(actor=_OPERATOR, phase=phase, limit=COUNTED_MAX)
    except ZeroStateError:
        return "?"
    return f"{len(page.tasks)}{'+' if page.cursor else ''}"


def render(facts: Facts, host: str, *, metrics_on: bool) -> str:
    """The whole page; `host` is how the reader reached it."""
    bad = [check for check in facts.checks if not check.ok]
    pill = '<span class="pill bad">not ready</span>' if bad else '<span class="pill">ready</span>'
    where = " · ".join(
        part
        for part in (
            f"network {facts.network}" if facts.network else "",
            facts.roles,
            f"version {facts.version}",
            f"up {_duration(facts.uptime_ms)}" if facts.uptime_ms >= 0 else "",
        )
        if part
    )
    metrics = '<a href="/metrics">Metrics</a>' if metrics_on else ""
    numbers = (
        ("Peers connected", str(facts.peers)),
        ("Agents known", str(len(facts.agents))),
        ("Tasks waiting", facts.waiting),
        ("Tasks running", facts.running),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{_text(n)}</dd></div>" for name, n in numbers)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ZeroState node {_text(facts.peer[-6:])}</title>
<link rel="icon" href="{_ICON}">
<style>{_CSS}</style>
</head>
<body>
<main>
<header>{_MARK}<h1>ZeroState node</h1>{pill}<span class="soft">{_text(where)}</span></header>
<p class="id">{_text(facts.peer)}</p>
{_trouble(bad)}<dl class="numbers">{cells}</dl>
<h2>Agents</h2>
{_agents(facts.agents)}
<h2>Try next</h2>
<ul class="steps">{_steps(facts, host)}</ul>
<footer><a href="/openapi.json">API description</a><a href="/ready">Readiness</a>
<a href="/health">Health</a>{metrics}</footer>
</main>
</body>
</html>
"""


def _trouble(bad: Sequence[Check]) -> str:
    if not bad:
        return ""
    rows = "".join(
        f"<p><strong>{_text(check.name)}</strong>: {_text(check.detail)}"
        + (f' <span class="soft">{_text(check.hint)}</span>' if check.hint else "")
        + "</p>"
        for check in bad
    )
    return f'<section class="trouble"><h2>Not ready for work</h2>{rows}</section>\n'


def _agents(agents: Sequence[AgentView]) -> str:
    if not agents:
        return '<p class="soft">None yet: publish one here, or wait for a peer to tell of one.</p>'
    cards = "".join(_agent(agent) for agent in agents[:AGENTS_SHOWN_MAX])
    rest = len(agents) - AGENTS_SHOWN_MAX
    more = f'<p class="soft">and {rest} more: zerostate-node agent list</p>' if rest > 0 else ""
    return f'<div class="agents">{cards}</div>{more}'


def _agent(agent: AgentView) -> str:
    tags = [*agent.capabilities[:6], _price(agent)]
    if agent.local:
        tags.append("published here")
    if agent.status not in ("alive", "active"):
        tags.append(agent.status)
    spans = "".join(f'<span class="tag">{_text(tag, 60)}</span>' for tag in tags)
    return (
        f'<article class="agent"><h3>{_text(agent.name, 63)} '
        f'<span class="soft">{_text(agent.version, 30)}</span></h3>'
        f"<p>{_text(agent.description, 200)}</p>"
        f'<div class="tags">{spans}</div></article>'
    )


def _price(agent: AgentView) -> str:
    price = agent.price
    parts = []
    if price.per_call_ucr:
        parts.append(f"{_credits(price.per_call_ucr)} a call")
    if price.per_mfuel_ucr:
        parts.append(f"{_credits(price.per_mfuel_ucr)} a million fuel")
    return " + ".join(parts) or "free"


def _credits(ucr: int) -> str:
    return f"{ucr / MICRO:.6f}".rstrip("0").rstrip(".") + " credits"


def _steps(facts: Facts, host: str) -> str:
    steps: list[tuple[str, str]] = []
    names = [agent.name for agent in facts.agents]
    if names:
        # A name is what someone else chose: quoted, so that a copied line does what it shows.
        name = shlex.quote(names[0][:63])
        steps.append(
            (
                "Run an agent, somewhere on the network",
                f"zerostate-node task submit {name} --input 'hello'",
            )
        )
    else:
        steps.append(
            ("Publish a WASM module as an agent", "zerostate-node agent publish hello.wasm")
        )
    steps += [
        (
            "Call the API with the operator key, from operator.key in the data directory",
            'curl -H "Authorization: Bearer $(cat operator.key)" '
            + shlex.quote(f"http://{host}/api/v1/tasks"),
        ),
        ("See whom this node knows", "zerostate-node peers"),
        ("Find out why something does not work", "zerostate-node doctor"),
    ]
    return "".join(
        f'<li><p>{_text(why)}</p><pre tabindex="0"><code>{_text(command)}</code></pre></li>'
        for why, command in steps
    )


def _text(value: Any, length: int = 300) -> str:
    """Escaped, cut, and without characters that reorder or hide the text around them."""
    shown = str(value)
    if len(shown) > length:
        shown = shown[: length - 1] + "…"
    return escape("".join(char if char.isprintable() else " " for char in shown))


def _texts(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list | tuple) else []


def _duration(span_ms: int) -> str:
    minutes, hours = span_ms // 60_000, span_ms // 3_600_000
    if hours >= 48:
        return f"{hours // 24} days"
    if minutes >= 120:
        return f"{hours} hours"
    return f"{minutes} min" if minutes else f"{span_ms // 1000} s"
