"""Admission, conduct and the roster, as sentences."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from machines_play import play
from wire_samples import AGENT_ID, LEASE, MODULE, SPEC, did_of

from zerostate_node.machines import conduct, roster
from zerostate_node.machines.admission import Policy, judge
from zerostate_node.machines.conduct import BAN_AT, BAN_MS, BANS_MS_MAX, HALF_LIFE_MS, Behaved
from zerostate_node.machines.roster import Absent, Alive, CardHeard, Drop, Keep, Revoked, Withdraw
from zerostate_node.wire.messages import BlobRef, Limits

OPEN_HOUSE: dict[str, Any] = {
    "limits_max": Limits(),
    "module_bytes_max": 1_000_000,
    "publishers": frozenset({"*"}),
    "price_floor_ucr": 0,
}

# -- admission -------------------------------------------------------------------------------------


def test_a_lease_within_the_policy_is_admitted() -> None:
    assert judge(LEASE, Policy(**OPEN_HOUSE)) is None
    only = OPEN_HOUSE | {"publishers": frozenset({did_of("author")})}
    assert judge(LEASE, Policy(**only)) is None


@pytest.mark.parametrize(
    ("code", "policy"),
    [
        ("publisher_not_allowed", {"publishers": frozenset({did_of("carol")})}),
        ("revoked", {"revoked": frozenset({f"{AGENT_ID}@1.0.0"})}),
        ("module_too_large", {"module_bytes_max": MODULE.size_bytes - 1}),
        ("price_too_low", {"price_floor_ucr": 101}),
        ("limit_too_high", {"limits_max": Limits(fuel_max=999_999_999)}),
    ],
)
def test_each_rule_of_the_operator_refuses_by_name(code: str, policy: dict[str, Any]) -> None:
    refusal = judge(LEASE, Policy(**(OPEN_HOUSE | policy)))
    assert refusal is not None
    assert refusal.code == code


@pytest.mark.parametrize(
    ("code", "spec"),
    [
        ("bad_agent_id", {"agent_id": "no such thing"}),
        ("bad_agent_id", {"agent_id": "did:key:z6Mk/../../etc"}),
        ("input_too_large", {"input": BlobRef(digest=MODULE.digest, size_bytes=1 << 40)}),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(code: str, spec: dict[str, Any]) -> None:
    lease = msgspec.structs.replace(LEASE, spec=msgspec.structs.replace(SPEC, **spec))
    refusal = judge(lease, Policy(**OPEN_HOUSE))
    assert refusal is not None
    assert refusal.code == code


# -- conduct ---------------------------------------------------------------------------------------


def behaved(*weights: int, at_ms: int = 0) -> tuple[Any, list[Any]]:
    return play(conduct.step, conduct.Conduct(), *(Behaved(w, at_ms) for w in weights))


def test_a_peer_is_banned_at_the_threshold_and_not_before() -> None:
    assert behaved(BAN_AT + 1)[1] == []
    end, effects = behaved(BAN_AT + 1, -1)
    assert effects == [conduct.Ban(BAN_MS)]
    assert (end.bans, end.banned_until_ms) == (1, BAN_MS)


def test_a_banned_peer_is_not_banned_again_while_it_is_banned() -> None:
    assert len(behaved(BAN_AT, -1_000, -1_000)[1]) == 1


def test_each_ban_is_twice_as_long_as_the_last_up_to_a_day() -> None:
    state, now_ms, lengths = conduct.Conduct(), 0, []
    for _ in range(12):
        done = conduct.step(state, Behaved(-1_000, now_ms))
        state = done.state
        lengths.append(done.effects[0].for_ms)
        now_ms = state.banned_until_ms
    assert lengths[:3] == [BAN_MS, 2 * BAN_MS, 4 * BAN_MS]
    assert lengths[-1] == BANS_MS_MAX


def test_time_halves_a_score() -> None:
    state, _ = behaved(-80)
    assert conduct.score_at(state, HALF_LIFE_MS) == -40
    assert conduct.score_at(state, 30 * HALF_LIFE_MS) == 0


def test_what_weighs_nothing_washes_nothing_away() -> None:
    state, _ = behaved(-90)
    for now_ms in range(1_000):
        state = conduct.step(state, Behaved(0, now_ms)).state
    assert conduct.score_at(state, 1_000) <= -89


def test_small_faults_add_up() -> None:
    state = conduct.Conduct()
    for now_ms in range(0, 60_000, 1_000):
        state = conduct.step(state, Behaved(-1, now_ms)).state
    assert conduct.score_at(state, 60_000) < -50


def test_a_clock_that_was_set_back_heals_nobody() -> None:
    state, _ = behaved(-80, at_ms=HALF_LIFE_MS)
    back = conduct.step(state, Behaved(0, 0)).state
    assert conduct.score_at(back, HALF_LIFE_MS) == -80


# -- the roster ------------------------------------------------------------------------------------

ALIVE = Alive(2, b"m", 100)


def test_the_first_card_heard_is_kept() -> None:
    end, effects = play(roster.step, Absent(), CardHeard(2, b"m", 100, False))
    assert (end, effects) == (ALIVE, [Keep()])


@pytest.mark.parametrize(("sequence", "key"), [(3, b"a"), (2, b"n")])
def test_a_later_card_takes_the_place_of_an_earlier_one(sequence: int, key: bytes) -> None:
    end, effects = play(roster.step, ALIVE, CardHeard(sequence, key, 200, False))
    assert (end, effects) == (Alive(sequence, key, 200), [Keep()])


@pytest.mark.parametrize(("sequence", "key"), [(1, b"z"), (2, b"a"), (2, b"m")])
def test_an_earlier_card_or_the_same_one_changes_nothing(sequence: int, key: bytes) -> None:
    assert play(roster.step, ALIVE, CardHeard(sequence, key, 999, False)) == (ALIVE, [])


@pytest.mark.parametrize("before", [Absent(), ALIVE])
def test_a_revocation_stands_whatever_its_sequence(before: Absent | Alive) -> None:
    end, effects = play(roster.step, before, CardHeard(1, b"r", 50, True))
    assert (end, effects) == (Revoked(1, b"r"), [Keep(), Withdraw()])


def test_only_a_later_revocation_follows_a_revocation() -> None:
    gone = Revoked(5, b"m")
    for fact in (
        CardHeard(9, b"z", 100, False),
        CardHeard(5, b"m", 100, True),
        CardHeard(4, b"z", 100, True),
        roster.TimePassed(1 << 50),
    ):
        assert play(roster.step, gone, fact) == (gone, [])
    assert play(roster.step, gone, CardHeard(6, b"a", 1, True)) == (Revoked(6, b"a"), [Keep()])


def test_a_card_is_forgotten_when_it_expires_and_not_before() -> None:
    assert play(roster.step, ALIVE, roster.TimePassed(99)) == (ALIVE, [])
    assert play(roster.step, ALIVE, roster.TimePassed(100)) == (Absent(), [Drop()])
    assert play(roster.step, Absent(), roster.TimePassed(100)) == (Absent(), [])


def test_a_nodes_own_clock_orders_its_adverts() -> None:
    assert roster.newer_advert(None, 0)
    assert roster.newer_advert(5, 6)
    assert not roster.newer_advert(5, 5)


def test_announcements_of_all_nodes_together_stay_within_the_budget() -> None:
    assert roster.announce_interval_ms(3) == 30_000
    for nodes in (300, 5_000, 100_000):
        assert 1000 * nodes / roster.announce_interval_ms(nodes) <= 10.0
