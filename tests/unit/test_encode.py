"""From a producer's fields to the text of an event: checked, without secrets, and short enough."""

import enum
import json
import sys
import threading
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawtrail import event, redact
from clawtrail.errors import EventError
from clawtrail.redact import FORMATS, Found, Redactor
from support import letters, secrets

KEY = b"k" * 32
KNOWN = "correct horse battery"
ENCODERS = ["orjson", "stdlib"]


def encode(kind="tool.call", outcome="attempt", redactor=None, **fields):
    return event.encode(kind, outcome, fields, redactor or Redactor(KEY))


def test_the_body_is_in_order_and_the_text_is_its_json():
    body, text = encode(params={"command": "ls"}, tool={"name": "exec"}, session="s-1", step=3)
    expected = {
        "kind": "tool.call", "category": "tool", "outcome": "attempt", "session": "s-1", "run": None,
        "step": 3, "tool": {"name": "exec"}, "params": {"command": "ls"},
    }  # fmt: skip
    assert list(body.items()) == list(expected.items()) == list(json.loads(text).items())
    assert text == json.dumps(expected, separators=(",", ":"))


@pytest.mark.parametrize(
    ("kind", "outcome", "fields"),
    [
        ("tool.cal", "success", {}),
        ("tool.call", "ok", {}),
        ("tool.call", "success", {"sesion": "s"}),
        ("tool.call", "success", {"session": 7}),
        ("tool.call", "success", {"seq": 1}),
        ("credential.access", "success", {"credential": {"name": "aws", "value": "x"}}),
        (["tool.call"], "success", {}),
        ("tool.call", ["success"], {}),
    ],
)
def test_what_is_no_event_is_refused_as_body_refuses_it(kind, outcome, fields):
    with pytest.raises(EventError) as expected:
        event.body(kind, outcome, fields)
    with pytest.raises(EventError) as error:
        event.encode(kind, outcome, fields, Redactor(KEY))
    assert str(error.value) == str(expected.value)


def test_secrets_are_out_of_the_body_and_of_the_text():
    for kind, secret in secrets().items():
        body, text = encode(session=f"s {secret}", params={"command": f"echo {secret}"}, error=secret)
        assert secret not in str(body) and json.dumps(secret)[1:-1] not in text
        assert body["content"]["classes"] == kind and body["content"]["redactions"] == 3


def test_an_event_that_the_redactor_breaks_on_is_its_size_and_the_fact(monkeypatch):
    def broken(*_):
        raise RecursionError("on purpose")

    redactor = Redactor(KEY)
    monkeypatch.setattr(redactor, "value", broken)
    body, text = encode(redactor=redactor, session="s-1", content={"excerpt": "password=nobody-may-see-this"})
    assert body["error"] == {"type": "redaction", "message": "the redactor failed: RecursionError"}
    assert body["content"].keys() == {"size"} and body["content"]["size"] > 19
    assert body["session"] is None and "nobody" not in text


def test_the_content_of_a_log_line_has_a_hash_only_when_its_text_is_cut():
    short, long = event.log_content("x" * event.LEAF_MAX, 7, classes=None, fps="ab"), event.log_content("x" * 5000, 5000)
    assert short == {"size": 7, "excerpt": "x" * event.LEAF_MAX, "fps": "ab"}
    assert long == event.content("x" * 5000, 5000) and long["sha256"]
    assert event.log_content("a\udc80", 2)["excerpt"] == "a\\udc80"


# -- the short way and the long way give the same ------------------------------------------------------------------


def short():
    redactor = Redactor(KEY)
    redactor.learn("vault-db", KNOWN)
    return redactor


def the_long_way():
    """Every expression is tried on every text."""
    return mock.patch.object(redact, "nothing_in", lambda s: False)


