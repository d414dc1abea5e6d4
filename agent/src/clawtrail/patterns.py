"""What secrets look like: those that tell it themselves, and those that their surroundings tell.

No expression has an unbounded gap: the redactor stands before the gate of a tool call, so its worst case is bounded.
`nothing_in` says soon that none of them matches, by the literals that each one needs.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from typing import Callable, Iterator
from urllib.parse import unquote

from .native import native

_G = r"(?<![A-Za-z0-9_-])"  # a token does not begin inside a word


def _token(pattern: str) -> re.Pattern[str]:
    return re.compile(_G + "(?:" + pattern + ")")


#: class, literals of which one must be present, expression: the whole match is the secret.
FORMATS: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("pem", ("-----BEGIN ",), re.compile(
        r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY(?: BLOCK)?-----[\s\S]{0,16384}?(?:-----END [A-Z ]{0,24}PRIVATE KEY(?: BLOCK)?-----|\Z)")),
    ("anthropic", ("sk-ant-",), _token(r"sk-ant-[\w-]{20,200}")),
    ("openrouter", ("sk-or-",), _token(r"sk-or-v1-[0-9a-f]{32,64}")),
    ("openai", ("sk-",), _token(r"sk-(?:proj|svcacct|admin|service|lf)-[\w-]{20,200}|sk-[A-Za-z0-9]{32,64}")),
    ("mapbox", ("sk.eyJ",), _token(r"sk\.eyJ[\w-]{20,300}\.[\w-]{16,60}")),
    ("groq", ("gsk_",), _token(r"gsk_[A-Za-z0-9]{40,60}")),
    ("xai", ("xai-",), _token(r"xai-\w{60,120}")),
    ("perplexity", ("pplx-",), _token(r"pplx-[A-Za-z0-9]{36,80}")),
    ("nvidia", ("nvapi-",), _token(r"nvapi-[\w-]{40,100}")),
    ("tavily", ("tvly-",), _token(r"tvly-[\w-]{24,80}")),
    ("langsmith", ("lsv2_",), _token(r"lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}")),
    ("huggingface", ("hf_", "api_org_"), _token(r"(?:hf|api_org)_[A-Za-z0-9]{30,40}")),
    ("replicate", ("r8_",), _token(r"r8_[\w-]{32,48}")),
    ("elevenlabs", ("sk_",), _token(r"sk_[0-9a-f]{48}")),
    ("pinecone", ("pcsk_",), _token(r"pcsk_[A-Za-z0-9]{4,8}_[A-Za-z0-9]{40,80}")),
    ("google-api", ("AIza",), _token(r"AIza[\w-]{35}")),
    ("google-oauth", ("ya29.", "GOCSPX-"), _token(r"ya29\.[\w-]{20,400}|GOCSPX-[\w-]{24,60}")),
    ("google-refresh", ("1//0",), _token(r"1//0[\w-]{40,200}")),
    ("aws-key-id", ("AKIA", "ASIA", "ABIA"), _token(r"A[KSB]IA[A-Z2-7]{16}(?![A-Z0-9])")),
    ("aws-bedrock", ("ABSK",), _token(r"ABSK[A-Za-z0-9]{24}[A-Za-z0-9+/]{36,300}={0,2}")),
    ("azure", ("Q~",), re.compile(r"(?<![\w~.-])[\w~.]{3}\dQ~[\w~.-]{31,34}")),
    ("github", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), _token(r"gh[oprsu]_[A-Za-z0-9]{36,255}|github_pat_\w{60,120}")),
    ("gitlab", ("glpat-", "gldt-", "glrt-", "glft-", "gloas-", "glsoat-", "glagent-", "glptt-", "glcbt-", "glimt-", "glffct-", "glwt-"), _token(
        r"gl(?:pat|dt|rt|ft|oas|soat|agent|ptt|cbt|imt|ffct|wt)-[\w.-]{20,120}")),
    ("slack", ("xoxa-", "xoxb-", "xoxc-", "xoxe-", "xoxe.", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"), _token(
        r"xox(?:[abceoprs]-|e\.)[\w.-]{10,200}|xapp-\d-[\w-]{20,200}")),
    ("slack-hook", ("hooks.slack",), re.compile(r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/+-]{20,120}")),
    ("discord-hook", ("discord.com", "discordapp.com"), re.compile(r"discord(?:app)?\.com/api/webhooks/\d{5,25}/[\w-]{40,100}")),
    ("telegram", (":A",), _token(r"\d{8,11}:A[\w-]{34}(?![\w-])")),
    ("stripe", ("sk_live_", "sk_test_", "sk_prod_", "rk_live_", "rk_test_", "rk_prod_", "whsec_"), _token(
        r"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{10,120}|whsec_[A-Za-z0-9+/=]{24,80}")),
    ("twilio", ("SK",), _token(r"SK[0-9a-f]{32}(?![0-9A-Za-z])")),
    ("sendgrid", ("SG.",), _token(r"SG\.[\w-]{20,24}\.[\w-]{39,46}")),
    ("mailgun", ("key-",), _token(r"key-[0-9a-f]{32}(?![0-9A-Za-z])")),
    ("mailchimp", ("-us",), _token(r"[0-9a-f]{32}-us\d{1,2}(?!\w)")),
    ("npm", ("npm_",), _token(r"npm_[A-Za-z0-9]{36}")),
    ("pypi", ("pypi-",), _token(r"pypi-AgE[\w-]{50,250}")),
    ("rubygems", ("rubygems_",), _token(r"rubygems_[0-9a-f]{48}")),
    ("dockerhub", ("dckr_",), _token(r"dckr_(?:pat|oat)_[\w-]{24,64}")),
    ("notion", ("ntn_", "secret_"), _token(r"ntn_[A-Za-z0-9]{40,60}|secret_[A-Za-z0-9]{43}(?![A-Za-z0-9])")),
    ("linear", ("lin_",), _token(r"lin_(?:api|oauth)_[A-Za-z0-9]{32,80}")),
    ("atlassian", ("ATATT3", "ATCTT3"), _token(r"AT[AC]TT3[\w=-]{60,300}")),
    ("figma", ("figd_",), _token(r"figd_[\w-]{36,64}")),
    ("grafana", ("glsa_", "glc_", "eyJrIjoi"), _token(
        r"glsa_[A-Za-z0-9]{32}_[0-9a-fA-F]{8}|glc_[A-Za-z0-9+/=]{32,400}|eyJrIjoi[A-Za-z0-9]{24}[A-Za-z0-9+/]{36,300}={0,2}")),
    ("vault", ("hvs.", "hvb.", "hvr."), _token(r"hv[sbr]\.[\w-]{24,200}")),
    ("terraform", (".atlasv1.",), _token(r"[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,120}")),
    ("digitalocean", ("doo_v1_", "dop_v1_", "dor_v1_"), _token(r"do[opr]_v1_[0-9a-f]{64}")),
    ("databricks", ("dapi",), _token(r"dapi[0-9a-f]{32}(?:-\d)?(?![0-9a-f])")),
    ("shopify", ("shpat_", "shpca_", "shppa_", "shpss_"), _token(r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}")),
    ("onepass", ("ops_eyJ",), _token(r"ops_eyJ[A-Za-z0-9+/=_-]{100,2000}")),
    ("age", ("AGE-SECRET-KEY-",), _token(r"AGE-SECRET-KEY-1[A-Z0-9]{58}")),
    ("heroku", ("HRKU-",), _token(r"HRKU-AA[\w-]{40,80}")),
    ("sentry", ("sntrys_", "sntryu_"), _token(r"sntry[su]_[\w+/=-]{48,300}")),
    ("doppler", ("dp.pt.", "dp.st.", "dp.sa.", "dp.ct.", "dp.scim.", "dp.audit."), _token(r"dp\.(?:pt|st|sa|ct|scim|audit)\.[\w.-]{40,80}")),
    ("flyio", ("fo1_", "fm1_", "fm2_", "fm1a_", "fm1r_"), _token(r"fo1_[\w-]{40,60}|fm(?:1[ar]?|2)_[A-Za-z0-9+/=]{100,2000}")),
    ("pulumi", ("pul-",), _token(r"pul-[0-9a-f]{40}(?![0-9A-Za-z])")),
    ("postman", ("PMAK-",), _token(r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}")),
    ("planetscale", ("pscale_",), _token(r"pscale_(?:tkn|pw|oauth)_[\w.=-]{32,80}")),
    ("newrelic", ("NRAK-", "NRJS-", "NRII-"), _token(r"NR(?:AK|JS|II)-[A-Za-z0-9_-]{19,60}")),
    ("square", ("sq0atp-", "sq0csp-", "sq0idp-"), _token(r"sq0(?:atp|csp|idp)-[\w-]{22,60}")),
    ("openshift", ("sha256~",), _token(r"sha256~[\w-]{43}")),
    ("supabase", ("sb_secret_", "sbp_"), _token(r"sb_secret_[\w-]{20,80}|sbp_[0-9a-f]{40}")),
    ("tailscale", ("tskey-",), _token(r"tskey-[a-z]{2,12}-[\w-]{20,120}")),
    ("hubspot", ("pat-na", "pat-eu"), _token(r"pat-(?:na|eu)\d-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")),
    ("discord", (".",), _token(r"[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,40}(?![\w-])")),
    ("jwt", (".eyJ",), _token(r"eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,2000}")),
)  # fmt: skip

_VALUE = r"(?P<secret>[^\s'\"`;&|<>]{4,512})"
_WORD = (
    r"(?:password|passwd|passphrase|secret|token|(?:api|access|secret|private|account|auth|encryption|signing|master|sharedaccess)[_-]?key"
    r"|credentials?|pwd)"
)
#: Tokens that were cut, with a sign of it or without: their beginning, and no more than the text has. A digit and a letter tell them from a word.
_CUT = "|".join(
    sorted({re.escape(hint) for _, hints, _ in FORMATS for hint in hints if (len(hint) >= 4 or hint in ("hf_", "SG.")) and hint[-1] in "-_." and hint[0] not in "-_./"} - {"key\\-", "pul\\-", "secret_"})
)
#: class, literals (lower case), expression: the group `secret` is replaced.
CONTEXT: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("url-userinfo", ("://",), re.compile(r"://[^\s:/@'\"]{0,128}:(?P<secret>[^\s/@'\"]{1,256})@")),
    ("auth-header", ("authorization",), re.compile(
        r"(?i)authorization['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?:(?:bearer|basic|token|digest|negotiate|apikey|bot)\s{1,4})?" + _VALUE)),
    ("bearer", ("bearer ",), re.compile(r"(?i)\bbearer\s{1,4}(?P<secret>[\w.~+/=-]{16,4096})")),
    ("key-header", ("x-", "cookie"), re.compile(
        r"(?i)\b(?:x-[a-z-]{0,40}(?:key|token|secret)|set-cookie|cookie)['\"]?\s{0,4}:\s{0,4}['\"]?(?P<secret>[^\s'\"][^\r\n'\"]{3,4096})")),
    ("query", ("=",), re.compile(
        r"(?i)[?&](?:(?:access_|refresh_|id_)?token|api_?key|key|sig|signature|code|auth|x-amz-(?:signature|security-token|credential)|client_secret)="
        r"(?P<secret>[^\s&#'\"]{6,2048})")),
    ("assignment", ("=", ":"), re.compile(
        r"(?i)(?<![A-Za-z0-9])(?:[a-z0-9_.-]{0,64})" + _WORD + r"['\"]?\s{0,4}(?:=|:)\s{0,4}['\"]?"
        r"(?!\$|\[redacted|true\b|false\b|null\b|none\b)" + _VALUE)),
    ("entropy", ("key",), re.compile(r"(?i)key['\"]?\s{0,4}[=:]\s{0,4}['\"]?(?P<secret>[A-Za-z0-9+/_=-]{24,200})(?![^\s'\",;)}\]])")),
    ("netrc", ("login",), re.compile(r"(?i)\blogin\s{1,4}\S{1,128}\s{1,4}password\s{1,4}(?P<secret>[^\s'\"]{3,256})")),
    ("argument", ("-",), re.compile(
        r"(?i)(?<![\w-])--?(?:[a-z0-9-]{0,40}-)?(?:" + _WORD + r"|pass|pat)(?:=|\s{1,4})['\"]?(?!\$|-|\[redacted)" + _VALUE)),
    ("argument", ("curl", "sshpass"), re.compile(
        r"\bcurl\b[^\n]{0,400}?\s(?:-u|--user|-U|--proxy-user)[ =]?['\"]?[^\s:'\"]{1,128}:(?P<secret>[^\s'\"]{1,256})")),
    ("argument", ("sshpass",), re.compile(r"\bsshpass\s{1,4}-p\s{0,4}['\"]?(?P<secret>[^\s'\"]{1,256})")),
    ("argument", ("mysql", "mariadb", "mongo"), re.compile(r"\b(?:mysql|mysqldump|mariadb|mongo)\b[^\n]{0,120}?\s-p['\"]?(?P<secret>[^\s'\"-][^\s'\"]{3,256})")),
    ("argument", ("redis-cli",), re.compile(r"\bredis-cli\b[^\n]{0,120}?\s-a\s{0,4}['\"]?(?P<secret>[^\s'\"-][^\s'\"]{3,256})")),
    ("cut", tuple(sorted({hint.lower() for _, hints, _ in FORMATS for hint in hints})), re.compile(
        _G + r"(?P<secret>(?:" + _CUT + r")(?=[\w-]{0,24}\d)(?=[\w-]{0,24}[A-Za-z])"
        r"(?:[\w-]{10,120}(?:\.[\w-]{1,120})?(?=\Z|\u2026|\.\.\.|\[\+\d)|[A-Za-z0-9]{20,120}[\w-]{0,120}))")),
)  # fmt: skip

_SHORTEST = 15  #: characters of the shortest match of any of FORMATS


_RARE = "-_."
_AFTER = r"(?=[\w./-]{9})"  # so much follows in every token, and in few other words
#: What the literals say too little without.
_HEX_DIGITS = set("0123456789abcdef")
_MORE = {".": r"(?=[\w-]{6}\.[\w-]{27})"}
_PEM = "-----BEGIN "
_NOT_RARE = ("-us", "key-", "pul-", "sk_", "secret_", _PEM, *_MORE)  # looked for by `_RUNS`, `_MORE`, or as they are


def _signs(mark: str) -> re.Pattern[str]:
    """An expression that finds a hint of FORMATS wherever one of their matches stands, if the hint's first rare character is this one.

    It looks for the rare character first, and back from there: a search for the hints themselves would try each letter.
    """
    heads: dict[tuple[bool, int], list[tuple[str, str]]] = {}
    for _, hints, pattern in FORMATS:
        for hint in hints:
            if (at := _first_rare(hint)) is not None and hint[at] == mark:
                begins = pattern.pattern.startswith(_G) and at > 0  # the token begins with it, so not inside of a word
                rest = hint[at + 1 :]
                way = re.escape(hint[: at + 1]) + (f"(?={re.escape(rest)})" if rest else "")
                heads.setdefault((begins, at), []).append((way, hint[at - 1 : at]))
    tests = [f"(?<=(?:{'|'.join(way for way, _ in same)}))" for (_, at), same in heads.items() if not at]
    behind = {key: same for key, same in heads.items() if key[1]}
    before = "".join(sorted({last for same in behind.values() for _, last in same}))
    soon = f"(?<=[{before}]{re.escape(mark)})" if not tests and mark not in _MORE else ""
    for usual in (False, True) if mark == "-" else (None,):  # what ends like identifiers do is looked for apart
        some = {key: [h for h, last in same if usual is None or (last in _HEX_DIGITS) == usual] for key, same in behind.items()}
        ways_back = "|".join(f"(?<={_G if begins else ''}(?:{'|'.join(same)}))" for (begins, _), same in some.items() if same)
        last = "".join(sorted({last for same in behind.values() for _, last in same} - _HEX_DIGITS))
        tests += [(f"(?<=[{last}]{mark})" if usual is False else "") + f"(?:{ways_back})"] if ways_back else []
    tests += [more for hint, more in _MORE.items() if hint == mark]
    return re.compile(re.escape(mark) + soon + _AFTER + f"(?:{'|'.join(tests)})")


def _first_rare(hint: str) -> int | None:
    return None if hint in _NOT_RARE else next((i for i, c in enumerate(hint) if c in _RARE), None)


def _either(*hints: str) -> re.Pattern[str]:
    return re.compile("|".join(p.pattern for _, own, p in FORMATS if set(own) & set(hints)))


_DASH, _SCORE, _DOT = map(_signs, _RARE)
#: Tokens without a rare character in which twenty letters and digits follow each other, and those in which that is not certain.
_IN_RUNS = ("AKIA", "SK", "dapi", "ABSK", "eyJrIjoi", "-us", "key-", "pul-", "sk_", "secret_")
_RUN_HINT = re.compile("|".join(re.escape(hint) for _, own, _ in FORMATS if set(own) & set(_IN_RUNS) for hint in own if _first_rare(hint) is None).encode())
_BEFORE, _BEHIND = max(map(len, _IN_RUNS)), 4  #: bytes around a run in which its hint stands
_RUNS, _OTHERS = _either(*_IN_RUNS), _either("AIza", "1//0", "ATATT3", "Q~", "sha256~", ":A")
_NAMES = r"(?:password|passwd|passphrase|secret|token|key|credentials?|pwd)"  # what _WORD ends with
_ASSIGNED = re.compile(_NAMES + r"['\"]?\s{0,4}[=:]")
_HEADER = re.compile(r"(?:authorization|cookie)['\"]?\s{0,4}[=:]")
_ARGUMENT = re.compile(r"-[a-z0-9_-]{0,52}(?:" + _NAMES + r"|pass|pat)[=\s]")
ENCODED_WORD = re.compile(r"[^\s%'\"<>]{0,1024}%[0-9A-Fa-f]{2}[^\s'\"<>]{0,8192}")
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_ALNUM = bytes(120 if chr(i).isalnum() and i < 128 else 32 for i in range(256))
_BASE64_ALPHABET = bytes(120 if chr(i) in "+/_-" else c for i, c in enumerate(_ALNUM))
_LONG = b"x" * 20  # so many letters and digits in a row are no word
_BASE64_MAX = 16384
BASE64 = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{20,%d}={0,2}(?![A-Za-z0-9+/_-])" % _BASE64_MAX)
_HEX = re.compile(r"[0-9a-fA-F-]+\Z")
_HEX_OR_DASH = b"0123456789abcdefABCDEF-"
_QUERY, _USERINFO, _NETRC, _CUT_TOKEN = (next(pattern for kind, _, pattern in CONTEXT if kind == wanted) for wanted in ("query", "url-userinfo", "netrc", "cut"))


def decoded(run: str) -> str:
    """What a run of base64 says, when that is text; else nothing. One cut short is read as far as it goes."""
    whole = run.rstrip("=")
    if _HEX.match(whole):
        return ""
    whole = whole[: len(whole) - (len(whole) % 4 == 1)]
    try:
        said = base64.b64decode(whole + "=" * (-len(whole) % 4), b"-_" if "-" in whole or "_" in whole else b"+/", validate=True).decode()
    except ValueError:
        return ""
    return said if said.isprintable() or said.translate(_BREAKS).isprintable() else ""


def is_random(s: str) -> bool:
    """Whether `s` looks like key material: small and capital letters and digits, and at least 3.8 bits in each character."""
    if not 24 <= len(s) <= 200 or not _MATERIAL.match(s) or not (_SMALL.search(s) and _CAPITAL.search(s) and _DIGIT.search(s)):
        return False
    return -sum(n / len(s) * math.log2(n / len(s)) for n in map(s.count, set(s))) >= 3.8


_MATERIAL, _SMALL, _CAPITAL, _DIGIT = map(re.compile, (r"[A-Za-z0-9+/_=-]+\Z", "[a-z]", "[A-Z]", "[0-9]"))
_BREAKS = {ord(c): None for c in "\r\n\t"}


def has_run(s: str) -> bool:
    """Whether twenty letters and digits follow each other, as in everything that is encoded."""
    try:
        return _LONG in s.encode().translate(_ALNUM)
    except UnicodeEncodeError:
        return True


def _wrapped(s: str) -> bool:
    """Whether `s` has a long run that is a token, or base64 or percent encoding in which there may be something."""
    if "%" in s and _ENCODED.search(s) and (opened := unquote(s)) != s and not nothing_in(opened):
        return True
    try:
        raw = s.encode()
    except UnicodeEncodeError:
        return True
    plain = raw.translate(_ALNUM)
    at = plain.find(_LONG)
    if at < 0:
        return False
    while at >= 0:
        end = plain.find(b" ", at)
        end = len(raw) if end < 0 else end
        if _RUN_HINT.search(raw, max(at - _BEFORE, 0), end + _BEHIND) and _RUNS.search(s):
            return True
        at = plain.find(_LONG, end)
    return _base64_says(raw)


def _base64_says(raw: bytes) -> bool:
    """Whether one of the matches of BASE64 in this text may hide something; looks for them as `bytes.find` does, which is faster."""
    plain = raw.translate(_BASE64_ALPHABET)
    at = plain.find(_LONG)
    while at >= 0:
        start = plain.rfind(b" ", 0, at) + 1
        end = plain.find(b" ", at)
        end = len(raw) if end < 0 else end
        run = raw[start:end]
        if run.translate(None, _HEX_OR_DASH) and raw[start - 1 : start] != b"=" and (end - start > _BASE64_MAX or (said := decoded(run.decode())) and (said[0] in "{[" or not nothing_in(said))):
            return True
        at = plain.find(_LONG, end)
    return False


# JSON within other text: the last letter of an escape hides that the token after it begins there.
_ESCAPE = re.compile(r"(\\(?:[nrtbf]|u[0-9a-fA-F]{4}))(?=[\w/+-])")
_SPLIT = re.compile(r"(\\(?:[nrtbf]|u[0-9a-fA-F]{4}))\x1f")


def apart(s: str) -> str:
    """The text with a separator behind each escape that a word follows, so that the word begins there; `together` undoes it."""
    return _ESCAPE.sub("\\1\x1f", s) if "\\" in s else s


def together(s: str) -> str:
    return _SPLIT.sub(r"\1", s)


def nothing_in(s: str) -> bool:
    """Whether no expression of FORMATS and CONTEXT matches in `s`, nor in what it wraps: true is certain, false is not."""
    return _clean(s) or _nothing(s) and ("\\" not in s or (split := apart(s)) == s or _nothing(split))


def _nothing(s: str) -> bool:
    # Each test is for something that every match of its expression contains.
    dash = "-" in s
    if len(s) >= _SHORTEST:
        if dash and (_DASH.search(s) or _PEM in s) or "_" in s and _SCORE.search(s) or "." in s and _DOT.search(s):
            return False
        if ("~" in s or ":A" in s or "AIza" in s or "1//0" in s or "TT3" in s) and _OTHERS.search(s):
            return False
        if _wrapped(s):
            return False
    low = s.lower()
    if not s.isascii():  # as re.IGNORECASE sees them: ſ is an s, ı and İ are an i
        low = low.replace("\u017f", "s").replace("\u0131", "i").replace("i\u0307", "i")
    if "bearer " in low:
        return False
    colon, equal = ":" in s, "=" in s
    if "login" in low and _NETRC.search(s):
        return False
    if not (colon or equal or dash):
        return True
    secretive = "key" in low or "token" in low or "secret" in low or "pass" in low or "credential" in low or "pwd" in low
    if secretive and ((colon or equal) and _ASSIGNED.search(low) or dash and _ARGUMENT.search(low)):
        return False  # the first is also what every `x-…-key:` has
    if (colon or equal) and ("authorization" in low or "cookie" in low) and _HEADER.search(low):
        return False
    if equal and ("?" in s or "&" in s) and _QUERY.search(s) or colon and "@" in s and "://" in s and _USERINFO.search(s):
        return False
    if not dash:
        return True
    if "-pat" in low and _ARGUMENT.search(low):
        return False
    return not ("curl" in s and ("-u" in s or "-U" in s or "-user" in s) or secretive and "sshpass" in s or " -p" in s and ("mysql" in s or "mariadb" in s or "mongo" in s)
                or "redis-cli" in s)  # fmt: skip


def _hints() -> Iterator[tuple[str, str]]:
    """What the compiled judge looks for: how, and a literal that stands in every match of one of FORMATS.

    "word": the literal's first word is a whole one; "end": it may be the end of one; "start": the literal begins a word;
    "run": it stands in or beside twenty letters and digits in a row. The token that has no literal is written out in C.
    """
    for _, hints, pattern in FORMATS:
        for hint in hints:
            if hint in _IN_RUNS or set(hints) & set(_IN_RUNS) and _first_rare(hint) is None and hint.isalnum():
                yield "run", hint
            elif hint.isalnum():
                yield "start", hint
            elif hint not in _MORE:
                yield "word" if pattern.pattern.startswith(_G) or not hint[0].isalnum() else "end", hint


#: Whether the compiled judge is there and looks for all that the expressions above find.
COMPILED: bool = (
    native is not None
    and native.JUDGED == hashlib.sha256("\n".join(p.pattern for _, _, p in CONTEXT if p is not _CUT_TOKEN).encode()).hexdigest()[:16]
    and native.learn(list(_hints()))
)
_clean: Callable[[str], bool] = native.clean if COMPILED else lambda s: False
