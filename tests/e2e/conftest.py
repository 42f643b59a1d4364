"""The end-to-end suite elsewhere: behind a gateway, and on two processes.

The modules of `AT_GATEWAYS` run in ``make test-slow`` once more behind a gateway with a
DynamoDB table, with HTTP_PROXY integrations and with a Lambda function. The tests named
with a module stay out, for what docs/serverless.md lists; tests/e2e/test_gateway.py
shows what happens instead. `NOT_AT_GATEWAYS` says of each other module what it is about
that a gateway does not have, or does not touch.
"""

from __future__ import annotations

import pytest

AT_GATEWAYS: dict[str, tuple[str, ...]] = {
    "test_attacks": (
        # There are no turns of an event loop that a client could take from others.
        "test_the_last_byte_of_a_large_message_costs_its_address_the_whole",
    ),
    "test_bad_input": (
        # There are no pongs, so that one is no error.
        "test_a_pong_without_a_ping_closes",
        "test_ten_thousand_pongs_in_a_frame",
        # A second subscribe begins anew.
        "test_subscribing_twice_and_one_channel_too_many",
        # Frames end at the gateway, which closes what is binary or too large.
        "test_a_binary_frame_closes",
        "test_a_frame_against_rfc_6455_closes_with_1002",
        "test_a_message_of_megabytes_is_refused_by_its_head",
        "test_a_message_over_the_limit_in_fragments",
        "test_ten_thousand_commands_in_a_frame",
        "test_ten_thousand_publishes_in_a_frame",
        # The gateway writes 128 KiB at most.
        "test_a_publication_of_the_server_api_at_and_over_its_limit",
    ),
    "test_batch_window": (
        # The end of a server closes no connection.
        "test_what_waits_is_written_before_the_server_ends",
        # Without history a publication goes to the rows that there are by then.
        "test_what_waits_comes_before_the_reply_to_an_unsubscribe",
    ),
    "test_cent": (),
    # The list of channels and its counts are those of a process.
    "test_cent_users": ("test_channels_and_info",),
    "test_channel_quota": (),
    "test_credentials": (
        # A token is in no list: its connections end with the next sweep.
        "test_a_revoked_token_is_out_at_once_and_another_is_in",
        # There is no grace for lost connections.
        "test_erasing_a_user_whose_connection_was_lost",
    ),
    "test_hooks_http": (
        # A publication without history waits for no lease, and overtakes others.
        "test_publish",
    ),
    "test_hooks_python": (
        # A publication without history waits for no lease, and overtakes others.
        "test_publish",
    ),
    "test_http_api": (
        # Without history a publication goes to the rows that there are by then.
        "test_publish_skipping_history",
        # The gateway writes 128 KiB at most.
        "test_publish_at_and_over_the_payload_limit",
    ),
    "test_http_api_sdk": (),
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
        "test_unsubscribe_stops_the_delivery_at_once",
        # A client does not hear its own join.
        "test_two_connections_of_one_user",
    ),
    "test_limits": (
        # connections.limit is a process's, and nobody can be asked for a pong.
        "test_five_hundred_connects_leave_a_hundred",
        "test_the_dead_lock_nobody_out_for_longer_than_one_probe",
        "test_an_sdk_that_is_refused_comes_back_until_there_is_room",
    ),
    "test_one_token": (),
    "test_private_authority": (),
    "test_publishers": (),
    "test_reconnect_storm": (),
    "test_refused_credentials": (
        # The address is the one that the gateway saw.
        "test_a_valid_token_is_admitted_where_twenty_bad_ones_came_from",
    ),
    "test_sdk_recovery": (
        # The gateway holds the sockets: the end of a server closes none of them.
        "test_server_killed_and_restarted_on_its_store",
        "test_server_shut_down_and_restarted",
        # Pings are the sweeper's.
        "test_dead_link_is_noticed_by_both_sides",
    ),
    "test_secrets": (
        # Nothing serves there.
        "test_a_start_that_is_refused_quotes_no_secret",
    ),
    "test_token_permissions": (),
    "test_token_refresh": (
        # The list of clients, and the shutdown, are those of a process.
        "test_keys_that_cannot_be_had_let_nobody_in_and_nobody_down",
        "test_keys_that_cannot_be_had_again_and_again_degrade",
        "test_a_shutdown_in_the_middle_of_a_refresh",
        "test_a_key_of_the_issuer_s",
    ),
    "test_thread_sockets": (
        # Typing and cancels are commands of a server that holds sockets.
        "test_typing_reaches_the_other_members_and_ends_with_the_connection",
        "test_typing_stops_by_itself_and_a_live_run_is_never_silent",
        "test_a_member_cancels_a_run_and_a_stranger_does_not",
    ),
    "test_token_subs": (),
    "test_tokens_anonymous": (
        # The list of connections is that of a process.
        "test_absent_null_and_empty_are_anonymous",
    ),
    "test_tokens_sdk": (),
}