def halves(secret):
    return secret[: len(secret) // 2], secret[len(secret) // 2 :], secret[:12], secret[-12:]


_SECRETS = [s for seed in (0, 1) for s in secrets(seed).values()]
_ATOMS = [
    *_SECRETS, *(half for s in _SECRETS for half in halves(s)), *(s.swapcase() for s in _SECRETS), KNOWN, KNOWN.upper(), KNOWN[:9],
    *(hint for _, hints, _ in FORMATS for hint in hints),
    "password", "passwd", "passphrase", "secret", "token", "api_key", "apikey", "access-key", "secretkey", "private_key", "credential", "credentials",
    "authorization", "bearer ", "basic ", "x-", "x-api-key", "x-auth-token", "cookie", "set-cookie", "curl ", " -u ", " --user=", "sshpass -p ", "client_secret",
    "://", "@", "?", "&", "key", "sig", "code", "=", ":", "-", "--", "_", ".", "/", " ", "\n", "'", '"', "`", "$", "${X}", "{{", "%", "{", "}", "[", "]", ",",
    "true", "null", "[redacted:key:0a1b2c3d]", "value", "a", "Z", "9", letters(8), letters(20), letters(40), letters(70),
    "\u017f", "\u0131", "\u0130", "i\u0307", "\u212a", "\u0130".lower(), "é", "€", "😀", "\u00a0", "\u2028", "\x7f", "\x85", "\0", "\udc80",
]  # fmt: skip
_CASES = [str, str.upper, str.lower, str.title, lambda s: s.replace("s", "\u017f"), lambda s: s.replace("i", "\u0131"), lambda s: s.replace("i", "\u0130"),
          lambda s: s.replace("k", "\u212a")]  # fmt: skip


def escaped(s):
    """JSON in which no letter stands for itself."""
    return json.dumps("").join(["", ""]) if not s else '"' + "".join(f"\\u{b1:02x}{b2:02x}" for b1, b2 in pairs(s)) + '"'


def pairs(s):
    raw = s.encode("utf-16-be", "surrogatepass")
    return zip(raw[::2], raw[1::2], strict=True)


_WORDS = st.builds(lambda s, case: case(s), st.sampled_from(_ATOMS), st.sampled_from(_CASES))
_PLAIN_TEXT = st.lists(_WORDS, max_size=6).map("".join)
_JSON_TEXT = st.builds(
    lambda k, v, write: write(k, v),
    _PLAIN_TEXT,
    _PLAIN_TEXT,
    st.sampled_from(
        [
            lambda k, v: json.dumps({k: v}),
            lambda k, v: json.dumps({k: [{"value": v}]}, ensure_ascii=False),
            lambda k, v: "{" + escaped(k) + ": " + escaped(v) + "}",
            lambda k, v: json.dumps([json.dumps({k: v})]),
            lambda k, v: " " + json.dumps({k: v}),
        ]
    ),
)

def _one(*words):
    return st.sampled_from(words)


_VALUES = st.sampled_from([letters(20), letters(30), letters(6), letters(4), "a" * 3, "$HOME", "true", "[redacted:key:0a1b2c3d]", "{{ x }}"])
_QUOTE, _GAP = _one("", "'", '"'), _one("", " ", "  ", "\t", "\u00a0", "\n", "     ")
_NAME = _one("password", "passwd", "passphrase", "secret", "token", "api_key", "apikey", "access-key", "secret_key", "privatekey", "credential", "credentials")
#: What each expression of context matches, and what is next to it.
_CONTEXTS = {
    "assignment": st.tuples(_one("", "db.", "X_", "my-", "é"), _NAME, _QUOTE, _GAP, _one("=", ":"), _GAP, _QUOTE, _VALUES),
    "argument": st.tuples(_one("", "x "), _one("-", "--", "--a-", "---", "-é-"), _NAME, _one("=", " ", "  ", "\t"), _QUOTE, _VALUES),
    "auth-header": st.tuples(_one("", "Proxy-"), _one("authorization"), _QUOTE, _GAP, _one("=", ":"), _GAP, _one("", "bearer ", "basic "), _VALUES),
    "bearer": st.tuples(_one("", "a "), _one("bearer"), _one(" ", "  ", "\t", " \n"), _VALUES),
    "key-header": st.tuples(_one("", "é", " "), _one("x-key", "x-api-key", "x-a-token", "x-secret", "cookie", "set-cookie"), _QUOTE, _GAP, _one(":"), _GAP, _VALUES),
    "query": st.tuples(_one("?", "&"), _one("access_token", "token", "api_key", "key", "sig", "signature", "code", "x-amz-signature", "client_secret"), _one("="), _VALUES),
    "url-userinfo": st.tuples(_one("https", ""), _one("://"), _one("u", ""), _one(":", ""), _VALUES, _one("@", "")),
    "curl": st.tuples(_one("curl "), _one("", "-s", "-X POST "), _one(" -u", " --user", "\t-u"), _one("", " ", "="), _QUOTE, _one("me"), _one(":"), _VALUES),
    "sshpass": st.tuples(_one("sshpass", "x sshpass"), _GAP, _one("-p", "-f"), _GAP, _QUOTE, _VALUES),
    "format": st.tuples(_one("", " ", "a", "é", "-", "_"), st.sampled_from(_SECRETS), _one("", " ", "a", ".", "-")),
}


def in_context(words):
    whole = st.builds(lambda s, case: case("".join(s)), words, st.sampled_from([str, *_CASES]))
    return st.builds(lambda before, s, after: before + s + after, _one("", "a ", "see: ", "-"), whole, _one("", " b"))


_CONTEXT_TEXT = st.one_of(*map(in_context, _CONTEXTS.values()))
TEXT = _CONTEXT_TEXT | _PLAIN_TEXT | _JSON_TEXT | st.text(max_size=30) | st.builds(lambda s, n: s * n, _WORDS, st.integers(1, 400))
_KEYS = _PLAIN_TEXT | st.sampled_from(["password", "apiKey", "value", "nextPageToken", "max_tokens", "id", "name", "command"]) | st.text(max_size=5)
_SCALARS = TEXT | st.none() | st.booleans() | st.integers() | st.integers(-(2**54), 2**54) | st.floats() | st.binary(max_size=5)
VALUE = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4)
    | st.lists(inner, max_size=3).map(tuple)
    | st.lists(st.sampled_from(["--token", "--password", "-p", "--name", "-1"]) | inner, max_size=4)
    | st.dictionaries(_KEYS | st.integers() | st.none(), inner, max_size=5),
    max_leaves=12,
)


