"""Handshake at the gateway: which sockets are opened, and by which subprotocol.

In this order, the first that applies:

    protobuf    400   the gateway takes no binary message: it would close with 1003, and
                      SDKs would come back for ever
    connects    429   too many attempts a second from this address, at this process
    origin      403

A refused client gets the status alone, whatever the body says: the reason is in the
log, at a bounded rate, and in the count of its cause.
"""

from __future__ import annotations

import structlog

from service.core.client_address import key_of
from service.core.errors import describe
from service.core.origins import Origins
from service.core.ports import Clock
from service.core.rate_limits import Buckets, Rate
from service.core.refusal_log import RefusalLog
from service.gateway.events import Answer, Application, Arrival, Kind
from service.protocol.codec import negotiate

__all__ = ["Handshake", "answer"]

_KEYS = 65536  # addresses whose attempts are kept; some 200 bytes each
_TEXT = 200  # characters of what a client sent, in the log


log = structlog.get_logger("steadwire")


class Handshake:
    """The limits before a socket is opened.

    Args:
        origins: The pages that may connect.
        connects: Attempts of an address; None for any number.
        clock: Of that rate.
        refusals: Counts those that are refused, by cause; some are logged.
    """

    def __init__(
        self,
        origins: Origins,
        connects: Rate | None,
        clock: Clock,
        refusals: RefusalLog,
    ) -> None:
        self._origins = origins
        self._connects = Buckets[str](connects, _KEYS) if connects else None
        self._clock = clock
        self._refusals = refusals

    def admit(self, arrival: Arrival) -> Answer:
        """Return the status and the subprotocol of a connect."""
        query = arrival.query
        asked = (query.get("format"), query.get("cf_protocol"))
        subprotocol, protobuf = negotiate(arrival.subprotocols, asked)
        address = key_of(arrival.address)
        if protobuf:
            remedy = "the gateway takes no binary messages: let clients speak JSON"
            return self._refuse(400, "protobuf", address, remedy=remedy)
        connects = self._connects
        if connects is not None and not connects.take(address, self._clock.now()):
            return self._refuse(429, "connects", address)
        origin = arrival.headers.get("origin")
        origins = [] if origin is None else [origin]
        if not self._origins.allow(origins, [arrival.host]):
            remedy = self._origins.remedy(origins)
            shown = " ".join(origins)[:_TEXT]
            return self._refuse(403, "origin", address, origin=shown, remedy=remedy)
        return Answer(subprotocol=subprotocol or "")

    def _refuse(self, status: int, cause: str, address: str, **details: str) -> Answer:
        self._refusals.add(cause, address, self._clock.now(), **details)
        return Answer(status)


async def answer(
    arrival: Arrival, application: Application, handshake: Handshake
) -> Answer:
    """Return the answer to one event of a socket; never raises."""
    try:
        if arrival.kind is not Kind.CONNECT:
            await application.handle(arrival)
            return Answer()
        admitted = handshake.admit(arrival)
        if admitted.status != 200:
            return admitted
        answered = await application.handle(arrival)
        return answered if answered.status != 200 else admitted
    except Exception as error:
        log.error("an event of the gateway failed", **describe(error))
        return Answer(500 if arrival.kind is Kind.CONNECT else 200)
