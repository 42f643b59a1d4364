"""The client's address behind proxies, whatever the client claims."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.client_address import Proxies, key_of
from service.core.errors import SettingsError
from service.settings import ServerSettings, Settings

NONE = Proxies([])
ONE = Proxies(["10.0.0.0/8", "2001:db8:ffff::/48", "127.0.0.1/32"])
UNIX = Proxies(["unix", "10.0.0.0/8"])


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"host", b"chat.example.org"),
        *((b"x-forwarded-for", value.encode("latin-1")) for value in values),
    ]


@pytest.mark.parametrize(
    ("proxies", "peer", "values", "key"),
    [
        # No proxy is trusted.
        (NONE, "192.0.2.1", [], "192.0.2.1"),
        (NONE, "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (NONE, "127.0.0.1", ["198.51.100.7"], "127.0.0.1"),
        (ONE, "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (ONE, "11.0.0.1", ["198.51.100.7"], "11.0.0.1"),
        # The proxy is believed, and what the client wrote before it is not.
        (ONE, "10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["1.1.1.1", "198.51.100.7"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["10.0.0.9, 198.51.100.7"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["unknown, 198.51.100.7"], "198.51.100.7"),
        # Several proxies in a row.
        (ONE, "10.0.0.1", ["1.1.1.1, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["198.51.100.7", "10.0.0.3", "10.0.0.2"], "198.51.100.7"),
        (ONE, "127.0.0.1", ["198.51.100.7,10.0.0.2"], "198.51.100.7"),
        # A client inside the proxies' network.
        (ONE, "10.0.0.1", ["10.0.0.9"], "10.0.0.9"),
        (ONE, "10.0.0.1", ["garbage, 10.0.0.9"], "10.0.0.9"),
        # No address in the header: the nearest that is known.
        (ONE, "10.0.0.1", [], "10.0.0.1"),
        (ONE, "10.0.0.1", [""], "10.0.0.1"),
        (ONE, "10.0.0.1", [","], "10.0.0.1"),
        # Empty elements of the list are ignored, wherever they stand.
        (ONE, "10.0.0.1", ["198.51.100.7,"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["198.51.100.7, "], "198.51.100.7"),
        (ONE, "10.0.0.1", ["198.51.100.7,\t,  ,"], "198.51.100.7"),
        (ONE, "10.0.0.1", [",198.51.100.7"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["1.1.1.1,,198.51.100.7,,10.0.0.2,"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["198.51.100.7", ""], "198.51.100.7"),
        (ONE, "10.0.0.1", ["", "198.51.100.7", " ", ","], "198.51.100.7"),
        (ONE, "10.0.0.1", ["", "", ""], "10.0.0.1"),
        (UNIX, None, ["198.51.100.7,"], "198.51.100.7"),
        # Spaces and tabs around an element mean nothing; no other character does.
        (ONE, "10.0.0.1", [" \t198.51.100.7\t "], "198.51.100.7"),
        (ONE, "10.0.0.1", ["198.51.100.7\xa0"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["198.51.100.7\x0b"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["198.51. 100.7"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["198.51.100.7, unknown"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["198.51.100.7, _hidden, 10.0.0.2"], "10.0.0.2"),
        (ONE, "10.0.0.1", ["256.1.1.1"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["1.1"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["0x7f000001"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["\xff\xfe"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["for=198.51.100.7"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["198.51.100.7;10.0.0.2"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["198.51.100.0/24"], "10.0.0.1"),
        # With a port.
        (ONE, "10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        (ONE, "10.0.0.1", ["[2001:db8:1:2::3]:4711"], "2001:db8:1:2::/64"),
        (ONE, "10.0.0.1", ["[2001:db8:1:2::3]"], "2001:db8:1:2::/64"),
        (ONE, "10.0.0.1", ["[2001:db8"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["[2001:db8::3"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["[2001:db8::3]garbage"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["[]:4711"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["198.51.100.7:garbage"], "10.0.0.1"),
        (ONE, "10.0.0.1", ["198.51.100.7:"], "10.0.0.1"),
        (ONE, "10.0.0.1", [":4711"], "10.0.0.1"),
        # IPv6 counts by its /64, mapped IPv4 as IPv4.
        (NONE, "2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        (NONE, "::1", [], "::/64"),
        (NONE, "fe80::1%eth0", [], "fe80::/64"),
        (NONE, "::ffff:192.0.2.1", [], "192.0.2.1"),
        (ONE, "::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        (ONE, "2001:db8:ffff::1", ["2001:db8:1:2::3"], "2001:db8:1:2::/64"),
        # No address: a Unix socket, or a server that does not say.
        (NONE, None, ["198.51.100.7"], "unix"),
        (NONE, "", ["198.51.100.7"], "unix"),
        (ONE, None, ["198.51.100.7"], "unix"),
        (UNIX, None, ["198.51.100.7"], "198.51.100.7"),
        (UNIX, None, ["198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        (UNIX, None, [], "unix"),
        (UNIX, "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (NONE, "not an address", [], "unix"),
    ],
)
def test_client(
    proxies: Proxies, peer: str | None, values: list[str], key: str
) -> None:
    assert proxies.client(peer, forwarded(*values)) == key


@given(st.text(st.characters(max_codepoint=255), max_size=300))
def test_what_a_client_sends_changes_nothing(claimed: str) -> None:
    # The proxy appends the peer that it saw, to the header or as a second one.
    for values in ([f"{claimed}, 198.51.100.7"], [claimed, "198.51.100.7"]):
        assert ONE.client("10.0.0.1", forwarded(*values)) == "198.51.100.7"
    assert ONE.client("198.51.100.7", forwarded(claimed)) == "198.51.100.7"


def test_a_long_header_costs_as_much_as_a_short_one() -> None:
    values = ["1.1.1.1" + ", 10.0.0.2" * 20_000]
    assert ONE.client("10.0.0.1", forwarded(*values)) == "10.0.0.2"
    values = ["198.51.100.7" + ", 10.0.0.2" * 31]
    assert ONE.client("10.0.0.1", forwarded(*values)) == "198.51.100.7"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1.1.1.1", "198.51.100.7", "10.0.0.2", "unknown"]),
            st.sampled_from([",", ", ", " ,\t", ", ,", ",,", ",  ,\t,"]),
        ),
        max_size=8,
    ),
    st.sampled_from(["", ",", " , "]),
)
def test_empty_elements_change_nothing(
    elements: list[tuple[str, str]], head: str
) -> None:
    plain = ",".join(element for element, _ in elements)
    spaced = head + "".join(element + after for element, after in elements)
    expected = ONE.client("10.0.0.1", forwarded(plain))
    assert ONE.client("10.0.0.1", forwarded(spaced)) == expected
    lines = [line for element, _ in elements for line in ("", element)]
    assert ONE.client("10.0.0.1", forwarded(*lines, "")) == expected


def test_key_of_a_peer() -> None:
    assert key_of("192.0.2.1") == "192.0.2.1"
    assert key_of("2001:db8::1") == "2001:db8::/64"
    assert key_of(None) == "unix"


@pytest.mark.parametrize("network", ["10.0.0.1/8", "proxy", "", "10.0.0.0/33", "*"])
def test_what_is_no_network_is_refused_at_the_start(network: str) -> None:
    settings = Settings(server=ServerSettings(trusted_proxies=(network,)))
    with pytest.raises(SettingsError, match=r"^server\.trusted_proxies: "):
        settings.check()


@pytest.mark.parametrize(
    ("proxies", "peer", "trusted"),
    [
        (NONE, "10.0.0.1", False),
        (ONE, "10.0.0.1", True),
        (ONE, "::ffff:10.0.0.1", True),
        (Proxies(["::ffff:10.0.0.0/104"]), "10.0.0.1", True),
        (Proxies(["::ffff:10.0.0.0/104"]), "::ffff:10.0.0.1", True),
        (Proxies(["::ffff:10.0.0.0/104"]), "11.0.0.1", False),
        (Proxies(["::ffff:192.0.2.1"]), "192.0.2.1", True),
        (Proxies(["::ffff:0:0/96"]), "192.0.2.1", True),
        (Proxies(["::ffff:0:0/96"]), "2001:db8::1", False),
        (Proxies(["2001:db8::/96"]), "2001:db8::1", True),
        (ONE, "192.0.2.1", False),
        (ONE, None, False),
        (UNIX, None, True),
        (UNIX, "", True),
    ],
)
def test_trusts(proxies: Proxies, peer: str | None, trusted: bool) -> None:
    assert proxies.trusts(peer) is trusted
