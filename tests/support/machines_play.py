"""Plays: facts one after the other into a machine, and the cast that they are about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zerostate_node.machines import task
from zerostate_node.machines.step import Step
from zerostate_node.wire.messages import RetryPolicy

T0 = 1_000_000  # when the tasks of these tests are submitted, ms
DEADLINE = T0 + 60_000
TTL = 15_000
BOB, CAROL, MALLORY = "bob", "carol", "mallory"


def play(
    step: Callable[[Any, Any], Step[Any, Any]], state: Any, *facts: Any
) -> tuple[Any, list[Any]]:
    """The last state, and every effect on the way there."""
    effects: list[Any] = []
    end: Any = state
    for fact in facts:
        done = step(end, fact)
        end = done.state
        effects += done.effects
    return end, effects


def owning(
    retry: RetryPolicy | None = None, deadline_ms: int = DEADLINE
) -> Callable[[task.State, task.Fact], task.TaskStep]:
    """`task.step` under one policy."""
    policy = retry or RetryPolicy()
    return lambda state, fact: task.step(state, fact, retry=policy, deadline_ms=deadline_ms)


def of(kind: type[Any], effects: list[Any]) -> list[Any]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]