OWN = "it names its doors itself"
FILES = "the files, or the command line, of a process"
SOCKETS = "a process that holds its sockets"
HTTP = "HTTP alone, which a gateway does not touch"
SERVERS = "several processes that hold their sockets"

NOT_AT_GATEWAYS = {
    "test_agent_examples": HTTP,
    "test_api_address": HTTP,
    "test_backup": FILES,
    "test_connect_together": SOCKETS,
    "test_counters": SOCKETS,
    "test_deflate": SOCKETS,
    "test_deltas": "deltas, which are not made there",
    "test_drain": SOCKETS,
    "test_dynamodb_down": SOCKETS,
    "test_examples": FILES,
    "test_failing_sends": SOCKETS,
    "test_faults": FILES,
    "test_faults_start": FILES,
    "test_faults_store": FILES,
    "test_frames": SOCKETS,
    "test_full_queue": SOCKETS,
    "test_full_store": FILES,
    "test_gateway": OWN,
    "test_health": HTTP,
    "test_http_api_calls": HTTP,
    "test_http_api_guesses": HTTP,
    "test_http_api_keys": HTTP,
    "test_http_api_schema": HTTP,
    "test_hypercorn": FILES,
    "test_ingest": HTTP,
    # Nor does a client there hear its own join, or speak protobuf.
    "test_joins_together": "joins and leaves that go out together, not one by one",
    "test_liveness": SOCKETS,
    "test_logs": SOCKETS,
    "test_metrics": SOCKETS,
    "test_overload": SOCKETS,
    "test_people_two_servers": SERVERS,
    "test_permissions": FILES,
    "test_protobuf_raw": "protobuf, which is refused there",
    "test_protobuf_sdk": "protobuf, which is refused there",
    "test_real_agents": HTTP,
    "test_relay": HTTP,
    "test_restart_storm": SOCKETS,
    "test_revoked_waiting": SOCKETS,
    "test_rolling_restart": SERVERS,
    "test_runs_schema": HTTP,
    "test_runs_two_servers": HTTP,
    "test_sdk": OWN,
    "test_settings": FILES,
    "test_slow_client": SOCKETS,
    "test_slow_consumers": SOCKETS,
    "test_slow_link": SOCKETS,
    "test_slow_link_sdk": SOCKETS,
    "test_thread_access": HTTP,
    "test_thread_events": HTTP,
    "test_thread_http2": HTTP,
    "test_two_nodes": SERVERS,
    "test_two_servers": SERVERS,
    "test_user_ids": OWN,
}
"""What each other module is about."""

NOT_LAMBDA: dict[str, tuple[str, ...]] = {
    "test_channel_quota": (
        # Rates are counted in each process.
        "test_a_user_creates_few_channels_and_publishes_to_any_number",
    ),
    "test_credentials": (
        # Each environment reads the revocations when its last look is 2 s old.
        "test_a_users_tokens_are_revoked_by_their_time",
        "test_revocations_outlive_the_process",
        "test_an_sdk_whose_token_is_revoked_gets_another",
    ),
    "test_hooks_http": (
        # No server asks the hooks, so none can tell that they fail.
        "test_a_hook_that_keeps_failing_degrades_until_it_answers",
    ),
}
"""What of them a function cannot do, whose environments are processes of their own."""

