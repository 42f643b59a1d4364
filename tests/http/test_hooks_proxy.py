"""Hooks over HTTP without a server: what is the endpoint's fault, and what is ours."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from service.core.errors import ReplyError
from service.core.hooks import ConnectEvent, Handlers, RpcEvent, RpcResult
from service.core.model import ClientId, UserId
from service.http import hooks_proxy
from service.http.hooks_proxy import HooksProxy
from service.settings import ProxySettings, TlsSettings

ENDPOINTS = ProxySettings(
    connect="http://localhost/c", rpc="http://localhost/r", publish="http://localhost/p"
)
EVENT = ConnectEvent(ClientId("c"))


def hooks() -> Handlers:
    return HooksProxy(ENDPOINTS, TlsSettings()).handlers(Handlers())


def answering(answer: bytes | Exception, patches: pytest.MonkeyPatch) -> None:
    """Let every endpoint answer this."""

    async def fetch(*args: Any, **options: Any) -> bytes:
        if isinstance(answer, Exception):
            raise answer
        return answer

    patches.setattr(hooks_proxy, "fetch", fetch)


def test_python_wins_over_endpoints_hook_by_hook() -> None:
    async def rpc(event: RpcEvent) -> RpcResult:
        return RpcResult()

    handlers = HooksProxy(ENDPOINTS, TlsSettings()).handlers(Handlers(rpc=rpc))
    assert handlers.rpc is rpc
    assert handlers.publish is not None
    assert handlers.connect is not None and handlers.subscribe is None


@pytest.mark.parametrize(
    ("answer", "temporary"),
    [
        (b"[", True),
        (b"{}", True),
        (b"[]", True),
        (b'{"result":null}', True),
        (b'{"result":{"user":1}}', False),
        (b'{"result":{"b64info":"!"}}', False),
        (b'{"result":{"meta":[]}}', False),
        (b'{"result":{"subs":{"c":{"b64data":"e30"}}}}', False),
        (b'{"error":{"code":99}}', False),
        (b'{"disconnect":{"code":2999}}', False),
        (httpx.ReadError("reset"), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
    ],
)
async def test_an_answer_that_admits_nobody_is_the_endpoints_fault(
    answer: bytes | Exception, temporary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(answer, monkeypatch)
    connect = hooks().connect
    assert connect is not None
    with capture_logs() as logs, pytest.raises(ReplyError) as refusal:
        await connect(EVENT)
    assert refusal.value.error.code == 100
    assert refusal.value.error.temporary is temporary
    assert [entry["event"] for entry in logs] == ["a hook's endpoint failed"]


@pytest.mark.parametrize("step", ["quote", "ConnectResult", "override_of"])
async def test_an_error_of_ours_is_not(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise ValueError("ours")

    answering(b'{"result":{"user":"ann","subs":{"c":{}}}}', monkeypatch)
    monkeypatch.setattr(hooks_proxy, step, fail, raising=False)
    connect = hooks().connect
    assert connect is not None
    with capture_logs() as logs, pytest.raises(ValueError, match="ours"):
        await connect(EVENT)
    assert logs == []


async def test_a_wrong_use_of_the_http_client_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(httpx.StreamConsumed(), monkeypatch)
    rpc = hooks().rpc
    assert rpc is not None
    with capture_logs() as logs, pytest.raises(httpx.StreamConsumed):
        await rpc(RpcEvent(ClientId("c"), UserId("u"), "m", None))
    assert logs == []
