"""Negotiation of permessage-deflate (RFC 7692) without context takeover.

Of the client's offers the first that can be accepted is. Neither side keeps anything
from one message to the next: so a message that goes to many is deflated once for all
who asked for the same window, and a connection without a message under way costs no
more than one that is not deflated.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["negotiated"]

WIDEST = 15  # bits of a window
_NARROWEST = 9  # that zlib can deflate with; RFC 7692 has 8, too
_BITS = {str(bits): bits for bits in range(8, WIDEST + 1)}
_ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def negotiated(offers: Sequence[str]) -> tuple[bytes, int] | None:
    """Return the answer to a client's offers, and the window to deflate with in bits.

    None declines them all. An offer with a parameter that is unknown, given twice, or
    has a value that it cannot have is declined, and so is one that asks for a window
    that zlib does not have (7.1).

    Args:
        offers: Each an extension with its parameters, the preferred one first.
    """
    for offer in offers:
        bits = _window(offer)
        if bits is not None:
            answer = _ANSWER
            if bits:
                answer += f"; server_max_window_bits={bits}"
            return answer.encode(), bits or WIDEST
    return None


def _window(offer: str) -> int | None:
    """Return the bits of the window that an offer asks for.

    0 is for none in particular; None declines the offer.
    """
    name, *parameters = (part.strip() for part in offer.split(";"))
    if name != "permessage-deflate":
        return None
    given: dict[str, str | None] = {}
    for parameter in parameters:
        key, equals, text = (part.strip() for part in parameter.partition("="))
        if key in given:
            return None
        given[key] = _unquoted(text) if equals else None
    asks = "server_max_window_bits" in given
    window = given.pop("server_max_window_bits", str(WIDEST))
    client = given.pop("client_max_window_bits", None)  # it may be without a value
    for name in ("server_no_context_takeover", "client_no_context_takeover"):
        if given.pop(name, None) is not None:
            return None
    if given or (client is not None and client not in _BITS) or window not in _BITS:
        return None
    if _BITS[window] < _NARROWEST:
        return None
    return _BITS[window] if asks else 0


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    return text
