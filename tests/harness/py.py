"""The Python SDK, in the test's own event loop or, as a program, in another process.

The second half runs by itself under the interpreter of an old SDK, so this module
imports nothing of the tests at its top. See sdk.py for the commands and events.

Usage: python py.py VERSION
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import centrifuge

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.sdk import ProcessHost, SdkClient

__all__ = ["PythonHost", "start_python"]

_NEWEST = "0.7.0"


async def start_python(version: str, *, own_process: bool) -> PythonHost | ProcessHost:
    """Start a host of clients of PyPI ``centrifuge-python`` at *version*."""
    from tests.harness.sdk import ProcessHost
    from tests.harness.tools import old_python

    if version == _NEWEST and not own_process:
        return PythonHost()
    interpreter = sys.executable if version == _NEWEST else old_python()
    # -P: the names in this directory must not hide those of libraries.
    return await ProcessHost.start(
        f"python-{version}", interpreter, "-P", Path(__file__), version
    )


def _code(value: Any) -> int:
    return int(getattr(value, "value", value))


# Payloads are bytes in protobuf: here JSON, as with the other clients.


def _packed(client: Any, data: Any) -> Any:
    return json.dumps(data).encode() if client._use_protobuf else data


def _unpacked(data: Any) -> Any:
    if not isinstance(data, bytes):
        return data
    return json.loads(data) if data else None  # absent


def _publication(pub: centrifuge.Publication) -> dict[str, Any]:
    info = pub.info and {"user": pub.info.user, "client": pub.info.client}
    return {
        "offset": pub.offset,
        "data": _unpacked(pub.data),
        "tags": pub.tags or {},
        "info": info,
    }


def _info(info: centrifuge.ClientInfo) -> dict[str, Any]:
    return {
        "user": info.user,
        "client": info.client,
        "conn_info": _unpacked(info.conn_info),
        "chan_info": _unpacked(info.chan_info),
    }


class _ClientEvents(centrifuge.ClientEventHandler):
    def __init__(self, report: Callable[..., None]) -> None:
        self._report = report
        self.client: centrifuge.Client | None = None

    async def on_connecting(self, ctx: Any) -> None:
        self._report("connecting", code=_code(ctx.code), reason=ctx.reason)

    async def on_connected(self, ctx: Any) -> None:
        self._report("connected", id=ctx.client, data=_unpacked(ctx.data))

    async def on_disconnected(self, ctx: Any) -> None:
        # 0.4.4 calls this also when it is going to reconnect, newer versions do not.
        assert self.client is not None
        reconnects = self.client.state == centrifuge.ClientState.CONNECTING
        event = "connecting" if reconnects else "disconnected"
        self._report(event, code=_code(ctx.code), reason=ctx.reason)

    async def on_error(self, ctx: Any) -> None:
        self._report("error", code=_code(ctx.code), message=str(ctx.error))

    async def on_subscribed(self, ctx: Any) -> None:
        self._report(
            "server_subscribed",
            channel=ctx.channel,
            recovered=ctx.recovered,
            data=_unpacked(ctx.data),
            offset=ctx.stream_position and ctx.stream_position.offset,
        )

    async def on_publication(self, ctx: Any) -> None:
        self._report("server_publication", channel=ctx.channel, **_publication(ctx.pub))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._report("server_unsubscribed", channel=ctx.channel)


class _SubscriptionEvents(centrifuge.SubscriptionEventHandler):
    def __init__(self, channel: str, report: Callable[..., None]) -> None:
        self._channel = channel
        self._send = report

    def _report(self, event: str, **fields: Any) -> None:
        self._send(event, channel=self._channel, **fields)

    async def on_subscribing(self, ctx: Any) -> None:
        self._report("subscribing", code=_code(ctx.code), reason=ctx.reason)

    async def on_subscribed(self, ctx: Any) -> None:
        position = ctx.stream_position
        self._report(
            "subscribed",
            recoverable=ctx.recoverable,
            positioned=ctx.positioned,
            was_recovering=ctx.was_recovering,
            recovered=ctx.recovered,
            data=_unpacked(ctx.data),
            offset=position and position.offset,
            epoch=position and position.epoch,
        )

    async def on_join(self, ctx: Any) -> None:
        self._report("join", info=_info(ctx.info))

    async def on_leave(self, ctx: Any) -> None:
        self._report("leave", info=_info(ctx.info))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._report("unsubscribed", code=_code(ctx.code), reason=ctx.reason)

    async def on_publication(self, ctx: Any) -> None:
        self._report("publication", **_publication(ctx.pub))

    async def on_error(self, ctx: Any) -> None:
        self._report("sub_error", code=_code(ctx.code), message=str(ctx.error))


def _tokens(command: dict[str, Any], asked: Callable[[], None]) -> dict[str, Any]:
    """Return a token to begin with, and a get_token that ends with the same one."""
    options: dict[str, Any] = {}
    if command.get("token"):
        options["token"] = command["token"]
    if command.get("get_token"):
        left = list(command["get_token"])

        async def get_token(*_: Any) -> str:
            following = left.pop(0) if len(left) > 1 else left[0]
            asked()
            if isinstance(following, dict):
                if following["throw"] == "unauthorized":
                    raise centrifuge.UnauthorizedError("no")
                raise RuntimeError(following["throw"])
            return str(following)

        options["get_token"] = get_token
    return options


class _Runner:
    """Carries out commands on clients of the SDK."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        self.clients: dict[str, centrifuge.Client] = {}
        self._emit = emit
        self._delays: dict[str, dict[str, float]] = {}

    async def carry_out(self, command: dict[str, Any]) -> Any:
        name = command["client"]
        if command["do"] == "create":
            self._create(name, command)
            return None
        method = getattr(self, "_do_" + command["do"])
        return await method(self.clients[name], command)

    def _reporter(self, name: str) -> Callable[..., None]:
        def report(event: str, **fields: Any) -> None:
            self._emit({"client": name, "event": event, **fields})

        return report

    def _create(self, name: str, command: dict[str, Any]) -> None:
        options: dict[str, Any] = {}
        if "proxy" in inspect.signature(centrifuge.Client).parameters:
            options["proxy"] = None
        self._delays[name] = {
            "min_resubscribe_delay": command["min_delay"],
            "max_resubscribe_delay": command["max_delay"],
        }
        events = _ClientEvents(self._reporter(name))
        client = centrifuge.Client(
            command["url"],
            events=events,
            min_reconnect_delay=command["min_delay"],
            max_reconnect_delay=command["max_delay"],
            max_server_ping_delay=command["ping_delay"],
            use_protobuf=command["protobuf"],
            **_tokens(command, lambda: self._reporter(name)("get_token")),
            name=command["name"],
            data=self._data(command),
            **options,
        )
        client.harness_name = name
        events.client = client
        self.clients[name] = client

    @staticmethod
    def _data(command: dict[str, Any]) -> Any:
        data = command["data"]
        packed = data is not None and command["protobuf"]
        return json.dumps(data).encode() if packed else data

    async def _do_connect(self, client: Any, _: dict[str, Any]) -> None:
        await client.connect()

    async def _do_disconnect(self, client: Any, _: dict[str, Any]) -> None:
        await client.disconnect()

    async def _do_subscribe(self, client: Any, command: dict[str, Any]) -> None:
        channel = command["channel"]
        sub = client.get_subscription(channel)
        if sub is None:
            name = client.harness_name
            events = _SubscriptionEvents(channel, self._reporter(name))
            report = self._reporter(name)
            tokens = _tokens(command, lambda: report("get_token", channel=channel))
            if command.get("delta"):
                tokens["delta"] = centrifuge.DeltaType.FOSSIL
            sub = client.new_subscription(
                channel,
                events,
                join_leave=command.get("join_leave", False),
                **self._delays[name],
                **tokens,
            )
        await sub.subscribe()

    async def _do_unsubscribe(self, client: Any, command: dict[str, Any]) -> None:
        await client.get_subscription(command["channel"]).unsubscribe()

    async def _do_publish(self, client: Any, command: dict[str, Any]) -> None:
        await client.publish(command["channel"], _packed(client, command["data"]))

    async def _do_presence(self, client: Any, command: dict[str, Any]) -> Any:
        found = (await client.presence(command["channel"])).clients
        return {name: _info(info) for name, info in found.items()}

    async def _do_presence_stats(self, client: Any, command: dict[str, Any]) -> Any:
        found = await client.presence_stats(command["channel"])
        return {"clients": found.num_clients, "users": found.num_users}

    async def _do_rpc(self, client: Any, command: dict[str, Any]) -> Any:
        data = _packed(client, command["data"])
        return _unpacked((await client.rpc(command["method"], data)).data)

    async def _do_cut(self, client: Any, _: dict[str, Any]) -> None:
        client._conn.transport.abort()

    async def _do_history(self, client: Any, command: dict[str, Any]) -> dict[str, Any]:
        since = command.get("since")
        page = await client.history(
            command["channel"],
            limit=command.get("limit", 0),
            since=since and centrifuge.StreamPosition(**since),
            reverse=command.get("reverse", False),
        )
        return {
            "publications": [_publication(pub) for pub in page.publications],
            "offset": page.offset,
            "epoch": page.epoch,
        }

    async def close(self) -> None:
        for client in self.clients.values():
            await client.disconnect()
            # The SDK leaves its close handshakes behind as tasks.
            await asyncio.gather(
                *getattr(client, "_background_tasks", ()), return_exceptions=True
            )


