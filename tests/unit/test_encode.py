"""From a producer's fields to the text of an event: checked, without secrets, and short enough."""

import json

import pytest

from clawtrail import event
from clawtrail.errors import EventError
from clawtrail.redact import Redactor
from support import secrets

KEY = b"k" * 32


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
