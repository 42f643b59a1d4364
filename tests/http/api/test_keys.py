"""The file of API keys, followed while it changes, on a clock that stands still."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

from service.core.errors import SettingsError
from service.http.api.keys import ApiKeys, open_keys
from service.settings import ApiSettings, Secret, Settings
from tests.clock import VirtualClock


class Request:
    """As much of a request as keys are looked for in."""

    scope: ClassVar[dict[str, Any]] = {"client": ("192.0.2.1", 1), "headers": []}

    def __init__(self, key: str) -> None:
        self._key = key

    def get_header(self, name: str) -> str | None:
        return self._key if name == "x-api-key" else None

    def get_param(self, name: str) -> str | None:
        return None


def entry(name: str) -> str:
    return f'[{name}]\nkey = "{name * 20}"\nread = true\n'


async def admitted(keys: ApiKeys, name: str) -> bool:
    found = await keys.authenticate(Request(name * 20))  # type: ignore[arg-type]
    return found is not None and found.name == name


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(entry("a"))
    return path


@pytest.fixture
def keys(path: Path, clock: VirtualClock) -> ApiKeys:
    settings = Settings(api=ApiSettings(key=Secret("s"), keys_file=str(path)))
    return open_keys(settings, clock)


async def test_a_change_is_seen_a_second_after_the_last_check(
    keys: ApiKeys, path: Path, clock: VirtualClock
) -> None:
    path.write_text(entry("b") + entry("c"))
    clock.advance(0.99)
    assert await admitted(keys, "a")
    assert not await admitted(keys, "b")
    clock.advance(0.01)
    # These calls wait for the check: a key that was removed is refused at once.
    found = await asyncio.gather(*[admitted(keys, name) for name in "abca"])
    assert found == [False, True, True, False]


async def test_a_file_that_goes_away_or_breaks_changes_nothing(
    keys: ApiKeys, path: Path, clock: VirtualClock
) -> None:
    good = path.read_text()
    for broken in (None, b"[a", b"\xff", b"x" * 2_000_000, good.encode() * 2):
        if broken is None:
            path.unlink()
        else:
            path.write_bytes(broken)
        clock.advance(1)
        assert await admitted(keys, "a")
        fault = keys.fault()
        assert fault is not None and not fault.failing
        path.write_text(good)
        clock.advance(1)
        assert await admitted(keys, "a")
        assert keys.fault() is None


async def test_a_file_of_the_same_size_and_time_is_told_by_its_inode(
    keys: ApiKeys, path: Path, clock: VirtualClock
) -> None:
    times = os.stat(path)
    other = path.with_suffix(".new")
    other.write_text(entry("b"))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    clock.advance(1)
    assert await admitted(keys, "b")
    assert not await admitted(keys, "a")


async def test_a_caller_that_gives_up_does_not_stop_the_check(
    keys: ApiKeys, path: Path, clock: VirtualClock
) -> None:
    path.write_text(entry("b"))
    clock.advance(1)
    caller = asyncio.create_task(admitted(keys, "b"))
    await asyncio.sleep(0)
    caller.cancel()
    assert await admitted(keys, "b")


def test_a_file_that_is_not_there_stops_the_start(
    tmp_path: Path, clock: VirtualClock
) -> None:
    settings = Settings(api=ApiSettings(keys_file=str(tmp_path / "none.toml")))
    with pytest.raises(SettingsError, match=r"api\.keys_file: .*No such file"):
        open_keys(settings, clock)


async def test_a_byte_order_mark_is_skipped(
    keys: ApiKeys, path: Path, clock: VirtualClock
) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + entry("b").encode())
    clock.advance(1)
    assert await admitted(keys, "b")
    assert keys.fault() is None
    settings = Settings(api=ApiSettings(keys_file=str(path)))
    assert [key.name for key in open_keys(settings, clock).named] == ["b"]
