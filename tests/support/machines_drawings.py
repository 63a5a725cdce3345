"""
Draws the machines into docs/machines.md, from what they do and not from what was meant.

A walk over a small alphabet of facts, breadth first, from the first state of each machine; what it
finds is printed as a Mermaid state diagram. `python tests/support/machines_drawings.py --write`
brings the page up to date; a test fails while it is not.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zerostate_node.machines import claim, conduct, roster, task
from zerostate_node.machines.step import Step
from zerostate_node.wire.messages import Outcome, RetryPolicy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "machines.md"
STATES_MAX = 2_000  # a walk that finds more has an alphabet that is too rich
DEADLINE, TTL = 100_000, 10_000
_RETRY = RetryPolicy(attempts_max=2)

Namer = Callable[[Any], str]


def walk(
    first: Any, alphabet: Sequence[tuple[str, Any]], step: Callable[[Any, Any], Step[Any, Any]]
) -> dict[Any, list[tuple[str, Any, tuple[str, ...]]]]:
    """Every state that can be reached, and its moves: (fact, next state, effects by name)."""
    found: dict[Any, list[tuple[str, Any, tuple[str, ...]]]] = {}
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        if state in found:
            continue
        if len(found) >= STATES_MAX:
            raise RuntimeError("too many states to draw")
        moves = found[state] = []
        for label, fact in alphabet:
            done = step(state, fact)
            effects = tuple(dict.fromkeys(type(e).__name__ for e in done.effects))
            moves.append((label, done.state, effects))
            waiting.append(done.state)
    return found


def draw(
    first: Any,
    alphabet: Sequence[tuple[str, Any]],
    step: Callable[[Any, Any], Step[Any, Any]],
    name_of: Namer,
) -> str:
    """A Mermaid diagram; states that have one name are one box, silent self loops are left out."""
    arrows: dict[tuple[str, str, str], dict[str, None]] = {}
    ends: dict[str, bool] = {}
    for state, moves in walk(first, alphabet, step).items():
        name = name_of(state)
        ends.setdefault(name, True)
        for label, after, effects in moves:
            if after != state:
                ends[name] = False
            elif not effects:
                continue
            does = f" / {', '.join(effects)}" if effects else ""
            arrows.setdefault((name, name_of(after), does), {})[label] = None
    lines = [f"    [*] --> {name_of(first)}"]
    for (name, after_name, does), labels in arrows.items():
        lines.append(f"    {name} --> {after_name}: {' or '.join(labels)}{does}")
    lines += [f"    {name} --> [*]" for name, over in ends.items() if over]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def _task() -> str:
    alphabet = [
        ("Chosen", task.Chosen("bob", TTL, 0)),
        ("RenewAsked by the holder", task.RenewAsked("bob", 1, TTL, 0)),
        ("RenewAsked by another", task.RenewAsked("mallory", 1, TTL, 0)),
        ("ReceiptCame completed", task.ReceiptCame("bob", 1, Outcome.COMPLETED, "", 1)),
        ("ReceiptCame trapped", task.ReceiptCame("bob", 1, Outcome.TRAPPED, "", 1)),
        ("ReceiptCame refused", task.ReceiptCame("bob", 1, Outcome.REFUSED, "", 1)),
        ("ReceiptCame cancelled", task.ReceiptCame("bob", 1, Outcome.CANCELLED, "", 1)),
        ("ReceiptCame, stale fence", task.ReceiptCame("bob", 9, Outcome.COMPLETED, "", 1)),
        ("HandedBack", task.HandedBack("bob", 1, 1)),
        ("WorkerLost", task.WorkerLost("bob", 0)),
        ("CancelAsked", task.CancelAsked("enough", 1)),
        ("TimePassed, lease over", task.TimePassed(2 * TTL)),
        ("TimePassed, deadline", task.TimePassed(DEADLINE)),
        ("Resumed", task.Resumed(TTL, 1)),
    ]

    def step(state: task.State, fact: task.Fact) -> task.TaskStep:
        if isinstance(state, task.Open) and state.fence and isinstance(fact, task.Chosen):
            return Step(state)  # the second lease is like the first: drawn once
        return task.step(state, fact, retry=_RETRY, deadline_ms=DEADLINE)

    def name_of(state: task.State) -> str:
        match state:
            case task.Leased(cancel=""):
                return "Leased"
            case task.Leased():
                return "Leased_cancelling"
            case task.Open(fence=0):
                return "Open"
            case task.Open():
                return "Open_again"
            case _:
                return "Settled"

    return draw(task.Open(), alphabet, step, name_of)


def _claim() -> str:
    alphabet = [
        ("SlotFree", claim.SlotFree(0)),
        ("SlotFree, too late", claim.SlotFree(60)),
        ("RunEnded", claim.RunEnded(Outcome.COMPLETED)),
        ("TimePassed, time to renew", claim.TimePassed(10)),
        ("TimePassed, lease over", claim.TimePassed(60)),
        ("RenewedBy 0", claim.RenewedBy(0, 10)),
        ("CancelCame", claim.CancelCame("enough")),
        ("Draining", claim.Draining()),
        ("ReceiptKept", claim.ReceiptKept()),
        ("AckCame", claim.AckCame("settled")),
    ]

    def name_of(state: claim.State) -> str:
        match state:
            case claim.Running(stopping=stopping) if stopping:
                return "Stopping_lost" if stopping == "lease lost" else "Stopping"
            case claim.Closed(why):
                return f"Closed_{why}"
            case _:
                return type(state).__name__

    return draw(claim.taken(30, 0), alphabet, claim.step, name_of)


def _roster() -> str:
    alphabet = [
        ("CardHeard", roster.CardHeard(1, b"a", 10, False)),
        ("CardHeard, newer", roster.CardHeard(2, b"a", 10, False)),
        ("CardHeard, revoking", roster.CardHeard(1, b"b", 10, True)),
        ("CardHeard, revoking later", roster.CardHeard(3, b"b", 10, True)),
        ("TimePassed, expired", roster.TimePassed(10)),
    ]
    return draw(roster.Absent(), alphabet, roster.step, lambda state: type(state).__name__)


def _conduct() -> str:
    alphabet = [
        ("completed", conduct.Behaved(conduct.WEIGHTS["completed"], 0)),
        ("malformed", conduct.Behaved(conduct.WEIGHTS["malformed"], 0)),
        ("lied", conduct.Behaved(conduct.WEIGHTS["lied"], 0)),
    ]

    def name_of(state: conduct.Conduct) -> str:
        if state.bans:
            return "Banned"
        if state.score == 0:
            return "Stranger"
        return "Trusted" if state.score > 0 else "Doubted"

    def step(state: conduct.Conduct, fact: conduct.Behaved) -> Step[Any, Any]:
        if state.bans or state.score > 20:
            return Step(state)  # more of the same: not drawn
        return conduct.step(state, fact)

    return draw(conduct.Conduct(), alphabet, step, name_of)


def page() -> str:
    """The whole page."""
    return f"""# The machines

