"""Validity of JSON: one table for both twins, after RFC 8259.

The names follow the sections of the RFC; the cases are our own.
"""

import pytest

from tests.speedups.mutants import oracle
from tests.speedups.twins import JSON

VALID = {
    "literals": ["true", "false", "null"],
    "zero": ["0", "-0", "0.0", "-0.0e-0", "0E+1"],
    "numbers": ["1", "-1", "10", "1.5", "1e5", "1E5", "1e+5", "1e-5", "123.456E-78"],
    "long numbers": ["9" * 4300, "-" + "1" * 400, "0." + "0" * 400 + "1", "1e400"],
    "strings": ['""', '"a"', '"\x7f"', '"/"', '"é"', '"€"', '"😀"', '"\u2028"'],
    "escapes": [r'"\""', r'"\\"', r'"\/"', r'"\b\f\n\r\t"', r'"\u0041\uabCD\uFFFF"'],
    "surrogate escapes": [r'"\ud83d\ude00"', r'"\ud800"', r'"\udc00\ud800"'],
    "NUL as escape": [r'"\u0000"'],
    "non-characters": ['"\ufffe"', '"\U0010ffff"', '"\ufeff"'],
    "arrays": ["[]", "[ ]", "[1]", "[1,2]", "[[],[[]]]", '["a",{}]', "[1\n,\r2\t]"],
    "objects": [
        "{}",
        "{ }",
        '{"":0}',
        '{"a":1,"b":[{}]}',
        '{"a":1,"a":2}',
        '{"a"\n:1}',
    ],
    "around": [" 1", "1 ", "\n\r\t 1 \n", "\t[]\r"],
    "depth": ["[" * 100 + "]" * 100, '{"a":' * 100 + "1" + "}" * 100],
    "not depth": ["[" + "[]," * 500 + "1]", '"' + "[" * 500 + '"'],
}

