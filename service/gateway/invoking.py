"""Asynchronous invocations of our own Lambda function, for work that is handed over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from botocore.configprovider import ConfiguredEndpointProvider
from botocore.session import Session

from service.gateway.events import deliver_event
from service.gateway.http_pool import NoAnswer, NotSent
from service.gateway.signed_calls import SignedCalls

__all__ = ["LambdaInvoker", "invoke_endpoint"]

TIMEOUT = 2.0  # s


class LambdaInvoker:
    """`ports.Invoker` through the API of Lambda.

    Args:
        calls: Of Lambda's API.
        function: Name or ARN of the function.
    """

    def __init__(self, calls: SignedCalls, function: str) -> None:
        self._calls = calls
        self._path = f"/2015-03-31/functions/{quote(function, safe='')}/invocations"

    async def deliver(self, hold: Mapping[str, Any]) -> bool:
        """Let another invocation deliver under *hold*."""
        body = json.dumps(deliver_event(hold)).encode()
        headers = {"X-Amz-Invocation-Type": "Event"}
        try:
            response = await self._calls.call(
                "POST", self._path, body, TIMEOUT, headers
            )
        except NotSent:
            return False
        except NoAnswer:
            return True
        # After 4xx nothing was accepted; a 5xx says nothing.
        return not 400 <= response.status < 500


def invoke_endpoint(session: Session, region: str) -> str:
    """Return the URL of Lambda's API: what the SDKs' variable says, or the region's.

    Args:
        session: Reads ``AWS_ENDPOINT_URL_LAMBDA``, ``AWS_ENDPOINT_URL`` and files.
        region: AWS region; "" takes botocore's.
    """
    provider = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name="lambda",
    )
    own = provider.provide()
    region = region or session.get_config_variable("region") or ""
    return own or f"https://lambda.{region}.amazonaws.com"