REDACTOR = Redactor(KEY)


@pytest.mark.parametrize("context", [*_CONTEXTS, "anything"])
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_text_that_no_expression_is_tried_on_is_one_that_none_of_them_changes(context, data):
    text = data.draw(in_context(_CONTEXTS[context]) if context in _CONTEXTS else TEXT)
    if redact.nothing_in(text):
        assert REDACTOR._expressions(text, found := Found()) == text and found == Found()


@pytest.mark.parametrize("text", ["credent\u0131als=12345678", "CREDENT\u0130AL: 12345678", "pa\u017fsword=12345678", "to\u212aen=12345678", "x-to\u212aen: 123456"])
def test_letters_that_only_a_careless_eye_takes_for_others_hide_nothing(text):
    assert not redact.nothing_in(text) and REDACTOR._expressions(text, found := Found()) != text and found.count == 1


@pytest.mark.parametrize("text", _SECRETS + [f"see {s}." for s in _SECRETS] + [f"({s})" for s in _SECRETS], ids=lambda s: s[:12])
def test_every_expression_is_tried_on_its_secrets(text):
    assert not redact.nothing_in(text) and short().plain(text) is event.UNSURE


@given(VALUE)
def test_what_is_called_plain_is_what_the_long_way_leaves_of_it(value):
    redactor = short()
    for _ in range(2):  # the second time from memory
        plain = redactor.plain(value)
        if plain is not event.UNSURE:
            with the_long_way():
                expected = event.cut(short().value(event.clean(value), found := Found()))
            assert plain == expected and json.dumps(plain) == json.dumps(expected) and found == Found()


@given(st.lists(TEXT, min_size=1, max_size=6), st.data())
def test_texts_that_are_judged_together_are_judged_as_each_alone(texts, data):
    alone = [short().plain(text) is not event.UNSURE for text in texts]
    at = data.draw(st.integers(0, len(texts)))
    together = short().plain([*texts[:at], {"x": texts[at:]}])
    if not all(alone):
        assert together is event.UNSURE
    elif not any(text.startswith("-") for text in texts):  # an option before a word is another matter
        assert together == [*map(event.cut, texts[:at]), {"x": [*map(event.cut, texts[at:])]}]


@pytest.mark.parametrize("secret", [*_SECRETS, KNOWN, '{"\\u0070assword": "x12345"}', "[" + escaped(KNOWN) + "]", "a\udc80", "password=x1234567"], ids=lambda s: ascii(s)[:14])
@pytest.mark.parametrize("place", range(3))
def test_a_secret_among_harmless_texts_is_found_wherever_it_stands(secret, place):
    texts = ["alice@example.com", "GET /orders/7 took 12 ms"]
    texts.insert(place, secret)
    assert short().plain(texts) is event.UNSURE and short().plain({"a": texts[0], "b": {"c": texts[1:]}}) is event.UNSURE


