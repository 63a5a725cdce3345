"""What a gateway that other machines can reach answers to."""

from __future__ import annotations

import socket

import httpx
import pytest
from e2e_nodes import Lab

from zerostate_node.errors import ConfigError
from zerostate_node.settings import load

OPEN = {"http.host": "0.0.0.0"}


def test_production_refuses_to_be_reachable_without_names_to_answer_to() -> None:
    flags = {**OPEN, "node.environment": "production"}
    with pytest.raises(ConfigError, match=r"http\.host") as caught:
        load(config=None, flags=flags, environ={})
    assert "http.allowed_hosts" in caught.value.hint
    named = load(config=None, flags={**flags, "http.allowed_hosts": "localhost"}, environ={})
    assert named.http.allowed_hosts == ("localhost",)
    assert not named.warnings
    assert load(config=None, flags={**flags, "http.enabled": "false"}, environ={})
    assert load(config=None, flags={"node.environment": "production"}, environ={})


def test_elsewhere_being_reachable_under_any_name_is_a_warning() -> None:
    (warning,) = load(config=None, flags=OPEN, environ={}).warnings
    assert "http.allowed_hosts" in warning
    assert not load(config=None, flags={"http.host": "::1"}, environ={}).warnings


@pytest.mark.parametrize("bad", ["https://a.example", "a.example:80", "a b", "*", "-a", "a/b"])
def test_a_host_that_no_url_could_carry_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.allowed_hosts"):
        load(config=None, flags={"http.allowed_hosts": bad}, environ={})


def test_names_that_were_not_allowed_are_turned_away_and_addresses_are_not(
    lab: Lab,
) -> None:
    # The address that a container would bind; port 0 and nothing else differs.
    alice = lab.node("alice", http__host="0.0.0.0", http__allowed_hosts=["Node.Example.org"])
    base = alice.start().run_file()["http_url"]

    def status(host: str) -> int:
        return httpx.get(f"{base}/health", headers={"Host": host}).status_code

    assert status("node.example.org") == 200
    assert status("NODE.example.org:443") == 200
    assert status("localhost:8080") == 200
    assert status("198.51.100.7:8080") == 200  # a probe from outside the container
    assert status("[2001:db8::7]:8080") == 200
    assert status("mallory.example") == 421
    assert status("198.51.100.7.mallory.example") == 421
    assert status(socket.gethostname() + ".mallory.example") == 421
