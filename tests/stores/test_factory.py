"""The store that the settings name, and what is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.metrics import Metrics
from service.metrics.exposition import text
from service.settings import Settings, StoreSettings
from service.stores.dynamodb.store import DynamodbStore
from service.stores.factory import add_store_metrics, make_store
from service.stores.sqlite.store import SqliteStore


@pytest.mark.parametrize(
    ("backend", "kind"), [("sqlite", SqliteStore), ("dynamodb", DynamodbStore)]
)
async def test_each_backend_has_its_store_and_all_metrics(clock, backend, kind):
    settings = Settings(store=StoreSettings(backend=backend))
    store = make_store(settings, clock)
    assert type(store) is kind
    metrics = Metrics()
    add_store_metrics(metrics, store)
    shown = text(metrics).decode()
    for name in (
        "store_reads_total 0",
        'store_bytes{part="used"} 0',
        'breaker_state{state="closed"} 1',
        "breaker_openings_total 0",
        "store_attempts_total 0",
        "store_repeats_total 0",
    ):
        assert name in shown
    await store.close()


@pytest.mark.requirement("L23")
def test_boto3_is_not_imported_for_sqlite():
    code = (
        "import sys, service.app; from service.stores.factory import make_store;"
        "from service.settings import Settings;"
        "from service.core.clock import SystemClock;"
        "make_store(Settings(), SystemClock()); assert 'botocore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
