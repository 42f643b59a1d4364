from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import ReplyError
from service.core.glob_pattern import compile_pattern


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*", ["", "a", "a:b/c"], []),
        ("**", ["", "a:b"], []),
        ("a*", ["a", "ab"], ["", "ba"]),
        ("*a", ["a", "ba", "aa"], ["ab", ""]),
        ("a*b*c", ["abc", "axbxc", "abbcc"], ["ac", "acb", "abcd"]),
        ("*ab*ab*", ["abab", "xabyabz"], ["ab", "aab"]),
        ("?", ["a", "*"], ["", "ab"]),
        ("a?c", ["abc"], ["ac", "abbc"]),
        ("[abc]x", ["ax", "cx"], ["dx", "x"]),
        ("[a-c]x", ["bx"], ["dx", "-x"]),
        ("[!a-c]x", ["dx", "^x"], ["ax", "x"]),
        ("[^a]", ["^", "a"], ["b"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("{a,bc}x", ["ax", "bcx"], ["bx", "x"]),
        ("{a,}x", ["ax", "x"], ["bx"]),
        ("{a,{b,c*}}", ["a", "b", "cd"], ["d"]),
        ("{a,b}{c,d}", ["ac", "bd"], ["ab"]),
        ("a,b", ["a,b"], ["a"]),
        ("\\*", ["*"], ["a", "\\*"]),
        ("\\{a\\}", ["{a}"], ["a"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a|b", ["a|b"], ["a", "b"]),
        ("(a)$", ["(a)$"], ["a"]),
        ("[[&&~~||]", ["[", "&", "~", "|"], ["a"]),
    ],
)
def test_pattern(pattern: str, yes: list[str], no: list[str]) -> None:
    matches = compile_pattern(pattern)
    assert [name for name in yes if not matches(name)] == []
    assert [name for name in no if matches(name)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        "[",
        "[a",
        "[]",
        "[!]",
        "[z-a]",
        "{a",
        "a}",
        "{a,{b}",
        "a\\",
        "x" * 256,
        "{a,b}" * 7,
        f"{{{','.join('a' * 65)}}}",
    ],
)
def test_pattern_refused(pattern: str) -> None:
    with pytest.raises(ReplyError) as refusal:
        compile_pattern(pattern)
    assert refusal.value.error.code == 107


def naive(pattern: str, name: str) -> bool:
    regex = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    return re.fullmatch(regex, name, re.DOTALL) is not None


@given(
    st.text("ab*?", max_size=9),
    st.text("ab\n", max_size=9),
)
def test_pattern_is_what_a_backtracking_one_says(pattern: str, name: str) -> None:
    assert bool(compile_pattern(pattern)(name)) == naive(pattern, name)


@given(st.text("ab*?[]!-{},\\", max_size=30), st.text("ab*?[]!-{},\\", max_size=30))
def test_any_pattern_is_compiled_or_refused(pattern: str, name: str) -> None:
    try:
        compile_pattern(pattern)(name)
    except ReplyError as refusal:
        assert refusal.error.code == 107


def test_hostile_pattern_does_not_stop_the_loop() -> None:
    # A backtracking match of this would take longer than there is time.
    matches = compile_pattern("*a" * 120 + "b")
    began = time.perf_counter()
    for _ in range(100):
        assert not matches("a" * 255)
    assert time.perf_counter() - began < 5.0
