"""The end-to-end suite behind a gateway: what of it runs there, and what does not hold.

The modules of `AT_GATEWAYS` run in ``make test-slow`` once more behind HTTP_PROXY
integrations, with a DynamoDB table. The function's processes have no hooks in Python,
which most of them need; tests/e2e/test_sdk.py runs with both integrations. The
tests named with a module stay out, for what docs/serverless.md lists;
tests/e2e/test_gateway.py shows what happens instead. Modules that are not named are
about a process that holds its sockets, or have not been run there yet.
"""

from __future__ import annotations

import pytest

AT_GATEWAYS: dict[str, tuple[str, ...]] = {
    # The list of channels and its counts are those of a process.
    "test_cent_users": ("test_channels_and_info",),
    "test_hooks_python": (
        # A publication without history waits for no lease, and overtakes others.
        "test_publish",
    ),
    "test_http_api_users": (
        "test_channels_by_pattern",
        "test_info_counts",
        # A client does not hear its own join.
        "test_subscribe_overrides_the_namespace",
        # A second subscribe is no error there, so it cannot tell which way they met.
        "test_unsubscribe_while_the_subscribe_is_under_way",
    ),
    "test_interleavings": (
        # Subscribing again in the middle of a recovery closes the connection.
        "test_subscribe_and_unsubscribe_pipelined_ten_times",
        # A client does not hear its own join.
        "test_two_connections_of_one_user",
    ),
    "test_tokens_anonymous": (),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Add a gateway to the stores of the tests that run there."""
    module = metafunc.module.__name__.rpartition(".")[2]
    left_out = AT_GATEWAYS.get(module)
    if left_out is None or "backend" not in metafunc.fixturenames:
        return
    if metafunc.function.__name__ in left_out:
        return
    gateway = pytest.param("http_proxy", marks=pytest.mark.slow)
    metafunc.parametrize("backend", ["sqlite", gateway], indirect=True, scope="module")
