"""Stores that a server under test can have, by name."""

from __future__ import annotations

from collections.abc import Callable

import boto3

from service.stores.dynamodb.table import LEASES, definition
from tests.harness.emulators import running
from tests.harness.valkey import shared

INTEGRATION = "INTEGRATION_OF_TESTS"
"""Key among a server's variables: ``http`` or ``lambda``; without it clients connect to
the server itself."""

ENVIRONMENTS = "ENVIRONMENTS_OF_TESTS"
"""Key among a server's variables: how many environments a function has at most."""

PROCESSES = "PROCESSES_OF_TESTS"
"""Key among a server's variables: two processes are to be on its store."""

__all__ = [
    "ALL",
    "BACKENDS",
    "ENVIRONMENTS",
    "GATEWAYS",
    "INTEGRATION",
    "PAIRS",
    "PROCESSES",
    "Backend",
]

Backend = Callable[[], dict[str, str]]
"""Returns the STEADWIRE_* variables, and others, of a server with a fresh store."""


def _sqlite() -> dict[str, str]:
    return {}


def _dynamodb(*, leases: bool = False) -> dict[str, str]:
    emulator = running("ministack")
    settings = emulator.settings()
    boto = boto3.session.Session().client(
        "dynamodb",
        region_name=settings.region,
        endpoint_url=settings.endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    boto.create_table(**definition(settings))
    if leases:
        boto.put_item(TableName=settings.table, Item=LEASES)
    boto.close()
    return {
        **emulator.credentials,
        "STEADWIRE_STORE_BACKEND": "dynamodb",
        "STEADWIRE_DYNAMODB_TABLE": settings.table,
        "STEADWIRE_DYNAMODB_REGION": settings.region,
        "STEADWIRE_DYNAMODB_ENDPOINT": settings.endpoint,
    }


def _behind(integration: str) -> Backend:
    return lambda: {**_dynamodb(leases=True), INTEGRATION: integration}


BACKENDS: dict[str, Backend] = {"sqlite": _sqlite, "dynamodb": _dynamodb}

GATEWAYS: dict[str, Backend] = {
    "http_proxy": _behind("http"),
    "lambda": _behind("lambda"),
}
"""Servers behind an API Gateway, by its integration."""

PAIRS: dict[str, Backend] = {
    "sqlite-workers": lambda: {"STEADWIRE_STORE_SHARED_BY": "tests", PROCESSES: "2"},
    "dynamodb-nodes": lambda: {**_dynamodb(), PROCESSES: "2"},
    "dynamodb-valkey": lambda: {**_dynamodb(), **shared().settings, PROCESSES: "2"},
}
"""Two processes on one store, with clients spread over both."""

ALL = {**BACKENDS, **GATEWAYS, **PAIRS}
"""Every store that a server can have."""
