"""Glob patterns over channel names.

``*`` and ``**`` match any characters, ``?`` one, ``[abc]`` and ``[a-z]`` one of those,
``[!abc]`` one of the others, ``{one,two}`` either; a backslash makes the next character
literal. For each character of the name, matching takes time linear in the length of
the pattern, so no pattern can stop the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from service.core.errors import BAD_REQUEST, ReplyError

__all__ = ["compile_pattern"]

LONGEST = 255  # characters of a pattern, as of a name
ALTERNATIVES = 64  # of one pattern, once its braces are expanded

_Matcher = Callable[[str], object]

# A backslash pair, a set, or one character.
_TOKEN = re.compile(r"\\(.)|\[(!?)([^\]]+)\]|(.)", re.DOTALL)
_SET = re.compile(r"(.)-(.)|(.)", re.DOTALL)


def compile_pattern(pattern: str) -> _Matcher:
    """Return a function that tells whether a name matches *pattern*.

    Raises:
        ReplyError: 107 if it is malformed, too long, or has too many alternatives.
    """
    if len(pattern) > LONGEST:
        raise ReplyError(BAD_REQUEST)
    try:
        whole = "|".join(_regex(each) for each in _expand(pattern))
        return re.compile(whole, re.DOTALL).fullmatch
    except (ValueError, re.error):
        raise ReplyError(BAD_REQUEST) from None


def _expand(pattern: str) -> list[list[str]]:
    """Return the alternatives of *pattern*, each as a list of tokens."""
    stack: list[tuple[list[list[str]], list[list[str]]]] = []
    done: list[list[str]] = []  # finished alternatives of the innermost brace
    current: list[list[str]] = [[]]
    for match in _TOKEN.finditer(pattern):
        token = match[0]
        if token == "{":
            stack.append((done, current))
            done, current = [], [[]]
        elif token == "," and stack:
            done, current = done + current, [[]]
        elif token == "}":
            if not stack:
                raise ValueError("a brace that is not opened")
            inner = done + current
            done, before = stack.pop()
            current = [left + right for left in before for right in inner]
        else:
            current = [[*tokens, token] for tokens in current]
        if len(current) + len(done) > ALTERNATIVES:
            raise ValueError(f"more than {ALTERNATIVES} alternatives")
    if stack:
        raise ValueError("a brace that is not closed")
    return current


def _regex(tokens: list[str]) -> str:
    parts: list[str] = [""]
    for token in tokens:
        if token == "*":
            parts.append("")
        else:
            parts[-1] += _one(token)
    if len(parts) == 1:
        return parts[0]
    # Each part is matched at its first occurrence, without backtracking: characters
    # that a later occurrence would skip are matched by the star after it.
    first, *middle, last = parts
    atoms = "".join(f"(?>.*?{part})" for part in middle if part)
    return f"{first}{atoms}.*{last}"


def _one(token: str) -> str:
    """Return the regular expression of a token other than a star."""
    if token == "?":
        return "."
    if token in ("[", "\\"):
        raise ValueError(f"{token} without its end")
    if token.startswith("\\"):
        return re.escape(token[1])
    if not token.startswith("["):
        return re.escape(token)
    negated = token.startswith("[!")
    body = ""
    for low, high, single in _SET.findall(token[2 if negated else 1 : -1]):
        if low:
            body += f"{re.escape(low)}-{re.escape(high)}"
        else:
            body += re.escape(single)
    return f"[{'^' if negated else ''}{body}]"
