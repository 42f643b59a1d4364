"""``/api/info`` and ``/api/channels``: figures of this node, and its channels."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from _speedups import RttFilter, quote
from service.http.api.connections import rtt_of
from service.http.api.context import ApiContext, Integer
from service.http.api.pattern import compile_pattern

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
    """Channels with subscribers, by name."""

    channels: dict[str, ChannelObject]


async def info(context: ApiContext, request: InfoRequest) -> str:
    """Return the figures of this node."""
    runtime = context.resident
    node = runtime.node
    counts = runtime.hub.counts()
    totals = _rtt_totals(one.liveness.rtt for one in runtime.connections)
    metrics = msgspec.json.encode(MetricsObject(0.0, totals)).decode()
    return (
        f'{{"nodes":[{{"uid":{quote(node.uid)},"name":{quote(node.name)},'
        f'"version":{quote(node.version)},'
        f'"num_clients":{runtime.connections.connected},'
        f'"num_users":{runtime.connections.users},'
        f'"num_subs":{sum(counts.values())},"num_channels":{len(counts)},'
        f'"uptime":{int(runtime.clock.now() - node.started)},"metrics":{metrics}}}]}}'
    )


def _rtt_totals(filters: Iterable[RttFilter | None]) -> dict[str, float]:
    """Return the round-trip times over the present connections."""
    found = [rtt_of(rtt) for rtt in filters if rtt is not None]
    smoothed = [one.smoothed for one in found if one.samples]
    return {
        "rtt.connections": float(len(smoothed)),
        "rtt.smoothed_mean_seconds": sum(smoothed) / len(smoothed) if smoothed else 0.0,
        "rtt.smoothed_max_seconds": max(smoothed, default=0.0),
        "rtt.samples": float(sum(one.samples for one in found)),
        "rtt.outliers": float(sum(one.outliers for one in found)),
        "rtt.rejected": float(sum(one.rejected for one in found)),
        "rtt.clock_skew_corrections": float(
            sum(one.clock_skew_corrections for one in found)
        ),
    }


async def channels(context: ApiContext, request: ChannelsRequest) -> str:
    """Return the channels with subscribers."""
    matches = compile_pattern(request.pattern) if request.pattern else None
    found = [
        f'{quote(name)}:{{"num_clients":{count}}}'
        for name, count in context.resident.hub.counts().items()
        if matches is None or matches(name)
    ]
    return f'{{"channels":{{{",".join(found)}}}}}'
