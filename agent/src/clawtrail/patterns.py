"""What secrets look like: those that tell it themselves, and those that their surroundings tell.

No expression has an unbounded gap: the redactor stands before the gate of a tool call, so its worst case is bounded.
`nothing_in` says soon that none of them matches, by the literals that each one needs.
"""

from __future__ import annotations

import re

_G = r"(?<![A-Za-z0-9_-])"  # a token does not begin inside a word


def _token(pattern: str) -> re.Pattern[str]:
    return re.compile(_G + "(?:" + pattern + ")")


#: class, literals of which one must be present, expression: the whole match is the secret.
FORMATS: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("pem", ("-----BEGIN ",), re.compile(
        r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----[\s\S]{0,16384}?(?:-----END [A-Z ]{0,24}PRIVATE KEY-----|\Z)")),
    ("anthropic", ("sk-ant-",), _token(r"sk-ant-[\w-]{20,200}")),
    ("openrouter", ("sk-or-",), _token(r"sk-or-v1-[0-9a-f]{32,64}")),
    ("openai", ("sk-",), _token(r"sk-(?:proj|svcacct|admin|service)-[\w-]{20,200}|sk-[A-Za-z0-9]{32,64}")),
    ("groq", ("gsk_",), _token(r"gsk_[A-Za-z0-9]{40,60}")),
    ("xai", ("xai-",), _token(r"xai-\w{60,120}")),
    ("huggingface", ("hf_",), _token(r"hf_[A-Za-z0-9]{30,40}")),
    ("google-api", ("AIza",), _token(r"AIza[\w-]{35}")),
    ("google-oauth", ("ya29.", "GOCSPX-"), _token(r"ya29\.[\w-]{20,400}|GOCSPX-[\w-]{24,60}")),
    ("aws-key-id", ("AKIA", "ASIA"), _token(r"(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Z0-9])")),
    ("github", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), _token(r"gh[oprsu]_[A-Za-z0-9]{36,255}|github_pat_\w{60,120}")),
    ("gitlab", ("glpat-", "gldt-", "glrt-", "glft-", "gloas-", "glsoat-", "glagent-", "glptt-", "glcbt-"), _token(
        r"gl(?:pat|dt|rt|ft|oas|soat|agent|ptt|cbt)-[\w.-]{20,120}")),
    ("slack", ("xoxa-", "xoxb-", "xoxc-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"), _token(
        r"xox[abceoprs]-[\w.-]{10,200}|xapp-\d-[\w-]{20,200}")),
    ("slack-hook", ("hooks.slack",), re.compile(r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/+-]{20,120}")),
    ("discord-hook", ("/webhooks/",), re.compile(r"discord(?:app)?\.com/api/webhooks/\d{5,25}/[\w-]{40,100}")),
    ("telegram", (":A",), _token(r"\d{8,11}:A[\w-]{34}(?![\w-])")),
    ("stripe", ("sk_live_", "sk_test_", "sk_prod_", "rk_live_", "rk_test_", "rk_prod_", "whsec_"), _token(
        r"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{10,120}|whsec_[A-Za-z0-9+/=]{24,80}")),
    ("sendgrid", ("SG.",), _token(r"SG\.[\w-]{20,24}\.[\w-]{39,46}")),
    ("npm", ("npm_",), _token(r"npm_[A-Za-z0-9]{36}")),
    ("pypi", ("pypi-",), _token(r"pypi-AgE[\w-]{50,250}")),
    ("notion", ("ntn_",), _token(r"ntn_[A-Za-z0-9]{40,60}")),
    ("linear", ("lin_",), _token(r"lin_(?:api|oauth)_[A-Za-z0-9]{32,80}")),
    ("grafana", ("glsa_", "glc_"), _token(r"glsa_[A-Za-z0-9]{32}_[0-9a-fA-F]{8}|glc_[A-Za-z0-9+/=]{32,400}")),
    ("vault", ("hvs.", "hvb."), _token(r"hv[sb]\.[\w-]{24,200}")),
    ("digitalocean", ("_v1_",), _token(r"do[opr]_v1_[0-9a-f]{64}")),
    ("databricks", ("dapi",), _token(r"dapi[0-9a-f]{32}(?:-\d)?(?![0-9a-f])")),
    ("jwt", (".eyJ",), _token(r"eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,2000}")),
)  # fmt: skip

_VALUE = r"(?P<secret>[^\s'\"`;&|<>]{4,512})"
_WORD = r"(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|credentials?)"
#: class, literals (lower case), expression: the group `secret` is replaced.
CONTEXT: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("url-userinfo", ("://",), re.compile(r"://[^\s:/@'\"]{1,128}:(?P<secret>[^\s/@'\"]{1,256})@")),
    ("auth-header", ("authorization",), re.compile(
        r"(?i)authorization['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?:(?:bearer|basic|token|digest|negotiate)\s{1,4})?" + _VALUE)),
    ("bearer", ("bearer ",), re.compile(r"(?i)\bbearer\s{1,4}(?P<secret>[\w.~+/=-]{16,4096})")),
    ("key-header", ("x-", "cookie"), re.compile(
        r"(?i)\b(?:x-[a-z-]{0,40}(?:key|token|secret)|set-cookie|cookie)['\"]?\s{0,4}:\s{0,4}['\"]?(?P<secret>[^\s'\"][^\r\n'\"]{3,4096})")),
    ("query", ("=",), re.compile(
        r"(?i)[?&](?:access_token|token|api_?key|key|sig|signature|code|x-amz-signature|client_secret)=(?P<secret>[^\s&#'\"]{6,2048})")),
    ("assignment", ("=", ":"), re.compile(
        r"(?i)(?<![A-Za-z0-9])(?:[a-z0-9_.-]{0,64}[_.-])?" + _WORD + r"['\"]?\s{0,4}(?:=|:)\s{0,4}['\"]?"
        r"(?!\$|\[redacted|true\b|false\b|null\b|none\b)" + _VALUE)),
    ("argument", ("-",), re.compile(r"(?i)(?<![\w-])--?(?:[a-z0-9-]{0,40}-)?" + _WORD + r"(?:=|\s{1,4})['\"]?(?!\$|-|\[redacted)" + _VALUE)),
    ("argument", ("curl", "sshpass"), re.compile(r"\bcurl\b[^\n]{0,400}?\s(?:-u|--user)[ =]?['\"]?[^\s:'\"]{1,128}:(?P<secret>[^\s'\"]{1,256})")),
    ("argument", ("sshpass",), re.compile(r"\bsshpass\s{1,4}-p\s{0,4}['\"]?(?P<secret>[^\s'\"]{1,256})")),
)  # fmt: skip

