"""Client address: the key that limits by address count under.

It is the socket's peer, unless the peer is a trusted proxy. Then it is the rightmost
address of X-Forwarded-For that is not a trusted proxy. Each proxy appends the peer that
it saw, so what a client writes itself stays to the left of that and changes nothing.
Empty elements of the list are ignored (RFC 9110, 5.6.1). Any other element that is not
an address ends the search: nobody trusted wrote what is to its left. The client is then
the last address found.

An IPv6 address counts as its /64, the smallest network that one customer gets, and an
IPv4 address mapped into IPv6 counts as IPv4.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from service.core.errors import SettingsError

__all__ = ["Proxies", "key_of"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNIX = "unix"
"""The key of a peer without an address, and its name in the settings."""

_HOPS = 32  # elements read; a header of 64 KiB must not cost more than a short one

_PEERS = 1024  # addresses of peers that are kept parsed; some 200 bytes each

_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^]]*)\]|(?P<v4>[0-9.]+))(?::[0-9]+)?")
"""Some proxies write 192.0.2.1:4711 and [2001:db8::1]:4711."""


class Proxies:
    """The trusted proxies: their X-Forwarded-For is believed.

    Args:
        networks: In CIDR notation; ``unix`` stands for peers without an address.

    Raises:
        SettingsError: A text is not a network.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks: list[_Network] = []
        self._unix = False
        mistakes = []
        for text in networks:
            if text == _UNIX:
                self._unix = True
                continue
            try:
                self._networks.append(_unmapped(ipaddress.ip_network(text)))
            except ValueError as error:
                mistakes.append(f"server.trusted_proxies: {error}")
        if mistakes:
            raise SettingsError(*mistakes)

    def client(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the key of the client whose request came from *peer*.

        Args:
            peer: The socket's other end; None or "" when it has no address.
            headers: The request's headers, names in lower case.
        """
        found = _parse_peer(peer) if peer else None
        if not self._trusts(found):
            return _key(found)
        lines = [value for name, value in headers if name == b"x-forwarded-for"]
        elements = b",".join(lines).decode("latin-1").rsplit(",", _HOPS)[-_HOPS:]
        for element in reversed(elements):
            element = element.strip(" \t")
            if not element:
                continue
            address = _parse(_without_port(element))
            if address is None:
                break
            found = address
            if not self._trusts(address):
                break
        return _key(found)

    def trusts(self, peer: str | None) -> bool:
        """Return whether a socket's other end is a trusted proxy."""
        return self._trusts(_parse_peer(peer) if peer else None)

    def _trusts(self, address: _Address | None) -> bool:
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)


def key_of(peer: str | None) -> str:
    """Return the key of a socket's other end, without regard to any proxy."""
    return _key(_parse_peer(peer) if peer else None)


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=_PEERS)
def _parse_peer(text: str) -> _Address | None:
    return _parse(text)  # three times for each connection, and many come from one


def _unmapped(network: _Network) -> _Network:
    """Return a network of IPv4 addresses mapped into IPv6 as IPv4, like addresses."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        address = network.network_address.ipv4_mapped
        if address is not None:
            return ipaddress.IPv4Network((address, network.prefixlen - 96))
    return network


def _without_port(element: str) -> str:
    match = _WITH_PORT.fullmatch(element)
    return element if match is None else match["v6"] or match["v4"] or ""


def _key(address: _Address | None) -> str:
    if address is None:
        return _UNIX
    if isinstance(address, ipaddress.IPv6Address):
        high = int(address) >> 64 << 64
        return f"{ipaddress.IPv6Address(high)}/64"
    return str(address)
