"""Four hundred fake secrets of sixty kinds at every depth, and ten thousand texts that hold none.

The oracle knows nothing of the redactor: it looks for any ten characters of a secret in the stored line, also in what
base64 and percent encoding in that line say.
"""

from __future__ import annotations

import base64
import json
import random
import re
import uuid
from typing import Any, Callable, Iterator
from urllib.parse import quote, unquote

import pytest

from clawtrail import event
from clawtrail.redact import Found, Redactor
from support import letters, secrets

KEY = b"k" * 32
WINDOW = 10
KINDS = secrets(7)

#: Each takes a secret and gives a tool call's parameters.
DEPTHS: dict[str, Callable[[str], Any]] = {
    "command line": lambda s: {"command": f"curl -s https://api.example/v1 -d '{s}' | jq ."},
    "deep list": lambda s: {"a": [{"b": [["x", s]]}]},
    "JSON in JSON": lambda s: {"body": json.dumps({"a": json.dumps({"b": [s]})})},
    "block of variables": lambda s: {"content": f"# settings\nHOST=db\nX_VALUE={s}\nPORT=5432\n"},
    "base64": lambda s: {"command": "echo " + base64.b64encode(f"see {s} here".encode()).decode() + " | base64 -d"},
    "URL": lambda s: {"url": "https://x.example/p?d=" + quote(s, safe="") + "&b=1"},
    "percent": lambda s: {"url": "https://x.example/" + "".join(f"%{b:02X}" for b in s.encode())},
    "key": lambda s: {"map": {s: 1}},
}
#: Secrets without a format of their own; the context names them.
CONTEXTS: dict[str, Callable[[str], Any]] = {
    "secret key": lambda s: {"gateway": {"auth": {"token": s}}},
    "camel case": lambda s: {"text": f"accessToken={s}"},
    "argument list": lambda s: {"args": ["deploy", "--token", s, "--now"]},
    "curl user": lambda s: {"args": ["curl", "-u", f"admin:{s}", "https://x.example"]},
    "header": lambda s: {"command": f"curl -H 'Authorization: Bearer {s}' https://x.example"},
    "own header": lambda s: {"command": f"curl -H 'X-Api-Key: {s}' https://x.example"},
    "cookie": lambda s: {"headers": f"Cookie: sid={s}; theme=dark"},
    "address": lambda s: {"url": f"postgres://app:{s}@db.example/app"},
    "address without user": lambda s: {"url": f"redis://:{s}@cache.example/0"},
    "query": lambda s: {"url": f"https://x.example/cb?code={s}&state=1"},
    "connection string": lambda s: {"text": f"Server=db;User Id=app;Pwd={s};AccountKey={s}"},
    "variable": lambda s: {"content": f"DB_PASSWORD={s}\nexport GITHUB_TOKEN='{s}'\n"},
    "YAML": lambda s: {"content": f"db:\n  password: {s}\n"},
    "netrc": lambda s: {"content": f"machine x.example login me password {s}\n"},
    "mysql": lambda s: {"command": f"mysql -u root -p{s} shop"},
    "sshpass": lambda s: {"command": f"sshpass -p {s} ssh h"},
    "registry": lambda s: {"content": json.dumps({"auths": {"r.example": {"auth": base64.b64encode(f"me:{s}".encode()).decode()}}})},
    "Kubernetes": lambda s: {"content": "data: " + base64.b64encode(f"password: {s}".encode()).decode()},
    "encoded query": lambda s: {"url": "https://x.example/?next=" + quote(f"https://y.example/?token={s}", safe="")},
    "high entropy": lambda s: {"text": f"key: {s}"},
}


def corpus() -> Iterator[tuple[str, str, Any]]:
    for kind, secret in KINDS.items():
        for name, place in DEPTHS.items():
            yield f"{kind} in {name}", secret, place(secret)
    for n, (name, place) in enumerate(CONTEXTS.items()):
        for seed in range(5):
            secret = letters(30, seed=100 * n + seed)
            yield f"{name} {seed}", secret, place(secret)


CORPUS = list(corpus())


def leaks(secret: str, line: str) -> str:
    """The first ten characters in a row of the secret that the line gives away; empty when it gives none."""
    seen = [line, line.replace("\\n", "\n").replace('\\"', '"'), unquote(line)]
    for run in re.findall(r"[A-Za-z0-9+/_-]{12,}", unquote(line)):
        for start in range(4):
            piece = run[start : len(run) - (len(run) - start) % 4]
            seen.append(base64.b64decode(piece.replace("-", "+").replace("_", "/")).decode("latin-1"))
    windows = {secret[i : i + WINDOW] for i in range(len(secret) - WINDOW + 1)}
    return next((w for w in sorted(windows) if any(w in text for text in seen)), "")