_SHORTEST = 15  #: characters of the shortest match of any of FORMATS


_RARE = "-_.:"


def _signs() -> re.Pattern[str]:
    """One expression that finds a hint of FORMATS wherever one of their matches stands, if the hint has a rare character.

    It looks for the rare characters first, and back from there: a search for the hints themselves would try each letter.
    """
    ways: list[str] = []
    for mark in _RARE:
        heads: dict[tuple[bool, int, str], list[str]] = {}
        for _, hints, pattern in FORMATS:
            for hint in hints:
                if (at := _first_rare(hint)) is not None and hint[at] == mark:
                    begins = pattern.pattern.startswith(_G) and at > 0  # the token begins with it, so not inside of a word
                    heads.setdefault((begins, at, hint[at + 1 :]), []).append(hint[: at + 1])
        before = "".join(sorted({head[-2] for same in heads.values() for head in same if len(head) > 1}))
        for first in (True, False):  # the hints that begin with the character itself; and those behind one letter of `before`
            tests = [
                f"(?<={_G if begins else ''}(?:{'|'.join(map(re.escape, same))}))" + (f"(?={re.escape(rest)})" if rest else "")
                for (begins, at, rest), same in heads.items()
                if first == (at == 0)
            ]
            if tests:
                ways.append(re.escape(mark) + ("" if first else f"(?<=[{before}]{re.escape(mark)})") + f"(?:{'|'.join(tests)})")
    return re.compile("|".join(ways))


def _first_rare(hint: str) -> int | None:
    return next((i for i, c in enumerate(hint) if c in _RARE), None)


_SIGNS = _signs()
_UNMARKED = tuple(hint for _, hints, _ in FORMATS for hint in hints if _first_rare(hint) is None)
_NAMES = r"(?:password|passwd|passphrase|secret|token|key|credentials?)"  # what _WORD ends with
_ASSIGNED = re.compile(_NAMES + r"['\"]?\s{0,4}[=:]")
_HEADER = re.compile(r"(?:authorization|cookie)['\"]?\s{0,4}[=:]")
_ARGUMENT = re.compile(r"-[a-z0-9_-]{0,52}" + _NAMES + r"[=\s]")
_QUERY, _USERINFO = (next(pattern for kind, _, pattern in CONTEXT if kind == wanted) for wanted in ("query", "url-userinfo"))


def nothing_in(s: str) -> bool:
    """Whether no expression of FORMATS and CONTEXT matches in `s`: true is certain, false is not.

    Each test below is for something that every match of its expression contains.
    """
    if len(s) >= _SHORTEST:
        if _SIGNS.search(s):
            return False
        for hint in _UNMARKED:
            if hint in s:
                return False
    low = s.lower()
    if not s.isascii():  # as re.IGNORECASE sees them: ſ is an s, ı and İ are an i
        low = low.replace("\u017f", "s").replace("\u0131", "i").replace("i\u0307", "i")
    if "bearer " in low:
        return False
    colon, equal, dash = ":" in s, "=" in s, "-" in s
    if not (colon or equal or dash):
        return True
    if "key" in low or "token" in low or "secret" in low or "passw" in low or "passp" in low or "credential" in low:
        if (colon or equal) and _ASSIGNED.search(low) or dash and _ARGUMENT.search(low):
            return False  # the first is also what every `x-…-key:` has
    if (colon or equal) and ("authorization" in low or "cookie" in low) and _HEADER.search(low):
        return False
    if equal and ("?" in s or "&" in s) and _QUERY.search(s) or colon and "@" in s and "://" in s and _USERINFO.search(s):
        return False
    return not (dash and ("curl" in s and "-u" in s or "sshpass" in s))