STORES = {"test_sdk_recovery": ("dynamodb",), "test_thread_sockets": ("dynamodb",)}
"""Other stores of a module than SQLite."""


ON_WORKERS: dict[str, tuple[str, ...]] = {
    # What is published through another process may come after the unsubscribe.
    "test_batch_window": ("test_what_waits_comes_before_the_reply_to_an_unsubscribe",),
    "test_cent": (),
    "test_cent_users": (
        # Two nodes; and another process's rows are a quarter of a second old.
        "test_batch",
        "test_channels_and_info",
        "test_presence_and_stats",
    ),
    "test_deltas": (),
    "test_hooks_python": (),
    "test_http_api": (),
    "test_interleavings": (),
    "test_limits": (),
    "test_one_token": (),
    "test_protobuf_raw": (),
    "test_publishers": (),
    "test_reconnect_storm": (),
    "test_sdk_recovery": (),
    "test_tokens_sdk": (),
}
"""Modules that run on two processes of one SQLite file, too, with clients spread over
both; the tests named stay out, for what docs/workers.md lists. test_sdk.py names its
stores itself."""


ON_NODES: dict[str, tuple[str, ...]] = {
    # What a poll brings is read from the log, which has no requests for deltas.
    "test_deltas": (
        "test_a_broadcast_follows_each_namespace",
        # Without a broker a publication that is not stored stays in its process.
        "test_a_channel_without_history",
    ),
    "test_interleavings": (),
    "test_limits": (),
    "test_sdk_recovery": (),
}
"""Modules of `ON_WORKERS` that run on two servers of one DynamoDB table, too: with a
broker, and with polls alone, where the tests named stay out."""

NOT_NODES: dict[str, tuple[str, ...]] = {
    "test_limits": (
        # On a table connections.limit is of each server by itself.
        "test_five_hundred_connects_leave_a_hundred",
        "test_an_sdk_that_is_refused_comes_back_until_there_is_room",
        # There is no limit that they could share.
        "test_a_developer_opens_a_fourth_tab",
    ),
    "test_sdk_recovery": (
        # Both servers end: what begins again has nothing but the table, as one has.
        "test_server_killed_and_restarted_on_its_store",
        "test_server_shut_down_and_restarted",
        # Each side of a link notices by itself that it is dead.
        "test_dead_link_is_noticed_by_both_sides",
    ),
}
"""Tests of them that stay out with a broker, too."""

WITH_BROKER = {
    "test_thread_sockets": (
        "test_typing_reaches_the_other_members_and_ends_with_the_connection",
        "test_typing_stops_by_itself_and_a_live_run_is_never_silent",
    ),
}
"""Tests of other modules for which a broker is what connects two servers."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Add gateways and two processes to the stores of the tests that run there."""
    module = metafunc.module.__name__.rpartition(".")[2]
    if "backend" not in metafunc.fixturenames:
        return
    name = metafunc.function.__name__
    elsewhere = [*STORES.get(module, ())]
    if name not in AT_GATEWAYS.get(module, (name,)):
        elsewhere.append("http_proxy")
        if name not in NOT_LAMBDA.get(module, ()):
            elsewhere.append("lambda")
    if name in WITH_BROKER.get(module, ()):
        elsewhere.append("dynamodb-valkey")
    if name not in ON_WORKERS.get(module, (name,)):
        elsewhere.append("sqlite-workers")
        if module in ON_NODES and name not in NOT_NODES.get(module, ()):
            elsewhere.append("dynamodb-valkey")
            if name not in ON_NODES[module]:
                elsewhere.append("dynamodb-nodes")
    if elsewhere:
        slow = [pytest.param(each, marks=pytest.mark.slow) for each in elsewhere]
        metafunc.parametrize(
            "backend", ["sqlite", *slow], indirect=True, scope="module"
        )
