"""Frames and bodies: fields, raw slices and what is refused, on both twins."""

import json

import pytest

from _speedups import COMMANDS
from tests.speedups.twins import JSON

pytestmark = pytest.mark.parametrize("twin", JSON)


def test_a_command_gives_id_method_and_parameters(twin):
    frame = '{"id":2,"publish":{"channel":"ch","data":{"a": [1,2]}}}'
    expected = [(2, "publish", {"channel": "ch", "data": '{"a": [1,2]}'})]
    assert twin.scan_commands(frame) == expected
    assert twin.scan_commands(frame.encode()) == expected


def test_a_frame_has_several_commands_in_order(twin):
    frame = '{"connect":{"token":"t0","name":"js"},"id":1}\n{"send":{"data":0}}\n{}'
    assert twin.scan_commands(frame) == [
        (1, "connect", {"token": "t0", "name": "js"}),
        (0, "send", {"data": "0"}),
        (0, "", {}),
    ]


@pytest.mark.parametrize(
    "frame", ["{}\n", "{} \t\r\n", " \t{}", "{ }", "{\n}", "{}\r", '{"id":0}']
)
def test_space_around_a_command_is_harmless(twin, frame):
    assert twin.scan_commands(frame) == [(0, "", {})]


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "\n",
        " ",
        "{}\n\n",
        "\n{}",
        "{}\n\n{}",
        "{}\n \n{}",
        "{}\n ",
        "{}\n\r\n",
        "{}{}",
        "{} {}",
        "{},{}",
        "[]",
        "[{}]",
        "1",
        "null",
        '"{}"',
        "{}\n1",
        "{}\n{",
    ],
)
def test_what_is_no_frame_is_refused(twin, frame):
    with pytest.raises(ValueError):
        twin.scan_commands(frame)


@pytest.mark.parametrize("number", [0, 1, 9, 10, 2**31, 2**32 - 1])
def test_an_id_of_32_bits_is_taken(twin, number):
    assert twin.scan_commands(f'{{"id":{number}}}') == [(number, "", {})]


@pytest.mark.parametrize(
    "number",
    [
        -1,
        2**32,
        2**63,
        2**64,
        10**19,
        10**30,
        "1.0",
        "1e2",
        "0.5",
        '"1"',
        "null",
        "true",
        "{}",
        "[]",
        "-4294967296",
    ],
)
def test_any_other_id_is_refused(twin, number):
    with pytest.raises(ValueError):
        twin.scan_commands(f'{{"id":{number}}}')


@pytest.mark.parametrize(
    "frame",
    [
        '{"ping":{},"rpc":{}}',
        '{"rpc":{},"rpc":{}}',
        '{"id":1,"id":1}',
        '{"id":0,"id":0}',
        '{"rpc":{"method":"a","method":"a"}}',
        '{"rpc":{"data":1,"data":1}}',
        '{"publish":1}',
        '{"publish":null}',
        '{"publish":[]}',
        '{"publish":"x"}',
    ],
)
def test_two_methods_repeated_keys_and_odd_parameters_are_refused(twin, frame):
    with pytest.raises(ValueError):
        twin.scan_commands(frame)


def test_a_key_with_an_escape_is_unknown_and_still_validated(twin):
    frame = r'{"\u0069d":"x","r\u0070c":1,"rpc":{"d\u0061ta":NO,"data":1,"\n":{}}}'
    assert twin.scan_commands(frame.replace("NO", "[0]")) == [(0, "rpc", {"data": "1"})]
    for bad in ("NO", "01", "[", '"\x00"'):
        with pytest.raises(ValueError):
            twin.scan_commands(frame.replace("NO", bad))


def test_parameters_become_python_objects_and_data_does_not(twin):
    frame = (
        '{"history":{"limit":-1,"since":{"offset":9007199254740993,"epoch":"\\u00e9"},'
        '"reverse":true,"tf":null,"x":1.5,"é€😀":"é€😀","data":null,"a":["\\n",{"data":1}]}}'
    )
    for form in (frame, frame.encode()):
        ((_, _, params),) = twin.scan_commands(form)
        assert params == {
            "limit": -1,
            "since": {"offset": 9007199254740993, "epoch": "é"},
            "reverse": True,
            "tf": None,
            "x": 1.5,
            "é€😀": "é€😀",
            "data": "null",
            "a": ["\n", {"data": 1}],
        }
        assert type(params["limit"]) is int
        assert type(params["x"]) is float


