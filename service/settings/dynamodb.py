"""The settings of the DynamoDB store."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from service.core.errors import SettingsError
from service.settings.sections import Seconds, Section

__all__ = ["DynamodbSettings"]

Units = Annotated[int, msgspec.Meta(gt=0)]


class DynamodbSettings(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The DynamoDB table, when ``store.backend`` is ``dynamodb``.

    Credentials are found as boto3 finds them: environment variables, shared files, the
    role of the container or machine. They are never settings of ours.

    Attributes:
        table: Its name. `steadwire tables create` makes it.
        region: AWS region; "" takes boto3's (``AWS_REGION``, shared files).
        endpoint: URL of another endpoint than AWS's own: an emulator, a VPC endpoint.
        capacity: ``on_demand``, or ``provisioned`` with the two fields below. Only
            `steadwire tables create` and ``check`` look at these three.
        read_units: Read capacity units, if provisioned.
        write_units: Write capacity units, if provisioned.
        connections: Threads, and HTTP connections, for calls under way at once; more
            calls wait for one of them. One process makes some 700 calls a second.
        timeout: A call with its repeats takes no longer; then what asked for it fails
            with a temporary error. Below the SDKs' 5 s.
        shards: A channel's publications are spread over so many partitions; a read
            asks each. More than 1 only helps a channel with more than 500 KB/s. Do not
            change it while history is needed: what was stored before is not found.
        client_limit: Clients connected to all processes of the table; above, a connect
            is closed with 3013 and comes back later.
        node_timeout: A process that has said nothing for so long is taken for dead: its
            connections lose their places. Clocks should differ by less than a tenth of
            it.
    """

    table: str = "steadwire"
    region: str = ""
    endpoint: str = ""
    capacity: Literal["on_demand", "provisioned"] = "on_demand"
    read_units: Units = 5
    write_units: Units = 5
    connections: Annotated[int, msgspec.Meta(gt=0, le=256)] = 16
    timeout: Annotated[float, msgspec.Meta(gt=0, lt=5)] = 4.0
    shards: Annotated[int, msgspec.Meta(gt=0, le=16)] = 1
    client_limit: Units = 100_000
    node_timeout: Seconds = 40.0

    def check(self) -> None:
        """Refuse an endpoint that is no URL.

        Raises:
            SettingsError: The text names the field.
        """
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise SettingsError(
                f"dynamodb.endpoint: {self.endpoint!r} is no http(s) URL"
            )