def line_of(params: Any) -> str:
    return event.encode("tool.call", "attempt", {"params": params, "content": {"excerpt": json.dumps(params)}}, Redactor(KEY))[1]


def test_the_corpus_is_large_and_the_oracle_sees_every_secret_in_it() -> None:
    assert len(KINDS) >= 40 and len(CORPUS) >= 300
    assert all(leaks(secret, json.dumps(params)) for _, secret, params in CORPUS)


@pytest.mark.parametrize("name", [*DEPTHS, *CONTEXTS])
def test_no_secret_of_the_corpus_reaches_the_line_that_is_stored(name: str) -> None:
    mine = [c for c in CORPUS if c[0].endswith(f" in {name}") or c[0].startswith(f"{name} ")]
    assert mine
    leaked = {case: window for case, secret, params in mine if (window := leaks(secret, line_of(params)))}
    assert not leaked


def test_the_same_secret_has_the_same_fingerprint_at_every_depth() -> None:
    redactor = Redactor(KEY)
    for place in DEPTHS.values():
        found = Found()
        redactor.value(place(KINDS["github"]), found)
        assert found.fps == [redactor.fingerprint(KINDS["github"])], place


@pytest.mark.parametrize("kind", ["github", "anthropic", "gitlab", "npm", "stripe", "slack", "huggingface", "groq", "shopify", "sendgrid"])
@pytest.mark.parametrize("kept", [24, 30])
def test_a_secret_cut_by_a_limit_is_still_removed(kind: str, kept: int) -> None:
    cut = KINDS[kind][:kept]
    for text in (f"the key is {cut}", f"the key is {cut}…", f"{cut}..."):
        assert not leaks(cut, line_of({"text": text}))


def test_a_learned_secret_goes_out_in_every_form() -> None:
    redactor, secret = Redactor(KEY), letters(24, seed=9) + "/é+"
    redactor.learn("gateway-token", secret)
    raw = secret.encode()
    forms = [secret, quote(secret, safe=""), base64.b64encode(raw).decode(), raw.hex(), json.dumps(secret), base64.b64encode(b"ab " + raw + b" cd").decode()]
    for form in forms:
        found = Found()
        out = json.dumps(redactor.value({"x": f"<{form}>"}, found))
        assert not leaks(secret, out) and raw.hex() not in out and found.fps == [redactor.fingerprint(secret)], form


# -- what has to stay ------------------------------------------------------------------------------------------------

_NOUNS = "order user table cache worker queue request session file branch commit report invoice server client record field token key secret password".split()
_VERBS = "reads writes checks drops finds loads keeps sends waits for renames".split()


