"""Hooks over HTTP: endpoints of the application that decide about its clients.

Each call is one POST with a JSON object, as Centrifugo's proxies send it, and one
answer ``{"result":{…}}``, ``{"error":{…}}`` or ``{"disconnect":{…}}``, with any status
of success. Other answers admit nobody, and the reason is logged:

* Unusable: none in time, another status, too many bytes, malformed JSON, none of the
  three fields. The client gets error 100, temporary.
* Wrong: one of the three with a field of a wrong type, or a code that clients would not
  understand. The endpoint would say the same again, so the client gets error 100, not
  temporary.

An error of this module is not reported as the endpoint's; it is raised to the caller.

A connection that was kept may have been closed by the other side. What was sent on it
is sent once more, except an rpc: the endpoint may have carried it out. The other three
hooks are questions, which may be asked twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx
import msgspec
import structlog
from msgspec import UNSET, Raw, UnsetType

from _speedups import check, quote
from service.core.errors import INTERNAL, CloseError, ReplyError, SettingsError
from service.core.fetch import UnusableAnswer, cause_of, fetch, http_client
from service.core.hooks import (
    WRONG_ANSWER,
    ConnectEvent,
    ConnectResult,
    Handlers,
    PublishEvent,
    PublishResult,
    RpcEvent,
    RpcResult,
    ServerSubscription,
    SubscribeEvent,
    SubscribeResult,
    WrongAnswer,
)
from service.core.hooks import Raw as RawPayload
from service.core.json_fields import ServerSubscription as SubscriptionFields
from service.core.json_fields import optional_payload_of, override_of
from service.http.api.context import Integer
from service.http.validation import close_of, error_of
from service.settings import ProxySettings, TlsSettings

__all__ = ["HooksProxy"]

log = structlog.get_logger("steadwire")

# Fields of every request: there is one transport and one encoding.
_ABOUT = '"transport":"websocket","protocol":"json","encoding":"json"'
_IDLE = 30.0  # seconds an unused connection is kept


class _Error(msgspec.Struct):
    code: int
    message: str = ""
    temporary: bool = False


class _Disconnect(msgspec.Struct):
    code: int
    reason: str = ""


class _Envelope(msgspec.Struct):
    result: Raw | UnsetType = UNSET
    error: _Error | None = None
    disconnect: _Disconnect | None = None


class _Connect(msgspec.Struct):
    user: str = ""
    info: Raw | UnsetType = UNSET
    b64info: str | None = None
    data: Raw | UnsetType = UNSET
    b64data: str | None = None
    channels: list[str] | None = None
    expire_at: Integer | None = None
    subs: dict[str, SubscriptionFields] | None = None
    meta: Raw | UnsetType = UNSET


class _Subscribe(SubscriptionFields):
    expire_at: Integer | None = None


class _Publish(msgspec.Struct):
    data: Raw | UnsetType = UNSET
    b64data: str | None = None
    skip_history: bool | None = None


class _Rpc(msgspec.Struct):
    data: Raw | UnsetType = UNSET
    b64data: str | None = None


E = TypeVar("E", bound=ConnectEvent | SubscribeEvent | PublishEvent | RpcEvent)
R = TypeVar("R", bound=msgspec.Struct)
A = TypeVar("A")


class HooksProxy:
    """The endpoints of the settings, called through one HTTP client.

    Args:
        settings: The endpoints.
        tls: The authorities that are trusted.

    Raises:
        SettingsError: The authorities cannot be read.
    """

    def __init__(self, settings: ProxySettings, tls: TlsSettings) -> None:
        self._settings = settings
        self._client = http_client(
            {"Content-Type": "application/json"},
            httpx.Limits(
                max_connections=4 * settings.connections,
                max_keepalive_connections=settings.connections,
                keepalive_expiry=_IDLE,
            ),
            ca_file=tls.ca_file,
            ca_directory=tls.ca_directory,
        )

    def handlers(self, own: Handlers) -> Handlers:
        """Return *own*; a hook that is None there is replaced by its endpoint, if any.

        Raises:
            SettingsError: An endpoint is not a valid URL.
        """
        settings = self._settings
        return Handlers(
            connect=own.connect
            or self._hook(
                "connect", settings.connect, _connect_request, _Connect, _connect_result
            ),
            subscribe=own.subscribe
            or self._hook(
                "subscribe",
                settings.subscribe,
                _channel_request,
                _Subscribe,
                _subscribe_result,
            ),
            publish=own.publish
            or self._hook(
                "publish", settings.publish, _channel_request, _Publish, _publish_result
            ),
            rpc=own.rpc
            or self._hook("rpc", settings.rpc, _rpc_request, _Rpc, _rpc_result),
        )

    async def close(self) -> None:
        """Close the connections; calls in progress fail."""
        await self._client.aclose()

    async def unreachable(self) -> dict[str, str]:
        """Return why endpoints cannot be reached, by the name of the hook.

        Each is asked for its OPTIONS, which changes nothing there; any answer will do.
        """
        reasons: dict[str, str] = {}
        for name, url in self._settings.endpoints.items():
            try:
                async with asyncio.timeout(self._settings.timeout):
                    await self._client.options(url)
            except TimeoutError:
                reasons[name] = f"no answer within {self._settings.timeout} s"
            except (httpx.HTTPError, OSError) as error:
                reasons[name] = cause_of(error)
        return reasons

    def _hook(
        self,
        name: str,
        endpoint: str,
        request_of: Callable[[E], str],
        shape: type[R],
        result_of: Callable[[R, int], A],
    ) -> Callable[[E], Awaitable[A]] | None:
        if not endpoint:
            return None
        try:
            url = httpx.URL(endpoint)
        except httpx.InvalidURL as error:
            raise SettingsError(f"proxy.{name}: {error}") from error
        limit = self._settings.answer_size
        # The time that httpx spends on its own queue grows with the square of its
        # length. One semaphore a hook: slow rpcs must not keep clients from connecting.
        slots = asyncio.Semaphore(self._settings.connections)

        async def hook(event: E) -> A:
            request = request_of(event)
            headers: list[tuple[bytes, bytes]] = []
            if isinstance(event, ConnectEvent):
                headers = [
                    (header.encode(), text.encode("latin-1"))
                    for header, text in event.http_headers.items()
                ]
            repeat = not isinstance(event, RpcEvent)
            try:
                result = await self._call(url, request, headers, slots, repeat=repeat)
                return result_of(_decode(result, shape), limit)
            except UnusableAnswer as failure:
                reason, refusal = str(failure), INTERNAL
            except WrongAnswer as mistake:
                reason, refusal = str(mistake), WRONG_ANSWER
            log.warning("a hook's endpoint failed", hook=name, reason=reason)
            raise ReplyError(refusal)

        return hook

    async def _call(
        self,
        url: httpx.URL,
        request: str,
        headers: Sequence[tuple[bytes, bytes]],
        slots: asyncio.Semaphore,
        *,
        repeat: bool,
    ) -> Raw:
        """Return the result that an endpoint answers with.

        Raises:
            UnusableAnswer: There is no answer.
            WrongAnswer: A field of it is wrong.
            ReplyError: The endpoint answers with an error.
            CloseError: The endpoint ends the connection.
        """
        try:
            async with asyncio.timeout(self._settings.timeout), slots:
                text = await fetch(
                    self._client,
                    "POST",
                    url,
                    limit=self._settings.answer_size,
                    content=request,
                    headers=headers,
                    repeat=repeat,
                )
        except TimeoutError:
            raise UnusableAnswer(
                f"no answer within {self._settings.timeout} s"
            ) from None
        except (httpx.HTTPError, OSError) as error:
            raise UnusableAnswer(cause_of(error)) from None
        try:
            document = check(text)
        except ValueError:
            raise UnusableAnswer("the answer is not JSON") from None
        if not document.startswith("{"):
            raise UnusableAnswer("the answer is not an object")
        envelope = _decode(document, _Envelope)
        refusal, end = envelope.error, envelope.disconnect
        if end is not None:
            close = close_of(end.code, end.reason)
            if close is None:
                raise WrongAnswer(
                    f"disconnect code {end.code} or its reason is not valid"
                )
            raise CloseError(close)
        if refusal is not None:
            row = error_of(refusal.code, refusal.message, temporary=refusal.temporary)
            if row is None:
                raise WrongAnswer(
                    f"error code {refusal.code} or its message is not valid"
                )
            raise ReplyError(row)
        if envelope.result is UNSET or bytes(envelope.result) == b"null":
            raise UnusableAnswer("the answer has no result")
        return envelope.result


def _decode(document: str | Raw, shape: type[R]) -> R:
    try:
        return msgspec.json.decode(document, type=shape)
    except msgspec.ValidationError as error:
        # It names types and the path of known fields; keys and values are not quoted.
        where = "result: " if shape is not _Envelope else ""
        raise WrongAnswer(f"{where}{error}") from None
    except msgspec.DecodeError:
        raise UnusableAnswer("the answer is not JSON") from None


# Requests.


def _connect_request(event: ConnectEvent) -> str:
    extra = "" if event.data is None else f',"data":{event.data}'
    for name in ("token", "name", "version"):
        if value := getattr(event, name):
            extra += f',"{name}":{quote(value)}'
    if event.headers:
        extra += f',"headers":{msgspec.json.encode(event.headers).decode()}'
    return f'{{"client":{quote(event.client)},{_ABOUT}{extra}}}'


def _channel_request(event: SubscribeEvent | PublishEvent) -> str:
    extra = "" if event.data is None else f',"data":{event.data}'
    token = getattr(event, "token", "")
    if token:
        extra += f',"token":{quote(token)}'
    if event.meta is not None:
        extra += f',"meta":{event.meta}'
    return (
        f'{{"client":{quote(event.client)},{_ABOUT},"user":{quote(event.user)},'
        f'"channel":{quote(event.channel)}{extra}}}'
    )


def _rpc_request(event: RpcEvent) -> str:
    extra = "" if event.data is None else f',"data":{event.data}'
    if event.meta is not None:
        extra += f',"meta":{event.meta}'
    return (
        f'{{"client":{quote(event.client)},{_ABOUT},"user":{quote(event.user)},'
        f'"method":{quote(event.method)}{extra}}}'
    )


# Results.


def _connect_result(result: _Connect, limit: int) -> ConnectResult:
    meta = optional_payload_of(result.meta, None)
    if meta is not None and not meta.startswith("{"):
        raise WrongAnswer("meta must be an object")
    return ConnectResult(
        user=result.user,
        info=_payload(result, "info", limit),
        data=_payload(result, "data", limit),
        channels=tuple(result.channels or ()),
        expire_at=result.expire_at or 0,
        subs={
            name: ServerSubscription(
                info=_payload(sub, "info", limit),
                data=_payload(sub, "data", limit),
                override=override_of(sub.override),
            )
            for name, sub in (result.subs or {}).items()
        },
        meta=None if meta is None else RawPayload(meta),
    )


def _subscribe_result(result: _Subscribe, limit: int) -> SubscribeResult:
    return SubscribeResult(
        info=_payload(result, "info", limit),
        data=_payload(result, "data", limit),
        expire_at=result.expire_at or 0,
        override=override_of(result.override),
    )


def _publish_result(result: _Publish, limit: int) -> PublishResult:
    return PublishResult(
        data=_payload(result, "data", limit),
        skip_history=bool(result.skip_history),
    )


def _rpc_result(result: _Rpc, limit: int) -> RpcResult:
    return RpcResult(data=_payload(result, "data", limit))


def _payload(fields: object, name: str, limit: int) -> RawPayload | None:
    try:
        text = optional_payload_of(
            getattr(fields, name), getattr(fields, f"b64{name}"), limit
        )
    except ReplyError:
        raise WrongAnswer(f"b64{name} does not hold JSON in base64") from None
    return None if text is None else RawPayload(text)
