"""What the unit tests share: bounded waiting, and secrets that exist only while a test runs."""

from __future__ import annotations

import random
import string
import time
from typing import Any, Callable

#: Seconds. Generous: it is the time after which a promise counts as broken, not the time it takes.
WITHIN = 15.0


def eventually(probe: Callable[[], Any], expected: Any = None, within: float = WITHIN, state: Callable[[], Any] | None = None) -> Any:
    """Polls `probe` until it is true, or equals `expected` when that is given. Fails with the last answer and state."""
    deadline = time.monotonic() + within
    while True:
        answer = probe()
        if answer == expected if expected is not None else answer:
            return answer
        if time.monotonic() > deadline:
            wanted = "something true" if expected is None else repr(expected)
            shown = f"\nstate: {state()!r}" if state else ""
            raise AssertionError(f"not within {within:.0f} s; last answer: {answer!r:.2000}; expected {wanted}{shown}")
        time.sleep(0.01)


def arrived(receiver: Any, n: int) -> list[dict[str, Any]]:
    """The first n events that are not the recorder's own."""

    def events() -> list[dict[str, Any]]:
        return [e for e in receiver.events() if not e["kind"].startswith("system.")]

    eventually(lambda: len(events()) >= n, state=events)
    return events()


_WORD = string.ascii_letters + string.digits


def letters(n: int, alphabet: str = _WORD, seed: int = 0) -> str:
    return "".join(random.Random(f"{n}{alphabet}{seed}").choices(alphabet, k=n))


def secrets(seed: int = 0) -> dict[str, str]:
    """Redaction class → a secret of that format. Put together here, so that no scanner finds one in the sources."""
    hexa, upper = "0123456789abcdef", string.ascii_uppercase + "234567"
    dash = "-" * 5

    def w(n: int) -> str:
        return letters(n, seed=seed)

    def h(n: int) -> str:
        return letters(n, hexa, seed)

    return {
        "pem": f"{dash}BEGIN EC PRIVATE KEY{dash}\n{w(64)}\n{w(64)}\n{dash}END EC PRIVATE KEY{dash}",
        "anthropic": "sk-" + "ant-api03-" + w(90),
        "openrouter": "sk-" + "or-v1-" + h(64),
        "openai": "sk-" + "proj-" + w(80),
        "mapbox": "sk" + ".eyJ" + w(60) + "." + w(22),
        "groq": "gsk" + "_" + w(52),
        "xai": "xai" + "-" + w(80),
        "perplexity": "pplx" + "-" + w(48),
        "nvidia": "nva" + "pi-" + w(64),
        "tavily": "tv" + "ly-" + w(32),
        "langsmith": "ls" + "v2_pt_" + h(32) + "_" + h(10),
        "huggingface": "hf" + "_" + w(34),
        "replicate": "r8" + "_" + w(37),
        "elevenlabs": "sk" + "_" + h(48),
        "pinecone": "pcs" + "k_" + w(6) + "_" + w(62),
        "google-api": "AI" + "za" + w(35),
        "google-oauth": "ya" + "29." + w(120),
        "google-refresh": "1/" + "/0" + w(60),
        "aws-key-id": "AK" + "IA" + letters(16, upper, seed),
        "aws-bedrock": "AB" + "SK" + w(120) + "==",
        "azure": w(3) + "8" + "Q~" + w(34),
        "github": "gh" + "p_" + w(36),
        "gitlab": "gl" + "pat-" + w(20),
        "slack": "xo" + "xb-" + w(40),
        "slack-hook": "hooks." + "slack.com/services/T" + w(10) + "/B" + w(10) + "/" + w(24),
        "discord-hook": "discord.com/api/" + "webhooks/" + "1" * 18 + "/" + w(68),
        "telegram": "1234567890" + ":A" + w(34),
        "stripe": "sk" + "_live_" + w(24),
        "twilio": "S" + "K" + h(32),
        "sendgrid": "SG" + "." + w(22) + "." + w(43),
        "mailgun": "ke" + "y-" + h(32),
        "mailchimp": h(32) + "-u" + "s14",
        "npm": "np" + "m_" + w(36),
        "pypi": "py" + "pi-AgE" + w(100),
        "rubygems": "ruby" + "gems_" + h(48),
        "dockerhub": "dck" + "r_pat_" + w(27),
        "notion": "nt" + "n_" + w(46),
        "linear": "lin" + "_api_" + w(40),
        "atlassian": "AT" + "ATT3" + w(180),
        "figma": "fi" + "gd_" + w(43),
        "grafana": "gl" + "sa_" + w(32) + "_" + h(8),
        "vault": "hv" + "s." + w(90),
        "terraform": w(14) + ".atl" + "asv1." + w(67),
        "digitalocean": "do" + "p_v1_" + h(64),
        "databricks": "da" + "pi" + h(32),
        "shopify": "shp" + "at_" + h(32),
        "onepass": "op" + "s_eyJ" + w(200),
        "age": "AGE-SECRET" + "-KEY-1" + letters(58, upper, seed),
        "heroku": "HRK" + "U-AA" + w(58),
        "sentry": "snt" + "rys_" + w(80),
        "doppler": "dp" + ".pt." + w(43),
        "flyio": "fo" + "1_" + w(43),
        "pulumi": "pu" + "l-" + h(40),
        "postman": "PM" + "AK-" + h(24) + "-" + h(34),
        "planetscale": "psc" + "ale_tkn_" + w(43),
        "newrelic": "NR" + "AK-" + w(27),
        "square": "sq" + "0atp-" + w(22),
        "openshift": "sha" + "256~" + w(43),
        "supabase": "sb" + "_secret_" + w(31),
        "tailscale": "tsk" + "ey-auth-" + w(30),
        "hubspot": "pa" + "t-na1-" + "-".join(h(n) for n in (8, 4, 4, 4, 12)),
        "discord": "M" + w(25) + "." + w(6) + "." + w(38),
        "jwt": "ey" + "J" + w(30) + ".ey" + "J" + w(60) + "." + w(43),
    }