@pytest.mark.parametrize("encoder", ENCODERS)
@given(
    st.dictionaries(st.sampled_from(["session", "run"]), TEXT | st.none(), max_size=2),
    st.dictionaries(st.sampled_from([f for f in event.FIELDS if f not in ("session", "run")]), VALUE, max_size=5),
    st.sampled_from(["tool.call", "log.record", "no.kind"]),
    st.sampled_from(["success", "attempt", "perhaps"]),
)
def test_an_event_is_the_same_by_the_short_and_by_the_long_way(encoder, names, groups, kind, outcome):
    both_ways_are_one(encoder, kind, outcome, {**groups, **names})


def deep(n, bottom):
    return bottom if n == 0 else [{"a": deep(n - 2, bottom)}] if n % 2 == 0 else [deep(n - 1, bottom)]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    "fields",
    [
        {"params": {"a": "\x7f"}},
        {"params": {"a": "é\x85\u2028\ufeff"}},
        {"params": {"\x7f\u2028": "\b\t\x1f\"\\/\r\n"}},
        {"params": {"s": "\udc80"}},
        {"params": {"\udc80": 1}},
        {"session": "a\udc80", "run": ""},
        {"session": "é" * 300, "run": "x" * 512},
        {"session": "€" * 170, "run": "😀" * 200},
        {"params": {"n": [2**53 - 1, 1 - 2**53, 2**53], "f": 1.5}},
        {"params": {"n": 2**53}},
        {"params": [-(2**53)]},
        {"params": {"n": 10**5000}},
        {"params": {"a": "x" * 3000, "b": ["y" * 20_000], "c": ("z" * 2049,)}},
        {"params": "x" * 17_000, "error": "y" * 70_000},
        *({"params": deep(n, "x")} for n in (6, 7, 8, 9, 10)),
        *({"content": {str(i): c * 3000 for i in range(n)}} for n in (12, 18, 20, 30) for c in "xé"),
        {"content": {str(i): list(range(300)) for i in range(40)}},
        {"duration_us": "password=x1234567"},
        {"params": {"args": ["--token", "abcdefgh"], "b": ["-x", "y", "--password"], "c": ["-" * 3, "-token=", "z1z2z3"]}},
        {"params": {"a": '{"\\u0070assword": "x12"}', "b": "[" + escaped(KNOWN) + "]"}},
        {"params": {"a": "xoxb-" + letters(10), "b": "AK" + "IA" + "A" * 16}},
        {"params": {"value": "x", "a": {"value": {"value": 1}}, "token": None, "secret": True, "password": 999, "apikey": 1000}},
    ],
    ids=lambda f: event.written(f)[:50].encode("ascii", "replace").decode(),
)
def test_an_event_at_the_edge_is_the_same_by_the_short_and_by_the_long_way(encoder, fields):
    both_ways_are_one(encoder, "tool.call", "success", fields)


def both_ways_are_one(encoder, kind, outcome, fields):
    with mock.patch.object(event, "orjson", event.orjson if encoder == "orjson" else None):
        redactor, results = short(), []
        for _ in range(2):
            try:
                results.append(event.encode(kind, outcome, fields, redactor))
            except EventError as e:
                results.append(str(e))
        with the_long_way():
            try:
                whole = event.body(kind, outcome, fields)
                short().event(whole)
                expected = whole, event.fit(whole)
            except EventError as e:
                assert results == [str(e)] * 2
                return
        for body, text in results:
            assert text == expected[1]
            assert list(body) == list(whole) and event.cut(body) == event.cut(whole) | {k: body[k] for k in ("session", "run")}
            assert (body["session"], body["run"]) == (whole["session"], whole["run"])


@pytest.mark.parametrize("encoder", ENCODERS)
@given(VALUE, _PLAIN_TEXT)
def test_the_json_of_what_is_plain_does_not_depend_on_who_writes_it(encoder, value, session):
    plain = short().plain(value)
    if plain is event.UNSURE:
        return
    whole = {"session": session, "params": plain}
    with mock.patch.object(event, "orjson", event.orjson if encoder == "orjson" else None):
        try:
            out = event._write_plain(whole)
        except (TypeError, UnicodeEncodeError):  # a lone surrogate in the session: `encode` goes the long way
            return
    assert out is None or out == event.fit(whole)


# -- what the short way must not miss --------------------------------------------------------------------------------


class Name(str, enum.Enum):
    A = "name"


