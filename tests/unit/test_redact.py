"""Redaction: what goes out, what has to stay, and what it costs at worst."""

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawtrail.event import SCAN_MAX
from clawtrail.redact import FORMATS, Found, Redactor
from support import letters, secrets

KEY = b"k" * 32
REDACTOR = Redactor(KEY)
SECRETS = secrets()


def redact(value, redactor=REDACTOR):
    found = Found()
    return redactor.value(value, found), found


#: Places in which a secret turns up; each takes the secret and gives a value.
PLACES = {
    "alone": lambda s: s,
    "in a command line": lambda s: f"curl -s https://api.example/v1 -d '{s}' | jq .",
    "in prose": lambda s: f"the value was ({s}), use it",
    "in a list": lambda s: ["a", ["b", s]],
    "in a dict": lambda s: {"args": {"deep": {"x": s}}},
    "as a key": lambda s: {s: 1},
    "in JSON in a string": lambda s: json.dumps({"a": [{"b": s}]}),
    "in JSON in JSON in a string": lambda s: json.dumps({"a": json.dumps([s])}),
    "in JSON in a line of text": lambda s: "answered " + json.dumps({"out": f"first\n{s}\nlast"}) + " in 3 ms",
    "in base64 in JSON in a line of text": lambda s: "answered " + json.dumps({"out": f"first\n{base64.b64encode(s.encode()).decode()}\nlast"}) + " in 3 ms",
    "after text that is no JSON": lambda s: '{"a": ' + s,
    "at the end of a long text": lambda s: "word " * 9000 + s,
}


def test_every_format_has_a_secret_here_that_is_built_at_run_time():
    assert SECRETS.keys() == {kind for kind, *_ in FORMATS}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_of_a_known_format_goes_out_wherever_it_stands(kind, place):
    secret = SECRETS[kind]
    out, found = redact(PLACES[place](secret))
    text = json.dumps(out)
    assert secret not in text and json.dumps(secret)[1:-1] not in text
    assert secret[-20:].strip("-\n ") not in text
    assert "[redacted:" in text and found.count >= 1 and found.fps


@pytest.mark.parametrize("kind", SECRETS)
def test_the_class_of_a_secret_is_named(kind):
    out, found = redact(SECRETS[kind])
    assert out == f"[redacted:{kind}:{REDACTOR.fingerprint(SECRETS[kind])}]" and found.classes == [kind]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("mysql --password=@ -u root", "mysql --password="),
        ("tool --api-key @ run", "tool --api-key "),
        ("GITHUB_TOKEN=@ make", "GITHUB_TOKEN="),
        ("export DB_PASSWORD='@'", "export DB_PASSWORD='"),
        ("db.password: @", "db.password: "),
        ('{"client_secret": "@", broken', '{"client_secret": "'),
        ("Authorization: Bearer @", "Authorization: Bearer "),
        ("curl -H 'authorization: Basic @' x", "curl -H 'authorization: Basic "),
        ("X-Api-Key: @", "X-Api-Key: "),
        ("Set-Cookie: sid=@; Path=/", "Set-Cookie: "),
        ("postgres://user:@@db.example/x", "postgres://user:"),
        ("GET /x?access_token=@&b=1", "GET /x?access_token="),
        ("curl -u admin:@ http://x", "curl -u admin:"),
        ("sshpass -p @ ssh h", "sshpass -p "),
        ("aws_secret_access_key = @", "aws_secret_access_key = "),
    ],
)
def test_a_secret_of_no_known_format_goes_out_where_its_context_names_it(text, kept):
    secret = letters(24, seed=3)
    out, found = redact(text.replace("@", secret, 1) if "@@" not in text else text.replace("@@", secret + "@"))
    assert secret not in out and out.startswith(kept) and found.count == 1


@pytest.mark.parametrize("key", ["password", "PASSWORD", "api_key", "apiKey", "X-Api-Key", "clientSecret", "auth_token", "credentials"])
@pytest.mark.parametrize("secret", [letters(12, seed=5), "short", 1234567890], ids=["text", "short", "digits"])
def test_whatever_stands_under_a_secret_key_goes_out(key, secret):
    out, _ = redact({"a": [{key: secret}], key: [secret], "b": {key: {"value": secret}}, "c": json.dumps({key: secret})})
    assert str(secret) not in json.dumps(out)


