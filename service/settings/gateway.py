"""Section of the settings for an API Gateway WebSocket API before the service."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from service.settings.sections import SECRET_SIZE, Seconds, Secret, Section

__all__ = ["GatewaySettings"]


class GatewaySettings(Section, frozen=True, kw_only=True):
    """Clients whose sockets end at an API Gateway WebSocket API (docs/serverless.md).

    It needs ``store.backend = "dynamodb"``. Every process that publishes to the table
    needs the same ``endpoint``, those without clients at the gateway too.

    Attributes:
        endpoint: URL of the stage for ``@connections``, as
            ``https://ID.execute-api.eu-west-1.amazonaws.com/prod``; "" for no gateway.
        secret: 32 characters or more that the HTTP_PROXY integrations send in
            ``x-gw-secret``. Empty: no HTTP_PROXY integration is served.
        function: Name or ARN of the Lambda function to whose asynchronous invocations
            deliveries are handed over; "" delivers in the background of this process.
        ping_interval: What clients are told: they reconnect when nothing came for this
            long and 10 s more. They are pinged two sweeps earlier.
        sweep_interval: How often the time-driven work is done, by a task of each
            process or by the schedule that invokes the function. A third of
            ``ping_interval`` or less.
    """

    endpoint: str = ""
    secret: Secret = Secret()
    function: str = ""
    ping_interval: Seconds = 300.0
    sweep_interval: Seconds = 60.0

    def mistakes(self, backend: str) -> Iterator[str]:
        """Yield a line for each value that is wrong together with another.

        Args:
            backend: That of the store.
        """
        if not self.endpoint:
            for name in ("secret", "function"):
                if getattr(self, name):
                    yield f"gateway.{name} needs gateway.endpoint"
            return
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            yield "gateway.endpoint must be a URL that begins with https://"
        if backend != "dynamodb":
            yield 'gateway.endpoint needs store.backend = "dynamodb"'
        if 0 < len(self.secret) < SECRET_SIZE:
            yield (
                f"gateway.secret has {len(self.secret)} characters, and needs "
                f"{SECRET_SIZE} or more; `steadwire keys` makes one"
            )
        if not (self.secret.isascii() and self.secret.isprintable()):
            yield "gateway.secret must be printable ASCII: it is sent in a header"
        if 3 * self.sweep_interval > self.ping_interval:
            yield (
                "gateway.sweep_interval must be at most a third of "
                f"gateway.ping_interval ({self.sweep_interval:g} against "
                f"{self.ping_interval:g} seconds)"
            )
