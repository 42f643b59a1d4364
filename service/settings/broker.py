"""Section of the settings for the broker between several servers on one table."""

from __future__ import annotations

from collections.abc import Iterator

from service.settings.sections import SECRET_SIZE, Secret, Section

__all__ = ["BrokerSettings"]

_SCHEMES = ("redis://", "rediss://", "unix://")


class BrokerSettings(Section, frozen=True, kw_only=True):
    """A Valkey or Redis server that tells servers of each other's publications.

    It needs ``store.backend = "dynamodb"`` and the extra ``steadwire[valkey]``. Without
    it, and while it is down, servers poll the table (docs/scaling.md).

    Attributes:
        url: As ``redis://:PASSWORD@valkey.internal:6379``; ``rediss://`` with TLS; ""
            for no broker. Version 7 or newer, one server, not a cluster.
        key: 32 bytes or more that sign what is sent over it: the same in all servers,
            and unknown to other users of that Valkey. `steadwire keys` makes one.
    """

    url: Secret = Secret()
    key: Secret = Secret()

    def mistakes(self, backend: str) -> Iterator[str]:
        """Yield a line for each value that is wrong together with another.

        Args:
            backend: That of the store.
        """
        if not self.url:
            if self.key:
                yield "broker.key needs broker.url"
            return
        if not self.url.encode().decode().startswith(_SCHEMES):
            yield "broker.url must begin with redis://, rediss:// or unix://"
        if backend != "dynamodb":
            yield 'broker.url needs store.backend = "dynamodb"'
        size = len(self.key.encode())
        if size < SECRET_SIZE:
            yield (
                f"broker.key has {size} bytes, and needs {SECRET_SIZE} or more; "
                "`steadwire keys` makes one"
            )
