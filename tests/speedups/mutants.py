"""JSON documents, most of them slightly broken, for the twins to disagree about."""

import json
import random
import re

SEEDS = [
    '{"id":17,"publish":{"channel":"chat:room-42","data":{"type":"token","seq":118,'
    '"text":"so far","final":false,"usage":{"in":812,"out":[1,2.5e3,-0,0.1E-7]}}}}',
    '{"connect":{"token":"t0","name":"js","subs":{"a":{"recover":true,"offset":4}},'
    '"data":null},"id":1}',
    '{"id":2,"subscribe":{"channel":"é","data":"x\\u00e9\\n\\"\\\\\\/\\b\\f\\r\\t"}}',
    '{"id":3,"history":{"channel":"ch€","limit":-1,"since":{"offset":9,"epoch":"e"}}}',
    '{"id":4294967295,"rpc":{"method":"m😀","data":[{},[],[[]],"",{"":0}]}}',
    '{"id":5,"rpc":{"method":"\\ud83d\\ude00","data":"\\ud800","n":9007199254740993}}',
    '{"send":{"data":123456789012345678901234567890,"n":12345678901234567890}}',
    '{ "id" : 6 ,\n "presence" : { "channel" : "a" ,\t"data" : [ 1 ,\n2 ] } }',
    '{"id":7,"refresh":{"\\u0064ata":{"a":1},"token":"aaaaaaaabbbbbbbbccccccccddddd"}}',
    "{}",
    '[true,false,null,"a",-1.5,{"b":[]}]',
    '{"data":' + "[" * 98 + "1" + "]" * 98 + ',"x":0}',
    '{"data":' + '{"a":[' * 49 + "[1]" + "]}" * 49 + "}",
    '"a string"',
    "-12.5e+10",
]
SCALARS = ["0", "-1", "1.5", "1e9", "true", "false", "null", '""', '"a"', '"é"', "[]"]
SCALARS += ["{}", '"\\u20ac"', '"😀"', "12345678901234567890", "1E400", "-0", "[[]]"]
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[][{},:]')
NOISE = (
    '{}[]",:\\/ \n\r\t0123456789-+.eEutrfalsnINdi\x00\x1f\x7féĀ€😀\ud800\udc00\ufeff'
)
WORDS = "abcdefghij ABC 0123 éä€ 漢字 😀"


def mutants(rng: random.Random, count: int):
    """Yield *count* documents; about half of them are valid JSON."""
    for _ in range(count):
        text = rng.choice(SEEDS)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            text = rng.choice(MUTATIONS)(rng, text)
        yield text


def _tokens(text):
    return list(TOKEN.finditer(text))


def _noise(rng, text):
    at = rng.randrange(len(text) + 1)
    width = rng.choice((0, 0, 1, 1, 2))
    return text[:at] + rng.choice(NOISE) + text[at + width :]


def _cut(rng, text):
    at = rng.randrange(len(text) + 1)
    return text[:at] + text[at + rng.choice((1, 1, 2, 8)) :]


def _copy(rng, text):
    start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    at = rng.randrange(len(text) + 1)
    return text[:at] + text[start : min(end, start + 40)] + text[at:]


def _space(rng, text):
    tokens = _tokens(text)
    if not tokens:
        return text
    at = rng.choice((rng.choice(tokens).start(), rng.choice(tokens).end()))
    return text[:at] + rng.choice((" ", "\n", "\t", "\r", " \n ")) + text[at:]


def _scalar(rng, text):
    tokens = [token for token in _tokens(text) if token[0][0] not in '{}[],:"']
    if not tokens:
        return text
    token = rng.choice(tokens)
    return text[: token.start()] + rng.choice(SCALARS) + text[token.end() :]


def _string(rng, text):
    tokens = [token for token in _tokens(text) if token[0][0] == '"']
    if not tokens:
        return text
    token = rng.choice(tokens)
    words = "".join(rng.choices(WORDS, k=rng.randrange(24)))
    quoted = json.dumps(words, ensure_ascii=rng.random() < 0.3)
    return text[: token.start()] + quoted + text[token.end() :]


def _wrap(rng, text):
    return rng.choice(("[%s]", '{"a":%s}', '{"id":1,"rpc":%s}', " %s\n")) % text


MUTATIONS = [_noise, _noise, _cut, _copy, _space, _space, _scalar, _string, _wrap]
MUTATIONS += [_scalar, _string]


def oracle(text: str) -> bool:
    """Say whether the standard library takes *text*, by the rules of the twins."""
    try:
        text.encode()
        value = json.loads(
            text,
            parse_int=str,  # JSON has no limit on digits
            parse_constant=_refuse,
            object_pairs_hook=lambda pairs: [value for _, value in pairs],
        )
    except (ValueError, RecursionError):
        return False
    level = [value]
    depth = 0
    while level := [item for item in level if isinstance(item, list)]:
        depth += 1
        level = [inner for item in level for inner in item]
    return depth <= 100


def _refuse(name):
    raise ValueError(name)


def compare(compiled, interpreted, text: str) -> bool:
    """Hold the twins and the oracle against each other; return the verdict.

    Raises:
        AssertionError: If they disagree.
    """
    raw = frozenset(("data", "publish", "a"))
    valid = outcome(interpreted.check, text) is not ValueError
    assert valid is oracle(text), ("the standard library disagrees", text)
    for name, more in (
        ("check", ()),
        ("scan_commands", ()),
        ("scan_object", (raw,)),
        ("scan_array", ()),
    ):
        ours = outcome(getattr(compiled, name), text, *more)
        twin = outcome(getattr(interpreted, name), text, *more)
        assert repr(ours) == repr(twin), (name, text, ours, twin)
        if valid:
            octets = outcome(getattr(compiled, name), text.encode(), *more)
            assert repr(octets) == repr(ours), (name, text, octets, ours)
    return valid


def outcome(call, *arguments):
    """Return what *call* returns, or ValueError if it raises one."""
    try:
        return call(*arguments)
    except ValueError:
        return ValueError
