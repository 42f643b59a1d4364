"""Sections of the settings that are about the stores: SQLite and DynamoDB."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from service.settings.sections import (
    Bytes,
    Delay,
    MiB,
    Positive,
    Seconds,
    Section,
    SizeLimit,
)

__all__ = ["DynamodbSettings", "StoreSettings"]


class StoreSettings(Section, frozen=True, kw_only=True):
    """The store of publications, and its memory.

    Attributes:
        backend: ``sqlite``, embedded in this process, or ``dynamodb``, which has its
            own section. The settings of SQLite have no effect there.
        path: SQLite: the file, or ``:memory:``.
        shared_by: SQLite: a name of yours for the service whose processes on this
            machine share the file: one that has another name, or none, cannot open it
            meanwhile. Empty: one process has the file for itself, or the workers of one
            ``steadwire serve --workers`` have.
        durability: SQLite: ``process`` survives the death of the process at any moment;
            ``power`` adds an fsync per commit and survives a power cut.
        cache_size: Bytes of the newest publications kept in memory, over all channels.
        queue_size: Bytes of publications waiting for the writer; beyond, publishes
            fail with a temporary error.
        open_timeout: SQLite: how long a start waits for another process that has the
            store open, such as the server that this one takes over from; then it fails.
            ``hypercorn service.app:app`` waits with ``shared_by`` alone.
        lock_timeout: SQLite: how long a try to commit waits for another process that
            holds the database. It is tried again within 2 s of the beginning; then its
            publications fail with a temporary error.
        sweep_interval: SQLite: seconds between deletions of what has expired, after
            which free space is given back to the disk.
        max_size: SQLite: bytes of the store; beyond, publishes that would be kept fail
            with error 111, temporary, until 90 % of it are left. 0 for no limit. More
            may be on the disk: the log, and free pages of the file.
    """

    backend: Literal["sqlite", "dynamodb"] = "sqlite"
    path: str = "steadwire.db"
    shared_by: str = ""
    durability: Literal["process", "power"] = "process"
    cache_size: Bytes = 64 * MiB
    queue_size: Bytes = 32 * MiB
    open_timeout: Delay = 30.0
    lock_timeout: Seconds = 1.0
    sweep_interval: Seconds = 30.0
    max_size: SizeLimit = 0


class DynamodbSettings(Section, frozen=True, kw_only=True):
    """The DynamoDB table, when ``store.backend`` is ``dynamodb``.

    Credentials are found as every AWS SDK finds them: environment variables, shared
    files, the role of the container or machine. They are never settings of Steadwire.

    Attributes:
        table: The table's name. `steadwire tables create` makes the table.
        region: AWS region; "" takes that of ``AWS_DEFAULT_REGION`` or shared files.
        endpoint: URL of another endpoint than AWS's own: an emulator, a VPC endpoint.
        capacity: ``on_demand``, or ``provisioned`` with the two fields below. Only
            `steadwire tables create` and ``check`` use these three.
        read_units: Read capacity units, if provisioned.
        write_units: Write capacity units, if provisioned.
        connections: Threads, each with an HTTP connection; a call beyond waits for one.
            One process makes some 700 calls a second.
        timeout: Longest time of a call with its repeats; then it fails with a temporary
            error. Below the SDKs' 5 s.
        shards: Partitions that a channel's publications are spread over; a read asks
            each. More than 1 only helps a channel with more than 500 KB/s. Do not
            change it while history is needed: publications stored before are not found.
        client_limit: Clients connected to all processes of the table; beyond, a connect
            is closed with 3013 and comes back later.
        node_timeout: A process that is silent for this long counts as dead: its
            connections lose their slots. Clocks differ by less than a tenth of it.
        leases: As if ``gateway.endpoint`` were set: for processes that only publish.
    """

    table: str = "steadwire"
    region: str = ""
    endpoint: str = ""
    capacity: Literal["on_demand", "provisioned"] = "on_demand"
    read_units: Positive = 5
    write_units: Positive = 5
    connections: Annotated[int, msgspec.Meta(gt=0, le=256)] = 16
    timeout: Annotated[float, msgspec.Meta(gt=0, lt=5, extra={"unit": "seconds"})] = 4.0
    shards: Annotated[int, msgspec.Meta(gt=0, le=16)] = 1
    client_limit: Positive = 100_000
    node_timeout: Seconds = 40.0
    leases: bool = False
