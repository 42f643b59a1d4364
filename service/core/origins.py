"""Origin check: the web pages that may connect.

A browser names the page's origin in every handshake, and a page cannot forge it, so the
check keeps other sites' pages from using a visitor's browser. It is not authentication:
any other program sends whatever origin it likes.

Allowed are the listed origins, and pages of the server's own host if the name in the
Host header cannot have been rebound to the server by another's DNS: an IP address,
``localhost``, or the configured host. Outside development, pages of the own host must
be https. In development, all pages of this machine are allowed (``http`` or ``https``,
any port): a page under development is served by another port than Steadwire's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from service.core.errors import SettingsError

__all__ = ["Origins", "is_loopback", "is_secure"]

_MAX = 512  # characters; a host name has at most 253

_WEB = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_]([-a-z0-9_.]*[a-z0-9_])?)"
    r"(:(?P<port>[0-9]{1,5}))?"
)
_OTHER = re.compile(r"[a-z][-+.a-z0-9]*://[!-~]+")  # extensions and applications
_WILDCARD = "://*."
_FILES = ("null", "file://")  # browsers send the first, some applications the second
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class _Web(NamedTuple):
    scheme: str
    host: str
    port: str


class Origins:
    """The origins that may connect.

    Args:
        entries: The configured origins.
        own_host: The configured host.
        missing: Allow requests without an Origin header.
        strict: Refuse pages of the own host that are not https, and those of the
            machine's other ports.

    Raises:
        SettingsError: An entry can never match.
    """

    def __init__(
        self, entries: Iterable[str], *, own_host: str, missing: bool, strict: bool
    ) -> None:
        self._missing = missing
        self._strict = strict
        self._own = own_host.lower()
        self._any = False
        self._exact: set[str] = set()
        self._below: list[_Web] = []
        mistakes = [text for entry in entries for text in self._add(entry)]
        if mistakes:
            raise SettingsError(*mistakes)

    def _add(self, entry: str) -> Iterator[str]:
        """Take an entry; yield what is wrong with it."""
        scheme, wildcard, domain = entry.partition(_WILDCARD)
        if entry == "*":
            self._any = True
        elif entry in _FILES:
            self._exact.add(entry)
        elif wildcard and "*" not in domain:
            web = _parse(f"{scheme}://{domain}")
            if web is None or not _is_below_a_domain(web.host):
                yield _unusable(entry)
            else:
                self._below.append(web)
        elif (web := _parse(entry)) is not None:
            self._exact.add(_text(web))
        elif entry.startswith(("http:", "https:")) or "*" in entry:
            yield _unusable(entry)
        elif _OTHER.fullmatch(entry) and len(entry) <= _MAX:
            self._exact.add(entry)
        else:
            yield _unusable(entry)

    def allow(self, origins: list[str], hosts: list[str]) -> bool:
        """Tell whether a request with these Origin and Host headers may connect."""
        if not origins:
            return self._missing
        if len(origins) > 1 or len(origins[0]) > _MAX:
            return False
        if self._any:
            return True
        web = _parse(origins[0].lower())
        if web is None:
            return origins[0] in self._exact
        if _text(web) in self._exact or any(_is_below(web, b) for b in self._below):
            return True
        if not self._strict and is_loopback(web.host):
            return True
        return len(hosts) == 1 and self._is_own(web, hosts[0].lower())

    def remedy(self, origins: list[str]) -> str:
        """Return which setting would allow a request that `allow` refused."""
        if not origins:
            return "it has no Origin header, and server.missing_origin is false"
        if len(origins) > 1:
            return "it has two Origin headers: nothing allows it"
        if origins[0] in _FILES:
            return (
                f"a page from a file has no origin: add {origins[0]!r} to "
                "server.origins, or serve it over HTTP"
            )
        return "add the origin to server.origins"

    def _is_own(self, web: _Web, host: str) -> bool:
        if self._strict and web.scheme != "https":
            return False
        if _parse(f"{web.scheme}://{host}") != web:
            return False
        if web.host in ("localhost", self._own):
            return True
        try:
            ipaddress.ip_address(web.host.strip("[]"))
        except ValueError:
            return False
        return True


def is_secure(entry: str) -> bool:
    """Tell whether only the owner of an origin can put pages there."""
    return entry not in ("*", *_FILES) and not entry.startswith("http://")


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address, in brackets or not, is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(origin: str) -> _Web | None:
    found = _WEB.fullmatch(origin) if len(origin) <= _MAX else None
    if found is None:
        return None
    scheme = found["scheme"]
    # A default port is never in an Origin header; it may be in a Host header.
    return _Web(scheme, found["host"], found["port"] or _DEFAULT_PORTS[scheme])


def _text(web: _Web) -> str:
    return f"{web.scheme}://{web.host}:{web.port}"


def _is_below(web: _Web, domain: _Web) -> bool:
    return (
        web.scheme == domain.scheme
        and web.port == domain.port
        and web.host.endswith(f".{domain.host}")
        # Whole labels: no label is empty.
        and ".." not in web.host
    )


def _is_below_a_domain(host: str) -> bool:
    # Not a whole top-level domain, and not the end of an IP address.
    labels = host.split(".")
    if host == "localhost":
        return True
    return len(labels) > 1 and all(labels) and not labels[-1].isdigit()


def _unusable(entry: str) -> str:
    return (
        f"server.origins: {entry!r} is not an origin; write https://chat.example.org, "
        "https://*.example.org, app://name, null, file:// or *"
    )
