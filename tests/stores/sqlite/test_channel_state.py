"""The writer's cache of channel states: what it reads, and what it forgets."""

from __future__ import annotations

import random

import pytest

from service.core.ports import History
from service.settings import StoreSettings
from service.stores.sqlite.channel_state import CHANNELS, ChannelStateCache
from service.stores.sqlite.schema import open_files
from service.stores.sqlite.space import Space
from tests.stores.support import CHAT

MEMORY = StoreSettings(path=":memory:")


@pytest.fixture
def files():
    files = open_files(MEMORY, random.Random(1))
    yield files
    files.close()


@pytest.fixture
def cache(files):
    cache = ChannelStateCache(
        files.writer, random.Random(2), Space(files.writer, MEMORY, {})
    )
    cache.prepare()
    return cache


def test_a_new_channel_begins_at_its_unpublished_epoch(cache):
    state = cache.add("a", CHAT)
    assert (state.new, state.top, state.first) == (True, 0, 1)
    assert cache.add("b", CHAT).id == state.id + 1
    assert cache.find("a") is None


def test_the_older_half_is_dropped_above_the_bound_and_not_within_a_batch(cache):
    for number in range(CHANNELS + 1):
        cache.add(f"c{number}", CHAT)
    assert len(cache.states) == CHANNELS + 1
    cache.prepare()
    assert len(cache.states) == CHANNELS // 2 + 1
    assert f"c{CHANNELS}" in cache.states
    assert "c0" not in cache.states


def test_a_transaction_that_fails_is_undone_and_everything_forgotten(cache, files):
    cache.add("a", CHAT)
    with pytest.raises(ZeroDivisionError), cache.transaction():
        cache.execute(
            "INSERT INTO channels VALUES (1, 'b', 'e', 7, 5, 1000, 9000, 0, 0, '')"
        )
        raise ZeroDivisionError
    assert cache.states == {}
    assert not files.writer.in_transaction
    assert cache.find("b") is None
    cache.prepare()
    assert cache.next_id == 1


def test_times_that_changed_are_written_with_the_next_append(cache):
    cache.execute(
        "INSERT INTO channels VALUES (1, 'b', 'e', 7, 5, 1000, 9000, 0, 0, '')"
    )
    same = cache.add("b", History(10, 1.0, 9.0))
    assert (same.new, same.changed, same.top, same.first) == (False, False, 7, 8)
    assert cache.add("b", History(10, 2.0, 9.0)).changed
