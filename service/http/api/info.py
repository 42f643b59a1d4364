"""``/api/info`` and ``/api/channels``: figures of the nodes, and their channels."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from _speedups import quote
from service.http.api.context import ApiContext, Integer

__all__ = [
    "ChannelsRequest",
    "ChannelsResult",
    "InfoRequest",
    "InfoResult",
    "channels",
    "info",
]


class InfoRequest(msgspec.Struct):
    """Read the figures of the nodes."""


class MetricsObject(msgspec.Struct):
    """Figures by name, over the present connections."""

    interval: float
    items: dict[str, float]


class NodeObject(msgspec.Struct):
    """A node; ``uptime`` in seconds."""

    uid: str
    name: str
    version: str
    num_clients: Integer
    num_users: Integer
    num_subs: Integer
    num_channels: Integer
    uptime: Integer
    metrics: MetricsObject


class InfoResult(msgspec.Struct):
    """The nodes."""

    nodes: list[NodeObject]


class ChannelsRequest(msgspec.Struct, kw_only=True):
    """List the channels with subscribers; *pattern* is a glob, absent for all."""

    pattern: str | None = None


class ChannelObject(msgspec.Struct):
    """The number of subscribers."""

    num_clients: Integer


class ChannelsResult(msgspec.Struct):
    """Channels with subscribers, by name.

    Attributes:
        partial: True if a node did not answer in time: its subscribers are missing.
    """

    channels: dict[str, ChannelObject]
    partial: bool | UnsetType = UNSET


async def info(context: ApiContext, request: InfoRequest) -> str:
    """Return the figures of all nodes: of others, those of their last heartbeat.

    Raises:
        StoreError: The others cannot be read.
    """
    runtime = context.resident
    nodes = [runtime.figures.text()]
    if runtime.cluster is not None:
        others = await runtime.cluster.nodes()
        nodes += [node.figures for node in others if node.figures and not node.dead]
    return f'{{"nodes":[{",".join(nodes)}]}}'


async def channels(context: ApiContext, request: ChannelsRequest) -> str:
    """Return the channels with subscribers, of all nodes that answer in time.

    Raises:
        ReplyError: 107: the pattern is malformed.
        StoreError: The others cannot be asked.
    """
    found = await context.resident.channels.find(request.pattern or "")
    names = ",".join(
        f'{quote(name)}:{{"num_clients":{count}}}'
        for name, count in found.counts.items()
    )
    partial = ',"partial":true' if found.missing else ""
    return f'{{"channels":{{{names}}}{partial}}}'