@pytest.mark.parametrize("value", [10**20, -(10**19), "1e400", "-1e999", "[1e400]"])
def test_a_number_out_of_range_is_refused_outside_data(twin, value):
    with pytest.raises(ValueError):
        twin.scan_commands(f'{{"rpc":{{"x":{value}}}}}')
    ((_, _, params),) = twin.scan_commands(f'{{"rpc":{{"data":{value}}}}}')
    assert params == {"data": str(value)}


@pytest.mark.parametrize("number", [0, 10**17, 10**18, 2**63, 2**64 - 1, -(2**63)])
def test_a_number_of_twenty_characters_is_exact(twin, number):
    assert twin.scan_object(f'{{"x":{number}}}', frozenset()) == {"x": number}


@pytest.mark.parametrize(
    "text", [r'"\ud800"', r'"\udfff\ud800"', r'["\uD83D"]', r'{"\udc00":1}']
)
def test_a_lone_surrogate_escape_is_refused_outside_data(twin, text):
    with pytest.raises(ValueError):
        twin.scan_commands(f'{{"rpc":{{"x":{text}}}}}')
    ((_, _, params),) = twin.scan_commands(f'{{"rpc":{{"data":{text}}}}}')
    assert params == {"data": text}


def test_raw_text_loses_newlines_and_what_surrounds_it_but_no_other_space(twin):
    text = ' {"a" : \n[ 1 ,\r\n\t{"x" :\n"\\n" } ] \n}\n'
    assert twin.scan_object(text, frozenset("a")) == {"a": '[ 1 ,\r\t{"x" :"\\n" } ]'}
    assert twin.scan_array(" [ 1 ,\n[2\n] ] ") == ["1", "[2]"]
    assert twin.check("\n[1,\n2]\r\n") == "[1,2]"
    frame = '{"publish":{"data":\n[\n1\n]\n}\n}\n'
    assert twin.scan_commands(frame) == [(0, "publish", {"data": "[1]"})]


@pytest.mark.parametrize("filler", ["x", "é", "€", "😀"])
def test_slices_are_exact_in_each_width_of_text(twin, filler):
    data = f'{{"{filler}":"plain","n":[1,"{filler * 9}"]}}'
    frame = f'{{"rpc":{{"method":"m","data":{data},"{filler}":"plain"}},"id":3}}'
    ((number, method, params),) = twin.scan_commands(frame)
    assert (number, method) == (3, "rpc")
    assert params == {"method": "m", "data": data, filler: "plain"}


def test_an_object_is_split_by_the_keys_asked_for(twin):
    text = '{"a":{"x": 1},"b":{"x": 1},"c":"s"}'
    assert twin.scan_object(text, frozenset(("a", "c"))) == {
        "a": '{"x": 1}',
        "b": {"x": 1},
        "c": '"s"',
    }
    assert twin.scan_object("{}", frozenset()) == {}


@pytest.mark.parametrize("text", ["[]", "1", "{}{}", "{} 1", '{"a":1,"a":1}', ""])
def test_what_is_not_one_object_is_refused(twin, text):
    with pytest.raises(ValueError):
        twin.scan_object(text, frozenset("a"))


@pytest.mark.parametrize("text", ["{}", "1", "[][]", "[1", "[1]]", ""])
def test_what_is_not_one_array_is_refused(twin, text):
    with pytest.raises(ValueError):
        twin.scan_array(text)