class Sub(str):
    def __str__(self):
        return "something else"


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("value", [{Sub("name"): 1}, {Name.A: 1}, {"a": Sub("x")}, {"a": Name.A}, [Sub("x")]], ids=repr)
def test_an_instance_of_a_subclass_is_written_as_the_long_way_writes_it(encoder, value):
    with mock.patch.object(event, "orjson", event.orjson if encoder == "orjson" else None):
        redactor = Redactor(KEY)
        encode(redactor=redactor, params={"name": "x", "a": "name"})  # known as harmless, and equal to what comes
        assert json.loads(encode(redactor=redactor, params=value)[1])["params"] == event.clean(value)


@pytest.mark.parametrize("value", ["a\udc80", {"\udc80": 1}, ["\udc80"], b"x", {1}, {1: 2}, 2**53, {"token": 1}, ["--token", "x"], [[[[[[[[[]]]]]]]]]], ids=ascii)
def test_the_short_way_says_when_it_does_not_know(value):
    assert short().plain(value) is event.UNSURE


def test_what_was_harmless_goes_out_from_the_moment_it_is_learned():
    redactor = Redactor(KEY)
    for make in (lambda s: {"x": s}, lambda s: {s: 1}, lambda s: [s], lambda s: json.dumps({"x": s})):
        assert KNOWN in encode(redactor=redactor, params=make(KNOWN), session=f"s {KNOWN}")[1]
    redactor.learn("vault-db", KNOWN)
    for make in (lambda s: {"x": s}, lambda s: {s: 1}, lambda s: [s], lambda s: "{" + escaped(s) + ":1}"):
        body, text = encode(redactor=redactor, params=make(KNOWN), session=f"s {KNOWN}")
        assert KNOWN not in text and "[redacted:vault-db:" in body["session"]


def test_a_secret_that_is_learned_while_others_record_is_out_of_every_later_event():
    redactor, stop, wrong = Redactor(KEY), threading.Event(), []
    learned = []

    def work():
        while not stop.is_set():
            sure = list(learned)
            for secret in sure:
                if secret in encode(redactor=redactor, params={"x": secret, "y": f"see {secret}"})[1]:
                    wrong.append(secret)
            for n in range(len(sure), len(sure) + 20):  # those that are learned next are looked at just before
                encode(redactor=redactor, params={"x": f"battery horse {n}"})

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    workers = [threading.Thread(target=work) for _ in range(3)]
    try:
        for w in workers:
            w.start()
        for n in range(200):
            secret = f"battery horse {n}"
            redactor.learn("db", secret)
            learned[:] = [*learned[-5:], secret]
            assert secret not in encode(redactor=redactor, params={"x": secret})[1]
    finally:
        stop.set()
        for w in workers:
            w.join()
        sys.setswitchinterval(before)
    assert not wrong


def test_what_is_remembered_is_bounded():
    redactor = Redactor(KEY)
    for i in range(10_000):
        encode(redactor=redactor, params={f"k {i}": f"v {i}", "long": "w " * 2000 + str(i)})
    assert len(redactor._strings) <= redact._REMEMBERED and len(redactor._keys) <= redact._REMEMBERED
    assert max(map(len, redactor._strings)) <= redact._SHORT


def test_the_body_is_no_longer_the_producers():
    params = {"list": [{"a": 1}], "text": "x"}
    body, _ = encode(params=params)
    params["list"][0]["password"] = params["token"] = "y" * 20
    assert body["params"] == {"list": [{"a": 1}], "text": "x"}


def test_the_middle_of_the_road_is_short():
    """What an ordinary event looks like; were it to go the long way, recording would cost fifty times as much."""
    for value in (
        "Tool exec finished in 52 ms, session agent:main:demo-1, exit code 0; the assistant's class passed",
        "cd /srv/app && git log --oneline -n 12 | grep -v merge > /tmp/out-12.txt",
        "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b",
        "task-42 and disk_usage of the tokenizer: max_tokens, keys, passwords",
        "https://example.org:8443/path?page=2&sort=asc",
        {"a": [1, {"b": [None, True, 1.5, ("x", 2)]}]},
        {"actor": "alice@example.com", "target": "https://example.org:8443/a", "note": "authorization and cookies"},
        "Grüße — “schön” 東京 😀",
        "x" * 9000,
    ):
        with mock.patch.object(Redactor, "_expressions", side_effect=AssertionError("the expressions were tried")):
            assert Redactor(KEY).plain(value) is not event.UNSURE