def _error_fields(error: Exception) -> dict[str, Any]:
    if isinstance(error, centrifuge.ReplyError):
        return {"code": error.code, "message": error.message}
    return {"code": -1, "message": f"{type(error).__name__}: {error}"}


class PythonHost:
    """A host in this process and event loop."""

    def __init__(self) -> None:
        self.name = f"python-{installed_version('centrifuge-python')}"
        self.clients: dict[str, SdkClient] = {}
        self._runner = _Runner(lambda e: self.clients[e["client"]].report(e))

    async def request(self, command: dict[str, Any]) -> Any:
        """Carry out one command; raises SdkError."""
        from tests.harness.sdk import SdkError

        try:
            return await self._runner.carry_out(command)
        except Exception as error:
            raise SdkError(**_error_fields(error)) from error

    async def close(self) -> None:
        """End all clients."""
        await self._runner.close()


async def _main(version: str) -> None:
    installed = installed_version("centrifuge-python")
    if installed != version:
        sys.exit(f"centrifuge-python is {installed}, not {version}")
    # Its own errors, such as a message it could not handle, must be seen.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)

    def write(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    runner = _Runner(write)
    running: set[asyncio.Task[None]] = set()

    async def answer(command: dict[str, Any]) -> None:
        try:
            write({"id": command["id"], "result": await runner.carry_out(command)})
        except Exception as error:
            write({"id": command["id"], "error": _error_fields(error)})

    reader = asyncio.StreamReader(limit=2**26)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        task = asyncio.create_task(answer(json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
