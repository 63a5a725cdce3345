"""Token buckets and jittered backoff: small pure parts that the mesh counts with."""

from __future__ import annotations

import random


class Bucket:
    """A token bucket: `per_s` tokens a second, at most `burst` saved up. Time comes in."""

    __slots__ = ("_at_s", "_tokens", "burst", "per_s")

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self.per_s = per_s
        self.burst = burst
        self._tokens = burst
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Spend one token; False when there is none."""
        self._tokens = min(self.burst, self._tokens + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Backoff:
    """Delays that double from `first_s` to `last_s`, each drawn from the upper half of its step."""

    __slots__ = ("_random", "_step", "first_s", "last_s")

    def __init__(self, first_s: float, last_s: float, rng: random.Random | None = None) -> None:
        self.first_s = first_s
        self.last_s = last_s
        self._step = 0
        self._random = rng or random.Random()

    def next_s(self) -> float:
        """The next delay."""
        delay: float = min(self.last_s, self.first_s * 2.0 ** min(self._step, 32))
        self._step += 1
        return delay * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: start again from the first delay."""
        self._step = 0