def test_an_argument_after_its_option_goes_out_of_a_list():
    secret = letters(16, seed=6)
    assert secret not in str(redact(["deploy", "--token", secret, "now"])[0])


def test_a_learned_secret_goes_out_under_its_name():
    redactor = Redactor(KEY)
    redactor.learn("vault-db", "correct horse battery")
    out, found = redact("it is 'correct horse battery'!", redactor)
    assert out == f"it is '[redacted:vault-db:{redactor.fingerprint('correct horse battery')}]'!" and found.classes == ["vault-db"]


@pytest.mark.parametrize("kind", SECRETS)
def test_one_secret_has_one_fingerprint_in_every_place_and_event(kind):
    places = ("alone", "in a list", "in a dict", "in JSON in a string", "in prose")
    assert {tuple(redact(PLACES[p](SECRETS[kind]))[1].fps) for p in places} == {(REDACTOR.fingerprint(SECRETS[kind]),)}


def test_fingerprints_differ_between_secrets_and_between_deployments():
    one, two = SECRETS["github"], secrets(1)["github"]
    prints = {REDACTOR.fingerprint(one), REDACTOR.fingerprint(two), Redactor(b"other" * 8).fingerprint(one), Redactor().fingerprint(one)}
    assert len(prints) == 4


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", SECRETS)
def test_redacting_twice_changes_nothing_more(kind, place):
    once, _ = redact(PLACES[place](SECRETS[kind]))
    again, found = redact(once)
    assert again == once and not found.count


def test_what_stood_under_a_secret_key_is_not_redacted_again():
    once, _ = redact({"password": "x" * 12, "token": ["y" * 12], "n": {"secret": {"value": "z" * 12}}})
    again, found = redact(once)
    assert again == once and not found.count


@pytest.mark.parametrize("kind", ["rubygems", "github", "npm", "digitalocean", "postman"])
@pytest.mark.parametrize("after", [" | next", "\n", "\u2026", "... and so on", ""])
def test_a_token_that_somebody_cut_goes_out_too(kind, after):
    short = SECRETS[kind][:-6]
    out, found = redact(f"it said {short}{after}")
    assert out == f"it said [redacted:cut:{REDACTOR.fingerprint(short)}]{after}" and found.classes == ["cut"]


def test_what_is_no_secret_hides_none_behind_it():
    assert redact("Authorization: {{Authorization:hunter22")[0].endswith("{{Authorization:[redacted:auth-header:" + REDACTOR.fingerprint("hunter22") + "]")


@given(st.text(max_size=200) | st.lists(st.sampled_from(["token=", "Authorization: ", "Bearer ", "://u:", "@", "x" * 20, " ", "{{", "$", "\\n", "'", '"', "{", "}", "--password "])).map("".join))
def test_redacting_any_text_twice_changes_nothing_more(text):
    once, _ = redact(text)
    assert redact(once)[0] == once


