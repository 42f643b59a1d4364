from __future__ import annotations

import pytest

from service.http.validation import close_of, error_of


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (3000, ""),
        (4999, "x" * 123),
        (3503, "ß" * 61),
        (4000, "123 and more"),
        (4000, "nul"),
    ],
)
def test_close(code: int, reason: str) -> None:
    close = close_of(code, reason)
    assert close is not None
    assert (close.code, close.reason) == (code, reason)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (2999, "a"),
        (5000, "a"),
        (1000, "a"),
        (0, "a"),
        (4000, "x" * 124),
        (4000, "ß" * 62),
        (4000, "123"),
        (4000, " 123 "),
        (4000, "-1.5e3"),
        (4000, "null"),
        (4000, "NaN"),
        (4000, "{}"),
        (4000, "[" * 10_000),
        (4000, '"a"'),
        (4000, "a\n"),
        (4000, "a\x00"),
        (4000, "\ud800"),
    ],
)
def test_close_refused(code: int, reason: str) -> None:
    assert close_of(code, reason) is None


@pytest.mark.parametrize("code", [100, 400, 1999])
def test_error(code: int) -> None:
    error = error_of(code, 'a "quoted" text', temporary=True)
    assert error is not None
    assert (error.code, error.message, error.temporary) == (
        code,
        'a "quoted" text',
        True,
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [(99, "a"), (2000, "a"), (-1, "a"), (400, "a\n"), (400, "x" * 256)],
)
def test_error_refused(code: int, message: str) -> None:
    assert error_of(code, message, temporary=False) is None
