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

    return {
        "pem": f"{dash}BEGIN EC PRIVATE KEY{dash}\n{w(64)}\n{w(64)}\n{dash}END EC PRIVATE KEY{dash}",
        "anthropic": "sk-" + "ant-api03-" + w(90),
        "openrouter": "sk-" + "or-v1-" + letters(64, hexa, seed),
        "openai": "sk-" + "proj-" + w(80),
        "groq": "gsk" + "_" + w(52),
        "xai": "xai" + "-" + w(80),
        "huggingface": "hf" + "_" + w(34),
        "google-api": "AI" + "za" + w(35),
        "google-oauth": "ya" + "29." + w(120),
        "aws-key-id": "AK" + "IA" + letters(16, upper, seed),
        "github": "gh" + "p_" + w(36),
        "gitlab": "gl" + "pat-" + w(20),
        "slack": "xo" + "xb-" + w(40),
        "slack-hook": "hooks." + "slack.com/services/T" + w(10) + "/B" + w(10) + "/" + w(24),
        "discord-hook": "discord.com/api/" + "webhooks/" + "1" * 18 + "/" + w(68),
        "telegram": "1234567890" + ":A" + w(34),
        "stripe": "sk" + "_live_" + w(24),
        "sendgrid": "SG" + "." + w(22) + "." + w(43),
        "npm": "np" + "m_" + w(36),
        "pypi": "py" + "pi-AgE" + w(100),
        "notion": "nt" + "n_" + w(46),
        "linear": "lin" + "_api_" + w(40),
        "grafana": "gl" + "sa_" + w(32) + "_" + letters(8, hexa, seed),
        "vault": "hv" + "s." + w(90),
        "digitalocean": "do" + "p_v1_" + letters(64, hexa, seed),
        "databricks": "da" + "pi" + letters(32, hexa, seed),
        "jwt": "ey" + "J" + w(30) + ".ey" + "J" + w(60) + "." + w(43),
    }