What a node decides, it decides in `zerostate_node/machines/`: pure functions from a state and a
fact to the next state and what to do about it. The drawings are made by walking the code
(`python tests/support/machines_drawings.py --write`), and a test holds this page to them. On each
arrow stands the fact, behind the stroke the effects; facts that change nothing and ask for nothing
are left out.

## Task: what becomes of a task, at its owner

A task is open, leased to one worker, or settled for ever. Each lease has a fence one higher than
the last, and what a worker says under another fence changes nothing. Every `Record…` is in the
ledger before any `Send…` of the same step leaves. Out of `Open_again` a further lease goes as out
of `Open`, and is not drawn; here two tries are allowed.

{_task()}

## Claim: what becomes of a lease, at its worker

A lease waits for a slot, runs, and is owed to its owner as a signed receipt until the owner
answers. A broken stream is not in the picture because it stops nothing: the run goes on and the
receipt waits in the journal. `Stopping_lost` ends without a receipt, since the lease is another's
by then.

{_claim()}

## Roster: what is believed of one version of an agent

Cards are signed by their publisher, so that all there is to decide is which of two is the later
one, and when it is out of date. A revocation is final.

{_roster()}

## Conduct: how a peer stands

Good work raises the score slowly, bad bytes lower it fast, and time (not drawn) halves it every
{conduct.HALF_LIFE_MS // 60_000} minutes. At {conduct.BAN_AT} a peer is banned for
{conduct.BAN_MS // 60_000} minutes, twice as long each time, and at most for
{conduct.BANS_MS_MAX // 3_600_000} hours.

{_conduct()}
"""


def main(arguments: Sequence[str]) -> int:
    """Check the page, or write it. 1 when it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="bring the page up to date")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    return int(PAGE.read_text(encoding="utf-8") != page())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
