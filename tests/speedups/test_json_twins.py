"""The codec's twins and the standard library, on generated input."""

import json
import os
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.speedups.fuzzing import fuzz
from tests.speedups.mutants import NOISE, compare, mutants, oracle, outcome
from tests.speedups.twins import JSON, json_c, json_py, needs_compiled

DOCUMENTS = int(os.environ.get("FUZZ_DOCUMENTS", "200000"))

text = st.text(st.characters(exclude_categories=[]))  # surrogates too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=20,
)
layouts = st.sampled_from([None, 0, 1, "\t"])
soup = st.text(st.sampled_from(NOISE))


def finite(value):
    return value not in (float("inf"), float("-inf"))


@st.composite
def documents(draw):
    value = draw(values.filter(finite))
    ascii_only = draw(st.booleans())
    return json.dumps(value, ensure_ascii=ascii_only, indent=draw(layouts))


@st.composite
def frames(draw):
    lines = []
    for _ in range(draw(st.integers(1, 3))):
        params = draw(st.dictionaries(text | st.just("data"), values))
        names = st.sampled_from(["rpc", "publish", "é", "x" * 20]) | text
        command = {draw(names): params}
        command["id"] = draw(st.integers(-1, 2**33))
        ascii_only = draw(st.booleans())
        lines.append(json.dumps(command, ensure_ascii=ascii_only, indent=draw(layouts)))
    return draw(st.sampled_from(["\n", "\n", " \n", "\n\n", ""])).join(lines)


@needs_compiled
@given(documents() | soup | frames())
@example("[1e400]")
def test_the_twins_and_the_standard_library_agree(document):
    compare(json_c, json_py, document)


@needs_compiled
@given(st.binary())
def test_the_twins_agree_on_bytes(octets):
    for name in ("check", "scan_commands", "scan_array"):
        ours = outcome(getattr(json_c, name), octets)
        assert repr(ours) == repr(outcome(getattr(json_py, name), octets))


@needs_compiled
@given(text)
def test_the_twins_quote_alike(value):
    quoted = json_py.quote(value)
    assert json_c.quote(value) == quoted
    assert json.loads(quoted) == json.loads(json.dumps(value))
    assert "\n" not in quoted
    quoted.encode()


@needs_compiled
@given(
    documents(),
    st.integers(0, 2**63 - 1),
    st.none() | documents(),
    st.none() | documents(),
    text,
)
def test_the_twins_join_alike(data, offset, info, tags, channel):
    body = json_py.encode_publication(data, offset, info, tags)
    assert json_c.encode_publication(data, offset, info, tags) == body
    channel = json_py.quote(channel)
    push = json_py.encode_push(channel, body)
    assert json_c.encode_push(channel, body) == push
    at_once = (channel, data, offset, info, tags)
    assert json_py.encode_publication_push(*at_once) == push
    assert json_c.encode_publication_push(*at_once) == push
    shown = json.loads(push)["push"]["pub"]
    assert shown.get("offset", 0) == offset
    assert ("info" in shown, "tags" in shown) == (info is not None, tags is not None)


@pytest.mark.parametrize("twin", JSON)
@given(document=documents())
def test_raw_text_means_what_the_document_means(twin, document):
    if oracle(document):  # a lone surrogate may have been generated unescaped
        raw = twin.check(document)
        assert "\n" not in raw
        assert repr(json.loads(raw)) == repr(json.loads(document))
        assert twin.check(raw) == raw


@needs_compiled
def test_five_thousand_mutants_show_no_disagreement():
    valid = sum(
        compare(json_c, json_py, each) for each in mutants(random.Random(5), 5000)
    )
    assert 2000 <= valid <= 4000


@needs_compiled
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_mutants_show_no_disagreement(capsys):
    seed = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(2**32)))
    with capsys.disabled():
        print(f"\nFUZZ_SEED={seed} FUZZ_DOCUMENTS={DOCUMENTS}", flush=True)
        documents = mutants(random.Random(seed), DOCUMENTS)
        valid = sum(compare(json_c, json_py, document) for document in documents)
        print(f"{valid} valid, {DOCUMENTS - valid} malformed, 0 disagreements")
    assert valid >= 0.4 * DOCUMENTS
    assert valid <= 0.9 * DOCUMENTS


@needs_compiled
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_coverage_guided_fuzzing_finds_no_disagreement(capsys, tmp_path):
    pytest.importorskip("atheris")
    last = fuzz("fuzz_json.py", 400, tmp_path)
    with capsys.disabled():
        print("\n" + last)


@needs_compiled
def test_the_types_were_applied():
    # A `cdef` function is no attribute of its module; in Python it would be one.
    for name in ("_scan", "_commands", "_word", "_around"):
        assert not hasattr(json_c, name)
    assert json_c.__all__ == json_py.__all__
