"""Runtime of one process: every long-lived part, opened and closed in one order."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from service.agents.calls import AgentCalls
from service.agents.events import EVENT_SIZE
from service.agents.threads import Threads
from service.agents.typing_notices import Typing
from service.auth.permissions import Permissions
from service.auth.revocations import Revocations
from service.auth.tickets import Tickets
from service.connections.cluster_calls import ClusterCalls
from service.connections.cluster_channels import ClusterChannels
from service.connections.cluster_people import ClusterPeople
from service.connections.cluster_presence import ClusterPresence
from service.connections.cluster_sync import ClusterSync
from service.connections.context import ConnectionContext
from service.connections.drain import Drain
from service.connections.flusher import Flusher
from service.connections.grace_period import GracePeriod
from service.connections.hook_health import HookHealth
from service.connections.lifecycle_log import log_level
from service.connections.limits import ConnectionLimits
from service.connections.loop_monitor import LoopMonitor
from service.connections.node_figures import NodeFigures
from service.connections.overload import Overload
from service.connections.people import LocalPeople
from service.connections.reaper import Reaper
from service.connections.registry import Registry
from service.connections.streams import USER_SHARE, Streams
from service.connections.timer_wheel import wheel_for
from service.core.cluster import Cluster
from service.core.health import Checks, Fault
from service.core.hooks import Handlers
from service.core.model import ClientId
from service.core.people import People
from service.core.ports import Clock, CommitListener, Delivery, Store
from service.core.rate_limits import rate_of
from service.core.shedding import Shedding
from service.foundation import Foundation, NodeInfo
from service.hub.hub import Hub
from service.hub.publish_metrics import PublishMetrics
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from service.session.liveness_stats import LivenessStats
from service.settings import GATEWAY_PUBLICATION, Settings
from service.stores.factory import make_upkeep
from service.transports.handshake_gate import HandshakeGate

if TYPE_CHECKING:
    from service.gateway_runtime import GatewayRuntime

__all__ = ["Runtime"]

CLUSTER = "cluster"
"""The topic of the hint that there is something to look at in the table of nodes."""


@dataclass(slots=True, kw_only=True)
class Runtime:
    """The parts of a running service; the routes are made from it.

    Attributes:
        settings: The settings it was opened with.
        clock: The clock of every timer.
        node: This process.
        metrics: Counters, gauges and histograms.
        checks: The checks of ``/health/ready``.
        store: The store of history and state.
        hub: Channels and their subscribers.
        encoder: Makes JSON text of the payloads of the application.
        permissions: The rules of channels.
        handlers: Every hook: the application's, and those of tokens and tickets.
        tickets: Tickets, with each of which a client connects once.
        revocations: Revoked tokens.
        delivery: Publishes to channels and reads them.
        people: Acts on the connections of users.
        cluster: The processes of the deployment; None if this is the only one.
        channels: Finds the channels that have subscribers.
        figures: Of this process.
        gateway: Serves clients whose sockets end at an API Gateway; None without one.
        connections: The registry of connections.
        limits: Gives slots to connections.
        liveness_stats: Counters of pings and pongs.
        grace_period: Keeps the places of lost connections.
        reaper: Closes idle connections, periodically.
        drain: Sends the clients away.
        streams: The streamed answers that are open.
        gate: Refuses WebSockets before they are accepted.
        shedding: The shed level: what is refused while the process is overloaded.
        loop_monitor: Measures the event loop.
        context: The parts that every connection shares.
        threads: Threads and runs of agents.
        closing: Whether it is being closed, or was closed.
    """

    settings: Settings
    clock: Clock
    node: NodeInfo
    metrics: Metrics
    checks: Checks
    store: Store
    hub: Hub
    encoder: PayloadEncoder
    permissions: Permissions
    handlers: Handlers
    tickets: Tickets
    revocations: Revocations
    delivery: Delivery
    people: People
    cluster: Cluster | None
    channels: ClusterChannels
    figures: NodeFigures
    connections: Registry
    limits: ConnectionLimits
    liveness_stats: LivenessStats
    grace_period: GracePeriod
    reaper: Reaper
    drain: Drain
    streams: Streams
    gate: HandshakeGate
    shedding: Shedding
    loop_monitor: LoopMonitor
    context: ConnectionContext
    threads: Threads
    gateway: GatewayRuntime | None = None
    closing: bool = False
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @classmethod
    async def open(
        cls,
        settings: Settings,
        handlers: Handlers,
        clock: Clock,
        stopping: asyncio.Event | None = None,
    ) -> Runtime:
        """Open every part; if one fails, close those that were opened before it.

        Args:
            settings: Of the process.
            handlers: The hooks.
            clock: Of every timer.
            stopping: Set to give up waiting for the store's file.

        Raises:
            SettingsError: A key or an endpoint of keys is not valid.
            StartupError: The store cannot be opened.
        """
        settings = settings.at_gateway
        async with AsyncExitStack() as stack:
            base = Foundation(settings, handlers, clock, stack, stopping, resident=True)
            metrics, checks, rng = base.metrics, base.checks, base.rng
            permissions, store = base.permissions, base.store
            flusher = Flusher(asyncio.get_running_loop().call_soon, clock)
            publishes = PublishMetrics(metrics, clock, flusher)
            shedding = Shedding(settings.overload.calm, rng)
            hub = Hub(
                store,
                settings.client,
                clock,
                base.spawn,
                publishes,
                shedding,
                permissions.batch_window,
            )
            stack.callback(hub.announcements.stop)
            hook_health = HookHealth(clock, metrics)
            gate = HandshakeGate(settings, clock, shedding)
            gateway = None
            listener: CommitListener = hub.committed
            if settings.gateway.endpoint:
                from service.gateway_runtime import GatewayRuntime

                gateway = GatewayRuntime(
                    base, gate.refused, hub, hook_health=hook_health
                )
                await gateway.start()
                stack.push_async_callback(gateway.close)
                listener = gateway.delivery.committed
            await base.start(listener, hub)

            threads = Threads(
                store,
                hub,
                clock,
                base.spawn,
                node=base.node.uid,
                namespace=settings.runs.namespace,
                options=settings.channels.of_threads(settings.runs.namespace),
                lease=settings.runs.lease,
                shared=settings.shared,
                event_size=GATEWAY_PUBLICATION if settings.table.leases else EVENT_SIZE,
            )
            stack.push_async_callback(threads.close)
            threads.start_rounds()
            connections = Registry()
            upkeep = make_upkeep(store, settings, clock, connections.active)
            figures = NodeFigures(
                uid=base.node.uid,
                name=base.node.name,
                version=base.node.version,
                started=base.node.started,
                connections=connections,
                hub=hub,
                clock=clock,
            )
            if upkeep is not None:
                upkeep.describe_by(figures.text)
                stack.push_async_callback(upkeep.close)
                await upkeep.start()
            calls = None
            if upkeep is not None:
                calls = ClusterCalls(upkeep.cluster, clock, base.spawn)
            limited, rates = settings.connections, settings.effective_limits
            grace_period = GracePeriod(hub.end_grace, clock, limited.parked)
            limits = ConnectionLimits(
                connections,
                limited,
                limit=settings.connection_limit,
                user_limit=settings.user_limit,
                clock=clock,
                spawn=base.spawn,
                grace_period=grace_period,
                directory=None if upkeep is None else upkeep.directory,
                calls=calls,
                connects=rate_of(rates.connects_per_user, rates.burst),
            )
            if upkeep is not None and calls is not None:
                presence = ClusterPresence(
                    hub,
                    upkeep.cluster,
                    clock,
                    base.spawn,
                    silent=settings.table.leases,
                )
                hub.sharing = presence
                sync = ClusterSync(
                    connections,
                    limits,
                    upkeep,
                    clock,
                    base.spawn,
                    looks=(calls.look, presence.look_at_nodes),
                    period=upkeep.period,
                )
                hints = store if store.backend == "sqlite" else base.broker
                if hints is not None:
                    calls.hint = presence.hint = partial(hints.notify, CLUSTER)
                    hints.hear(CLUSTER, sync.look)
                stack.push_async_callback(sync.close)
                stack.push_async_callback(presence.close)
                sync.start()
            stack.callback(grace_period.end_all)
            reaper = Reaper(
                connections,
                clock,
                rng,
                period=limited.sweep_interval,
                idle_ttl=limited.idle_ttl,
            )
            stack.callback(reaper.stop)
            reaper.start()
            streams = Streams(
                clock,
                limit=settings.connection_limit,
                user_limit=USER_SHARE * settings.user_limit,
                address_limit=limited.address_limit,
            )
            drain = Drain(
                connections,
                clock,
                rng,
                time=settings.drain_time,
                refuse=gate.drain,
                streams=streams,
            )

            people: People = LocalPeople(connections, grace_period, clock, streams)
            if calls is not None:
                people = ClusterPeople(people, calls)
            if gateway is not None:
                gateway.serve_also(people)
                people = gateway.people
                sweeping = base.spawn(gateway.keep_sweeping())
                stack.callback(sweeping.cancel)
            base.people = people
            stack.callback(base.revocations.stop)
            await base.revocations.start()
            stack.callback(hub.position_check.stop)
            hub.position_check.start()
            typing = Typing(hub, clock, base.broker)
            stack.callback(typing.stop)
            agent_calls = AgentCalls(threads, typing, hub, base.handlers.rpc)
            liveness_stats = LivenessStats(settings.heartbeat_timeout)
            liveness_stats.rtt_listeners.append(metrics.rtt.observe)
            liveness_stats.listeners.append(log_level)
            context = ConnectionContext(
                settings=settings,
                hub=hub,
                encoder=base.encoder,
                permissions=permissions,
                handlers=replace(base.handlers, rpc=agent_calls.rpc),
                clock=clock,
                wheel=wheel_for(clock, settings.client),
                flusher=flusher,
                rng=rng,
                new_client=_new_client,
                spawn=base.spawn,
                version=base.node.version,
                metrics=metrics,
                shedding=shedding,
                registry=connections,
                limits=limits,
                liveness_stats=liveness_stats,
                hook_health=hook_health,
                grace_period=grace_period,
                drain=drain,
            )
            overload = Overload(
                settings.overload,
                shedding,
                queued=lambda: flusher.stuck_bytes,
                appends=lambda: store.queue_used,
            )
            loop_monitor = LoopMonitor(connections, metrics, clock, rng, overload)
            stack.callback(loop_monitor.stop)
            loop_monitor.start()
            runtime = cls(
                settings=settings,
                clock=clock,
                node=base.node,
                metrics=metrics,
                checks=checks,
                store=store,
                hub=hub,
                encoder=base.encoder,
                permissions=permissions,
                handlers=base.handlers,
                tickets=base.tickets,
                revocations=base.revocations,
                delivery=hub if gateway is None else gateway.delivery,
                gateway=gateway,
                people=people,
                cluster=None if upkeep is None else upkeep.cluster,
                channels=ClusterChannels(hub, calls),
                figures=figures,
                connections=connections,
                limits=limits,
                liveness_stats=liveness_stats,
                grace_period=grace_period,
                reaper=reaper,
                drain=drain,
                streams=streams,
                gate=gate,
                shedding=shedding,
                loop_monitor=loop_monitor,
                context=context,
                threads=threads,
            )
            checks.add("store", runtime._store_fault)
            checks.add("revocations", runtime._revocations_fault)
            checks.add("sweep", reaper.fault)
            checks.add("hooks", hook_health.fault)
            checks.add("drain", drain.fault)
            checks.add("overload", runtime._overload_fault)
            checks.add("broker", base.broker_fault)
            # Last, so that every part is there until the last client is gone.
            stack.push_async_callback(drain.finish)
            runtime._stack = stack.pop_all()
            return runtime

    @property
    def resident(self) -> Runtime:
        """This: its process holds the connections of clients."""
        return self

    async def aclose(self) -> None:
        """Drain, then close every part in reverse order.

        The store commits what it has accepted. This takes no longer than the drain (see
        `service.connections.drain`) and those commits.
        """
        self.closing = True
        self.gate.close()
        await self._stack.aclose()

    def _store_fault(self) -> Fault | None:
        if self.closing:
            return Fault("shutting down", failing=True)
        reason = self.store.fault()
        if reason is None:
            return None
        # A fault of a shared store is not a reason to send traffic to another process.
        return Fault(reason, failing=self.settings.store.backend == "sqlite")

    def _revocations_fault(self) -> Fault | None:
        reason = self.revocations.fault
        return None if reason is None else Fault(reason, failing=False)

    def _overload_fault(self) -> Fault | None:
        shedding = self.shedding
        if not shedding.level:
            return None
        causes = ", ".join(cause for cause, level in shedding.causes.items() if level)
        # Clients are served; elsewhere they would all have to connect again.
        return Fault(f"shed level {shedding.level}: {causes}", failing=False)


def _new_client() -> ClientId:
    return ClientId(str(uuid.uuid4()))
