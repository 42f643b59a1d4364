"""Calls of an AWS HTTP API, signed with botocore and sent once.

boto3 is not used for these: a process makes some 600 calls a second with it, and one
publication may need a thousand. Credentials are found as boto3 finds them. They may be
renewed by a request or from a file, so that is done in a thread, at most once in
`FRESH` seconds.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path
from botocore.session import Session

from service.core.errors import StartupError
from service.core.ports import Clock
from service.gateway.http_pool import HttpPool, NotSent, Response

__all__ = ["SignedCalls"]

FRESH = 60.0  # s; botocore renews credentials 10 to 15 minutes before they end


class SignedCalls:
    """Calls of one API.

    Args:
        url: Of the API; its path comes before that of each call.
        service: The name that signatures are for, as ``execute-api``.
        region: AWS region; "" takes botocore's.
        session: Finds the credentials.
        clock: Of timeouts.
    """

    def __init__(
        self, url: str, service: str, region: str, session: Session, clock: Clock
    ) -> None:
        self._url = url.rstrip("/")
        parts = urlsplit(self._url)
        self._host = parts.netloc
        self._path = parts.path
        self._service = service
        self._region = region
        self._session = session
        self._clock = clock
        self._pool = HttpPool(url, clock, self._tls)
        self._signer: SigV4Auth | None = None
        self._fresh_until = 0.0
        self._renewal = asyncio.Lock()

    async def start(self) -> None:
        """Find the credentials.

        Raises:
            StartupError: There are none, or no region.
        """
        try:
            await self._renew()
        except NotSent as error:
            raise StartupError(f"{self._service} cannot be called: {error}") from error

    async def close(self) -> None:
        """Close the connections; nothing is called after this."""
        await self._pool.close()

    def drop_idle(self) -> None:
        """Close the idle connections: this process may have been frozen."""
        self._pool.drop_idle()

    async def call(
        self,
        method: str,
        path: str,
        body: bytes,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Sign and send one request, once.

        Args:
            method: HTTP method.
            path: Below the URL of the API, encoded, with its slash.
            body: The whole body.
            timeout: Seconds until it is given up.
            headers: More headers; they are signed too.

        Raises:
            NotSent: It has no effect.
            NoAnswer: It may have had its effect, or may still.
        """
        signer = self._signer
        if signer is None or self._clock.now() >= self._fresh_until:
            signer = await self._renew()
        request = AWSRequest(
            method, self._url + path, data=body, headers=dict(headers or {})
        )
        signer.add_auth(request)
        signed = [("Host", self._host), *request.headers.items()]
        return await self._pool.request(
            method, self._path + path, signed, body, timeout
        )

    async def _renew(self) -> SigV4Auth:
        async with self._renewal:
            if self._signer is None or self._clock.now() >= self._fresh_until:
                try:
                    found = await asyncio.to_thread(self._credentials)
                except (BotoCoreError, OSError) as error:
                    raise NotSent(type(error).__name__) from error
                self._signer = SigV4Auth(found, self._service, self._region)
                self._fresh_until = self._clock.now() + FRESH
            return self._signer

    def _credentials(self) -> ReadOnlyCredentials:
        if not self._region:
            self._region = self._session.get_config_variable("region") or ""
        if not self._region:
            raise NotSent("no region: set dynamodb.region or AWS_DEFAULT_REGION")
        credentials = self._session.get_credentials()
        if credentials is None:
            raise NotSent("no credentials")
        return credentials.get_frozen_credentials()

    def _tls(self) -> ssl.SSLContext:
        own = self._session.get_config_variable("ca_bundle")
        return ssl.create_default_context(cafile=own or get_cert_path(True))