INVALID = {
    "nothing": ["", " ", "\n", "\x00", "\ufeff", "\ufeff1"],
    "words": ["nul", "nulll", "True", "tru", "t", "f", "n", "nan", "undefined", "'a'"],
    "constants": ["NaN", "Infinity", "-Infinity", "[NaN]", '{"a":-Infinity}', "inf"],
    "leading zero": ["00", "01", "-01", "0123", "[01]", "-", "--1", "+1", "- 1"],
    "fraction": ["1.", ".5", "-.5", "1.e5", "0.", "1..2", "1.2.3", "1,5"],
    "exponent": ["1e", "1e+", "1E-", "1e5.5", "e5", "1ee5", "1e+-5", "0x1"],
    "other digits": ["\u0661", "1\u0661", "\uff11", "[²]"],
    "open string": ['"', '"a', '"\\', '"\\"', '"\\u', '"\\u12', '"a\\"', '["a'],
    "control characters": ['"\x00"', '"\x1f"', '"\n"', '"\t"', '"a\rb"', '{"\n":1}'],
    "escapes": [
        r'"\a"',
        r'"\x41"',
        r'"\0"',
        r'"\u"',
        r'"\u123"',
        r'"\u123g"',
        r'"\U0"',
    ],
    "escapes in another alphabet": [
        '"\\u\u0661\u0661\u0661\u0661"',
        '"\\u00é0"',
        '"\\é"',
        '"\\€"',
    ],
    "surrogates": ['"\ud800"', '"\udfff"', '"😀\ud800"', '{"\ud800":1}', "\ud800"],
    "commas": [
        "[,]",
        "[1,]",
        "[,1]",
        "[1,,2]",
        "{,}",
        '{"a":1,}',
        "[1 2]",
        '["a" "b"]',
    ],
    "colons": ['{"a"}', '{"a":}', '{"a" 1}', '{"a"::1}', "{:1}", '["a":1]', '{"a",1}'],
    "keys": ["{1:1}", "{a:1}", "{null:1}", '{["a"]:1}', '{"a":1 "b":2}'],
    "brackets": [
        "[",
        "]",
        "{",
        "}",
        "[}",
        "{]",
        "[1",
        '{"a":1',
        "[[]",
        '{"a":[}',
        "][",
    ],
    "after": [
        "1 2",
        "[]]",
        "{}}",
        "null,",
        "{} x",
        '"a"b',
        "1\x00",
        "{}\x00",
        "1\ufeff",
    ],
    "space": ["\xa01", "\u20031", "[1,\x0b2]", "\x0c1", "1\x85"],
    "comments": ["/**/1", "1//", "[1,#\n2]"],
    "depth": ["[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101, "[" * 100_000],
    "depth of objects in arrays": ['[{"a":' * 51 + "1" + "}]" * 51, '[{"a":' * 50_000],
}

# Malformed alone, well-formed between brackets.
WELL_FORMED = ["[]", "[ ]", "[\n]", "[1,5]"]


def flat(table):
    return [
        pytest.param(text, id=f"{name}-{i}")
        for name, texts in table.items()
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("twin", JSON)
@pytest.mark.parametrize("text", flat(VALID))
def test_valid_text_is_taken_wherever_a_value_may_stand(twin, text):
    value = text.strip(" \t\r\n").replace("\n", "")
    assert oracle(text)
    assert twin.check(text) == value
    assert twin.check(text.encode()) == value
    if value.count("[") + value.count("{") < 90 or value[0] == '"':
        assert twin.scan_array(f"[{text},{text}]") == [value, value]
        assert twin.scan_object(f'{{"a":{text}}}', frozenset("a")) == {"a": value}
        assert twin.scan_commands(f'{{"rpc":{{"data":{text}}}}}') == [
            (0, "rpc", {"data": value})
        ]


@pytest.mark.parametrize("twin", JSON)
@pytest.mark.parametrize("text", flat(INVALID))
def test_malformed_text_is_a_value_error_wherever_it_stands(twin, text):
    assert not oracle(text)
    for whole, call in (
        (text, twin.check),
        (f"[{text}]", twin.scan_array),
        (f'{{"x":{text}}}', lambda whole: twin.scan_object(whole, frozenset("x"))),
        (f'{{"x":{text}}}', lambda whole: twin.scan_object(whole, frozenset())),
        (f'{{"rpc":{{"data":{text}}}}}', twin.scan_commands),
        (f'{{"\\u0061":{text}}}', twin.scan_commands),
    ):
        if whole == f"[{text}]" and whole in WELL_FORMED:
            continue
        with pytest.raises(ValueError):
            call(whole)


@pytest.mark.parametrize("twin", JSON)
@pytest.mark.parametrize(
    "octets",
    [
        b"\xff",
        b'"\xff"',
        b'"\xc3"',
        b'"\xc0\xaf"',  # an overlong solidus
        b'"\xed\xa0\x80"',  # a surrogate
        b'"\xf4\x90\x80\x80"',  # above U+10FFFF
        b"\xef\xbb\xbf{}",  # a byte order mark
        '"a"'.encode("utf-16"),
    ],
)
def test_bytes_that_are_not_utf_8_are_a_value_error(twin, octets):
    for call in (twin.check, twin.scan_commands, twin.scan_array):
        with pytest.raises(ValueError):
            call(octets)


@pytest.mark.parametrize("twin", JSON)
@pytest.mark.parametrize("text", [None, 1, ["{}"], bytearray(b"{}"), memoryview(b"{}")])
def test_only_str_and_bytes_are_scanned(twin, text):
    for call in (twin.check, twin.scan_commands, twin.scan_array):
        with pytest.raises(TypeError):
            call(text)
    with pytest.raises(TypeError):
        twin.scan_object(text, frozenset())


@pytest.mark.parametrize("twin", JSON)
@pytest.mark.parametrize("length", range(40))
def test_every_length_of_string_ends_where_it_ends(twin, length):
    # The compiled side looks at eight bytes at once.
    for filler in ("x", "é", "€", "😀"):
        text = '"' + filler * length + '"'
        assert twin.check(text) == text
        for stop in ("\x00", "\x1f", "\ud800", "\\", "\\u12"):
            for place in {0, length // 2, length}:
                broken = filler * place + stop + filler * (length - place)
                for end in ('"', ""):
                    with pytest.raises(ValueError):
                        twin.check('"' + broken + end)


@pytest.mark.parametrize("twin", JSON)
def test_time_is_linear_in_the_worst_documents(twin):
    # Quadratic time would be minutes for these, and the time-out would end it.
    size = 200_000
    for text in (
        "[]," * 101 + '"' + '\\"' * size,
        '{"' + '\\"' * size,
        '{"a":"' + "\\u" * size,
        "[" + "[]," * size + "]",
        "[" + " " * size + "x",
        "[" + "-" * size,
        '{"rpc":{}}' + " " * size + "x",
    ):
        for call in (twin.check, twin.scan_commands):
            with pytest.raises(ValueError):
                call(text)