@pytest.mark.parametrize(
    "value",
    [
        "commit 3f2b8c1d9e0a7b6c5d4e3f2a1b0c9d8e7f6a5b4c",
        "sha256:" + "ab12" * 16,
        "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b",
        {"call_id": "call_e22bc9563d6d", "toolCallId": "toolu_01" + "AbCdEfGhIjKlMnOpQrSt"},
        {"runId": "chatcmpl-fcd2789577824692aca285f984a8ae55"},
        {"nextPageToken": "CAUQAA" * 6, "next_page_token": "CAUQAA" * 6},
        {"max_tokens": 4096, "maxTokens": 4096, "tokens": "4096"},
        '{"nextPageToken": "CAUQAACAUQAA", "max_tokens": 4096}',
        "max_tokens=4096 prompt_tokens: 12345",
        "curl -H \"Authorization: Bearer $GITHUB_TOKEN\" https://api.github.com",
        "export GITHUB_TOKEN=$(gh auth token)",
        "--token $TOKEN --password ${PASS}",
        "password: {{ vault_password }}",
        {"token": {"source": "env", "provider": "default", "id": "GITHUB_TOKEN"}},
        "ssh-ed25519 " + "AAAAC3NzaC1lZDI1NTE5AAAAI" + letters(43) + " me@host",
        "ssh-rsa " + "AAAAB3NzaC1yc2E" + letters(350) + " me@host",
        "-----BEGIN PUBLIC KEY-----\n" + letters(64) + "\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\n" + letters(64) + "\n-----END CERTIFICATE-----",
        "token was refused",
        "the password is wrong, the secret was not found",
        "https://example.org:8443/path?page=2&sort=key",
        "passwordless login, secretary, tokenize(x)",
        "password=null token: false api_key = none",
        {"password": "", "token": None, "secret": True},
        "git clone git@github.com:org/repo.git",
        "data:image/png;base64," + base64.b64encode(b"picture" * 40).decode(),
        "basketball sk-learn xai-lab hf_hub npm_config",
    ],
    ids=lambda v: str(v)[:40],
)
def test_what_only_looks_like_a_secret_stays_as_it_is(value):
    out, found = redact(value)
    assert out == value and not found.count


def test_a_reference_to_a_secret_is_no_hiding_place_for_one():
    secret = SECRETS["anthropic"]
    assert secret not in str(redact({"token": {"source": "env", "id": secret}})[0])


def test_a_lone_surrogate_in_redacted_json_is_written_out():
    out, found = redact('{"password": "' + letters(12) + '", "x": "\\udc80"}')
    assert json.loads(out.encode())["x"] == "\udc80" and found.count == 1


def test_nothing_is_kept_beyond_the_part_that_was_scanned():
    once = redact("a " * SCAN_MAX)[0]
    assert once == ("a " * SCAN_MAX)[:SCAN_MAX] + f"[+{SCAN_MAX}]" == redact(once)[0]


@pytest.mark.parametrize("depth", [10, 300, 500, 900, 1500, 20_000])
@pytest.mark.parametrize("brackets", ["[]", ("{", "}")], ids=["lists", "objects"])
def test_json_nested_to_any_depth_is_redacted_and_raises_nothing(depth, brackets):
    secret = SECRETS["github"]
    opening, closing = ("[", "]") if brackets == "[]" else ('{"a":', "}")
    out, _ = redact(opening * depth + f'"{secret}"' + closing * depth)
    assert secret not in out


_N = 48 * 1024
_HINTS = "=: ?- :// authorization bearer x- cookie curl sshpass "
_ATOMS = (
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "_", "_.", "a.", "a_", "x-", "-a", "--a-", "curl ", "curl -u ", "://a", "://", "eyJ",
    "eyJaaaaaaaaaaa.", "eyJaaaaaaaaaaa.eyJaaaaaaaaaa.", "bearer ", "authorization:", "sk-", "sk-ant-a", "gh", "ghp_", "token", "token=",
    "token =", "--token ", "?key=", "&code=", "cookie:", "x-key:", "hooks.slack.com/services/", "discord.com/api/webhooks/1", "12345678:A",
    "SG.aa.", "[redacted:", "password'", "sshpass -p ", "api_", "credential.", "xoxb-", "0123456789", "x-a-key: ", "AKIA", "_v1_", "dapi",
    "{", '{"a":', "[", '"\\"', " ", "\n", "=", "a" * 63 + "_",
)  # fmt: skip


@pytest.mark.parametrize("atom", _ATOMS)
def test_a_hostile_text_is_redacted_in_bounded_time(atom):
    # The redactor stands before the gate of a tool call. 2 s for 48 KiB is generous: what was measured is below 0.6 s.
    for text in ((atom * _N)[:_N], (_HINTS + "-----BEGIN PRIVATE KEY-----" + atom * _N)[:_N]):
        began = time.thread_time()
        redact(text)
        assert time.thread_time() - began < 2.0
