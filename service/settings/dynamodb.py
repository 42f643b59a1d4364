"""The settings of the DynamoDB store."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from service.errors import SettingsError
from service.settings.sections import Section

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

    def check(self) -> None:
        """Refuse an endpoint that is no URL.

        Raises:
            SettingsError: The text names the field.
        """
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise SettingsError(
                f"dynamodb.endpoint: {self.endpoint!r} is no http(s) URL"
            )