@pytest.mark.parametrize(
    ("inside", "call"),
    [
        (98, lambda twin, text: twin.scan_commands(f'{{"rpc":{{"data":{text}}}}}')),
        (98, lambda twin, text: twin.scan_commands(f'{{"rpc":{{"x":{text}}}}}')),
        (99, lambda twin, text: twin.scan_commands(f'{{"\\u0061":{text}}}')),
        (99, lambda twin, text: twin.scan_object(f'{{"a":{text}}}', frozenset("a"))),
        (99, lambda twin, text: twin.scan_object(f'{{"a":{text}}}', frozenset())),
        (99, lambda twin, text: twin.scan_array(f"[{text}]")),
        (100, lambda twin, text: twin.check(text)),
    ],
)
def test_depth_counts_from_the_outermost_container(twin, inside, call):
    call(twin, "[" * inside + "]" * inside)
    with pytest.raises(ValueError):
        call(twin, "[" * (inside + 1) + "]" * (inside + 1))


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ("chat:1", '"chat:1"'),
        ('"\\/', r'"\"\\/"'),
        ("\n\r\t\b\f\x00\x1f\x7f", '"\\n\\r\\t\\b\\f\\u0000\\u001f\x7f"'),
        ("é€😀\u2028", '"é€😀\u2028"'),
        ("é\ud800", r'"\u00e9\ud800"'),
        ("plain text of some length", '"plain text of some length"'),
        ("plain text of some\nlength", r'"plain text of some\nlength"'),
    ],
)
def test_quote_gives_a_json_string(twin, text, quoted):
    assert twin.quote(text) == quoted
    assert json.loads(quoted) == text
    assert twin.check(quoted) == quoted


def test_quote_takes_nothing_but_str(twin):
    for value in (None, 1, b"a"):
        with pytest.raises(TypeError):
            twin.quote(value)


def test_a_publication_leaves_out_what_is_absent(twin):
    join = twin.encode_publication
    assert join("1", 0, None, None) == '{"data":1}'
    assert join('"é"', 7, None, None) == '{"data":"é","offset":7}'
    assert join("1", 0, "{}", None) == '{"data":1,"info":{}}'
    assert join("1", 2**53, "{}", '{"a":"b"}') == (
        '{"data":1,"offset":9007199254740992,"info":{},"tags":{"a":"b"}}'
    )
    assert join("1", 2**63 - 1, '"€"', None) == (
        '{"data":1,"offset":9223372036854775807,"info":"€"}'
    )


def test_a_push_is_joined_at_once(twin):
    join = twin.encode_publication_push
    assert join('"ch"', "1", 0, None, None) == (
        '{"push":{"channel":"ch","pub":{"data":1}}}'
    )
    assert join('"ch"', '"é"', 7, '{"user":"x"}', None) == (
        '{"push":{"channel":"ch","pub":{"data":"é","offset":7,"info":{"user":"x"}}}}'
    )
    assert join('"ch"', "[]", 2**63 - 1, "{}", None) == (
        '{"push":{"channel":"ch","pub":'
        '{"data":[],"offset":9223372036854775807,"info":{}}}}'
    )
    assert join('"ch"', "[]", 1, None, '{"a":"b"}') == (
        '{"push":{"channel":"ch","pub":{"data":[],"offset":1,"tags":{"a":"b"}}}}'
    )


def test_a_push_wraps_a_publication(twin):
    assert twin.encode_push('"ch"', '{"data":1}') == (
        '{"push":{"channel":"ch","pub":{"data":1}}}'
    )
    assert twin.encode_push('"é"', '{"data":"😀"}') == (
        '{"push":{"channel":"é","pub":{"data":"😀"}}}'
    )


def test_a_frame_has_4096_commands_at_most(twin):
    assert twin.scan_commands("\n".join(["{}"] * COMMANDS)) == [(0, "", {})] * COMMANDS
    for frame in ("\n".join(["{}"] * (COMMANDS + 1)), "{}\n" * (COMMANDS + 1)):
        with pytest.raises(ValueError, match="more than 4096 commands"):
            twin.scan_commands(frame)


@pytest.mark.parametrize("number", ["9" * 4301, "-" + "9" * 4300, "0." + "0" * 4299])
def test_a_number_has_4300_characters_at_most(twin, number):
    for text in (number, f'{{"a":[{number}]}}'):
        with pytest.raises(ValueError):
            twin.check(text)
    assert twin.check(number[:-1]) == number[:-1]
    with pytest.raises(ValueError):
        twin.scan_commands(f'{{"rpc":{{"data":{number}}}}}')
    with pytest.raises(ValueError):
        twin.scan_commands(f'{{"rpc":{{"other":{number}}}}}')
