"""What every machine's `step` gives back."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

S = TypeVar("S")
E = TypeVar("E")


@dataclasses.dataclass(frozen=True, slots=True)
class Step(Generic[S, E]):
    """The next state, and what is to be done about it, in order."""

    state: S
    effects: tuple[E, ...] = ()
