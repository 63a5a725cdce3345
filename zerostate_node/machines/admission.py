"""
Should this node take it? The worker's question before a run, a pure function of facts.
"""

from __future__ import annotations

import dataclasses

from zerostate_node.errors import WireError
from zerostate_node.wire.ids import split_agent_id
from zerostate_node.wire.messages import Lease, Limits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator of this node allows."""

    limits_max: Limits
    module_bytes_max: int
    publishers: frozenset[str]  # DIDs; "*" allows every one
    price_floor_ucr: int
    revoked: frozenset[str] = frozenset()  # "<agent id>@<version>" taken back by publishers


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why not; `code` is for programs, `reason` goes into the receipt."""

    code: str
    reason: str


def judge(lease: Lease, policy: Policy) -> Refusal | None:
    """None when the lease may run here, else the first reason why it may not."""
    spec = lease.spec
    try:
        publisher, _ = split_agent_id(spec.agent_id)
    except WireError as error:
        return Refusal("bad_agent_id", str(error))
    if "*" not in policy.publishers and publisher not in policy.publishers:
        return Refusal("publisher_not_allowed", f"publisher {publisher} is not allowed here")
    if f"{spec.agent_id}@{spec.agent_version}" in policy.revoked:
        return Refusal("revoked", f"version {spec.agent_version} was revoked by its publisher")
    if spec.module.size_bytes > policy.module_bytes_max:
        return Refusal(
            "module_too_large",
            f"the module has {spec.module.size_bytes} bytes, "
            f"this node takes {policy.module_bytes_max}",
        )
    if spec.input.size_bytes > spec.limits.stdin_bytes_max:
        return Refusal("input_too_large", "the input is larger than the task's own limit")
    if spec.price.per_call_ucr < policy.price_floor_ucr:
        return Refusal("price_too_low", f"this node asks {policy.price_floor_ucr} micro-credits")
    for name in Limits.__struct_fields__:
        asked, most = getattr(spec.limits, name), getattr(policy.limits_max, name)
        if asked > most:
            return Refusal("limit_too_high", f"{name} {asked} is over this node's {most}")
    return None


def cut(limits: Limits, by: Limits) -> Limits:
    """The smaller of each pair of limits."""
    return Limits(
        **{name: min(getattr(limits, name), getattr(by, name)) for name in Limits.__struct_fields__}
    )


def price_of(
    *, per_call_ucr: int, per_mfuel_ucr: int, fuel_used: int, budget_ucr: int, completed: bool
) -> int:
    """What a run costs, in micro-credits: never above the budget, nothing for a failed run."""
    if not completed:
        return 0
    return min(budget_ucr, per_call_ucr + per_mfuel_ucr * fuel_used // 1_000_000)
