from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerostate_node.errors import ConfigError
from zerostate_node.mesh.addrs import (
    ip_may_be_dialled,
    may_be_dialled,
    parse_addr,
    parse_peer_addr,
)
from zerostate_node.wire.ids import peer_id_of

ME = peer_id_of(bytes(31) + b"\x01")
RELAY = peer_id_of(bytes(31) + b"\x02")

PIECES = st.sampled_from(
    [
        *(
            "ip4",
            "ip6",
            "dns4",
            "tcp",
            "udp",
            "ws",
            "p2p",
            "p2p-circuit",
            "quic-v1",
            "",
            "127.0.0.1",
        ),
        *("::1", "4001", "65536", "-1", "example.org", ME, RELAY, "٤", "\x00", "a" * 300),
    ]
)


@given(st.one_of(st.text(max_size=600), st.lists(PIECES, max_size=12).map("/".join)))
def test_any_text_parses_or_is_refused_by_name(text: str) -> None:
    code = ""
    try:
        addr = parse_addr(text)
    except ConfigError as error:
        code = error.code
    assert code == "bad_addr" or parse_addr(addr.text) == addr


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/0",
        "/ip6/::1/tcp/4001/ws",
        f"/dns4/relay.example.org/tcp/443/ws/p2p/{RELAY}",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{ME}",
        f"/p2p/{RELAY}/p2p-circuit/p2p/{ME}",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{RELAY}/p2p-circuit",
    ],
)
def test_addresses_of_this_network_are_understood(text: str) -> None:
    assert parse_addr(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "ip4/127.0.0.1/tcp/1",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/1",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/²",
        "/ip4/::1/tcp/1",
        "/ip6/fe80::1%eth0/tcp/x",
        "/dns4/-bad-.example/tcp/1",
        "/ip4/127.0.0.1/tcp/1/p2p/QmNotEd25519",
        "/ip4/127.0.0.1/tcp/1/p2p-circuit",
        f"/ip4/127.0.0.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{ME}/p2p-circuit",
        f"/p2p/{ME}",
        "/unix/etc/passwd",
        "/ip4/127.0.0.1/tcp/1" + "/ws" * 200,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_addr(text)


def test_a_bootstrap_address_names_its_peer_and_port() -> None:
    assert parse_peer_addr(f"/ip4/192.0.2.7/tcp/1/p2p/{ME}").peer == ME
    for text in ("/ip4/192.0.2.7/tcp/1", f"/ip4/192.0.2.7/tcp/0/p2p/{ME}", f"/p2p/{ME}"):
        with pytest.raises(ConfigError):
            parse_peer_addr(text)


@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "169.254.1.1", "100.64.0.1", "100.100.100.200", "192.0.2.1",
        "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::",
        "2002:a9fe:a9fe::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "fe80::1%lo",
        "not an address", "",
    ],
)  # fmt: skip
def test_strangers_cannot_send_us_to(ip: str) -> None:
    assert not ip_may_be_dialled(ip, dial_private=False)


@pytest.mark.parametrize("ip", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_public_addresses_may_be_dialled(ip: str) -> None:
    assert ip_may_be_dialled(ip, dial_private=False)


@pytest.mark.parametrize(
    ("ip", "allowed"),
    [
        ("127.0.0.1", True),
        ("192.168.1.1", True),
        ("fd12:3456::1", True),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("fd00:ec2::254", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("::ffff:169.254.169.254", False),
    ],
)
def test_a_private_network_still_has_its_limits(ip: str, allowed: bool) -> None:
    assert ip_may_be_dialled(ip, dial_private=True) is allowed


def test_names_and_ports_are_judged_too() -> None:
    def judged(text: str) -> bool:
        return may_be_dialled(parse_addr(text), dial_private=False)

    assert judged("/dns4/example.org/tcp/443")
    assert not judged("/dns4/localhost/tcp/443")
    assert not judged("/dns4/a.LOCALHOST/tcp/443")
    assert not judged("/ip4/8.8.8.8/tcp/0")
    assert judged(f"/p2p/{RELAY}/p2p-circuit/p2p/{ME}")
    assert not judged(f"/ip4/10.0.0.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{ME}")