def _benign(rnd: random.Random) -> Iterator[str]:
    def hexa(n: int) -> str:
        return "".join(rnd.choices("0123456789abcdef", k=n))

    def word() -> str:
        return rnd.choice(_NOUNS)

    def base(n: int) -> str:
        return base64.b64encode(rnd.randbytes(n)).decode()

    while True:
        ident = str(uuid.UUID(bytes=rnd.randbytes(16)))
        yield f"commit {hexa(40)}"
        yield f"sha256:{hexa(64)}"
        yield f"sha512-{base(64)}"
        yield ident
        yield "01" + "".join(rnd.choices("0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=24))
        yield f"traceparent: 00-{hexa(32)}-{hexa(16)}-01"
        yield f"agent:main:subagent:{ident}"
        yield f"call_{hexa(12)} chatcmpl_{hexa(32)}"
        yield f'ETag: "{hexa(32)}"'
        yield f"data:image/png;base64,{base(120)}"
        yield f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{base(32)[:43]} me@host"
        yield f"-----BEGIN CERTIFICATE-----\n{base(48)}\n{base(48)}\n-----END CERTIFICATE-----"
        yield f"arn:aws:iam::{rnd.randrange(10**12):012d}:role/{word()}-reader"
        yield f"git clone git@github.com:{word()}/{word()}.git"
        yield f"https://user@{word()}.example:8443/{word()}/{word()}?page={rnd.randrange(99)}&sort={word()}"
        yield f"/home/node/workspace/src/{word()}_{word()}/test_{word()}_handler.py"
        yield f"the {word()} {rnd.choice(_VERBS)} the {word()}, and the {word()} was refused after {rnd.randrange(99)} ms"
        yield f"def {word()}_{word()}(self, {word()}: str, max_tokens: int = {rnd.randrange(4096)}) -> None:"
        yield f"for (const {word()} of {word()}s) {{ await {word()}.{word()}({rnd.randrange(99)}); }}"
        yield f'SELECT {word()}, {word()} FROM {word()}s WHERE id = {rnd.randrange(10**6)} ORDER BY {word()}'
        yield json.dumps({"id": ident, "max_tokens": rnd.randrange(4096), "inputTokens": rnd.randrange(9999), "nextPageToken": base(18), "tokenType": "bpe"})
        yield f"2026-01-31T12:00:{rnd.randrange(60):02d}Z INFO [{word()}.{word()}] {rnd.randrange(10**6)} rows, cache=hit, took={rnd.random():.3f}s"
        yield f"grep -rn '{word()}' src --include='*.py' | head -{rnd.randrange(1, 99)}"
        yield f"docker run -u 1000:1000 -p 8080:80 -v /srv/{word()}:/data registry.example/{word()}:1.{rnd.randrange(99)}"
        yield f"{word()} = os.environ.get('{word().upper()}_HOST', 'localhost')"
        yield base64.b64encode(f"the {word()} {rnd.choice(_VERBS)} {word()}s and more of the same".encode()).decode()


def test_fewer_than_one_in_a_hundred_of_ten_thousand_benign_values_is_touched() -> None:
    rnd, redactor = random.Random(11), Redactor(KEY)
    texts = [text for _, text in zip(range(10_000), _benign(rnd))]
    touched = [text for text in texts if redactor.string(text, Found()) != text]
    assert len(touched) < 100, touched[:10]


TRAPS: list[Any] = [
    "3f2b8c1d9e0a7b6c5d4e3f2a1b0c9d8e7f6a5b4c", "sha256:" + "ab12" * 16, "sha512-" + base64.b64encode(bytes(range(64))).decode(),
    "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7",
    "call_e22bc9563d6d", "chatcmpl_fcd2789577824692aca285f984a8ae55", "agent:main:subagent:019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b",
    'ETag: "33a64df551425fcc55e4d42a148795d9f25f89d4"', "d41d8cd98f00b204e9800998ecf8427e", "data:image/png;base64," + base64.b64encode(b"picture" * 40).decode(),
    "ssh-rsa AAAAB3NzaC1yc2E" + "Q" * 300 + " me@host", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "x" * 43 + " me@host",
    "-----BEGIN CERTIFICATE-----\n" + "M" * 64 + "\n-----END CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----\n" + "M" * 64 + "\n-----END PUBLIC KEY-----",
    "arn:aws:iam::123456789012:role/reader", "git@github.com:a/b", "https://user@host/x", "localhost:8080/a@b", "sk-circle-fade-dot", "sk-dist-tool",
    {"max_tokens": 4096}, {"inputTokens": 12345, "outputTokens": 12345}, {"tokenizer": "cl100k_base"}, {"nextPageToken": "CAUQAA" * 6}, {"tokenType": "bearer"},
    {"key": "Enter"}, {"keys": ["a", "b"]}, {"primary_key": "order_id"}, {"cookie_consent": "accepted"}, {"passed": 12}, "the token was refused",
    'grep "api_key" src/', "echo $GITHUB_TOKEN", "TOKEN=$(op read x)", {"token": {"source": "env", "provider": "default", "id": "OPENAI_API_KEY"}},
    {"apiKey": {"source": "exec", "provider": "clawtrail", "id": "model/apiKey"}}, {"stop_token": "</s>"}, {"monkey": "banana"}, {"turkey": "sandwich12345"},
    "password: {{ vault_password }}", "--password ${PASS}", "token=null", "api_key = none", {"publicKey": "MCowBQYDK2VwAyEA" + "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAx"},
    "docker run -u 1000:1000 x", ["docker", "run", "-u", "1000:1000"], "basketball sk-learn xai-lab hf_hub npm_config_cache_folder", "key-value store, us-east-1, pul-request",
]  # fmt: skip


def test_there_are_fifty_traps() -> None:
    assert len(TRAPS) >= 50


@pytest.mark.parametrize("value", TRAPS, ids=lambda v: str(v)[:40])
def test_identifiers_that_look_random_survive(value: Any) -> None:
    found = Found()
    assert Redactor(KEY).value(value, found) == value and not found.count
