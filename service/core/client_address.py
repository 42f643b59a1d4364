"""Whose connection it is: the address that limits are kept by.

It is the socket's peer, unless that is a trusted proxy: then it is the rightmost
address of X-Forwarded-For that is no trusted proxy itself. Each proxy appends the peer
that it saw, so whatever a client puts there itself stays to the left of that and
changes nothing. An entry that is no address ends the search: what is to its left was
not written by anybody we trust.

An IPv6 address counts as its /64, which is the least that one customer gets, and an
IPv4 address mapped into IPv6 as IPv4.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from service.core.errors import SettingsError

__all__ = ["Proxies", "key_of"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNIX = "unix"
"""The key of a peer without an address, and its name in the settings."""

_HOPS = 32  # entries looked at; a header of 64 KiB must not cost more than a short one


class Proxies:
    """The proxies that are believed.

    Args:
        networks: In CIDR notation; ``unix`` stands for peers without an address.

    Raises:
        SettingsError: One is no network.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks: list[_Network] = []
        self._unix = False
        for text in networks:
            if text == _UNIX:
                self._unix = True
                continue
            try:
                self._networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise SettingsError(f"server.trusted_proxies: {error}") from None

    def client(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the key of the client whose request came from *peer*.

        Args:
            peer: The socket's other end; None or "" when it has no address.
            headers: Of the request, names in lower case.
        """
        nearest = _parse(peer) if peer else None
        if not self._trusts(nearest):
            return _key(nearest)
        values = [value for name, value in headers if name == b"x-forwarded-for"]
        entries = b",".join(values).decode("latin-1").rsplit(",", _HOPS)[-_HOPS:]
        found = nearest
        for entry in reversed(entries):
            address = _parse(_without_port(entry.strip()))
            if address is None:
                break
            found = address
            if not self._trusts(address):
                break
        return _key(found)

    def _trusts(self, address: _Address | None) -> bool:
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)


def key_of(peer: str | None) -> str:
    """Return the key of the socket's other end, whoever that is."""
    return _key(_parse(peer) if peer else None)


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _without_port(entry: str) -> str:
    # Some proxies write 192.0.2.1:4711 and [2001:db8::1]:4711.
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    if entry.count(":") == 1:
        return entry.partition(":")[0]
    return entry


def _key(address: _Address | None) -> str:
    if address is None:
        return _UNIX
    if isinstance(address, ipaddress.IPv6Address):
        high = int(address) >> 64 << 64
        return f"{ipaddress.IPv6Address(high)}/64"
    return str(address)
