"""Which tool calls reach for a credential: rules as data, each with a hit and a miss of its own that a test runs.

Expressions are case-insensitive, free of look-around and run over the call's parameters as one text. A hit is
evidence of an attempt, not proof of a theft; what a script hides (variables, encodings) no expression sees.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """`name` is stored as `credential.name`, a bounded set; `technique` is MITRE ATT&CK or ATLAS."""

    id: str
    name: str
    match: re.Pattern[str]
    severity: str
    technique: str
    hit: str
    miss: str


def _rule(id: str, name: str, match: str, severity: str, technique: str, hit: str, miss: str) -> Rule:
    return Rule(id, name, re.compile(match, re.IGNORECASE), severity, technique, hit, miss)


RULES = (
    _rule("cred.ssh-key", "ssh-key", r"\.ssh/(id_[a-z0-9_]+|identity)(\s|['\"]|$)", "high", "T1552.004",
          "cat ~/.ssh/id_ed25519", "cat ~/.ssh/id_ed25519.pub"),
    _rule("cred.dotenv", "dotenv", r"(^|[\s/'\"=])\.env(\.(local|prod|production|dev|staging))?(\s|['\"]|$)", "medium", "T1552.001",
          "cat app/.env", "cat .env.example"),
    _rule("cred.aws-file", "aws-profile", r"\.aws/(credentials|config|sso/cache|cli/cache)", "high", "T1552.001",
          "cat ~/.aws/credentials", "aws s3 ls"),
    _rule("cred.cloud-file", "cloud-profile", r"gcloud/(application_default_credentials|credentials|access_tokens)|\.azure/(accessTokens|msal_token_cache)",
          "high", "T1552.001", "cat ~/.config/gcloud/application_default_credentials.json", "gcloud config list"),
    _rule("cred.kubeconfig", "kubeconfig", r"\.kube/config|/etc/kubernetes/[a-z-]+\.conf|/secrets/kubernetes\.io/", "high", "T1552.001",
          "cat ~/.kube/config", "kubectl get pods"),
    _rule("cred.run-secret", "container-secret", r"/run/secrets/|\.docker/config\.json", "high", "T1552.001",
          "cat /run/secrets/db", "docker ps"),
    _rule("cred.pkg-token", "package-registry", r"\.(npmrc|pypirc|yarnrc\.yml)(\s|['\"]|$)|\.cargo/credentials", "high", "T1552.001",
          "cat ~/.npmrc", "npm install"),
    _rule("cred.git", "git-credentials", r"\.git-credentials|\.netrc|git credential (fill|get)|gh auth token", "high", "T1552.001",
          "gh auth token", "git status"),
    _rule("cred.db-pass", "database-login", r"\.(pgpass|my\.cnf|mylogin\.cnf)(\s|['\"]|$)", "medium", "T1552.001",
          "cat ~/.pgpass", "psql -c 'select 1'"),
    _rule("cred.shadow", "os-accounts", r"/etc/(shadow|gshadow|sudoers)", "critical", "T1003.008",
          "cat /etc/shadow", "cat /etc/passwd"),
    _rule("cred.tls-key", "tls-key", r"/etc/(ssl|pki|letsencrypt)/[\w./-]{0,200}(private|privkey|\.key)|\.(p12|pfx|jks)(\s|['\"]|$)", "high", "T1552.004",
          "cat /etc/letsencrypt/live/x/privkey.pem", "openssl x509 -in cert.pem"),
    _rule("cred.browser", "browser-profile", r"Login Data|cookies\.sqlite|key4\.db|logins\.json|/Default/Cookies", "critical", "T1555.003",
          "cp ~/.config/chromium/Default/Cookies /tmp", "chromium --headless https://x"),
    _rule("cred.pw-manager", "password-manager", r"\b(op (read|item get)|bw (get|list|export)|pass show|lpass show)\b|\.kdbx", "high", "T1555.005",
          "op read op://v/i/f", "pass the salt"),
    _rule("cred.wallet", "crypto-wallet", r"wallet\.dat|\.(bitcoin|ethereum|electrum|solana)/|keystore/UTC--", "critical", "T1552.001",
          "cat ~/.solana/id.json", "echo wallet paper"),
    _rule("cred.env-dump", "environment", r"(^|[;&|]\s{0,8}|['\"])(printenv|env|export -p|declare -x)\s{0,8}($|[|>;&'\"])|\bprintenv \S", "high", "T1552.001",
          "printenv GITHUB_TOKEN", "env FOO=1 make"),
    _rule("cred.proc-env", "process-environment", r"/proc/(\d+|self|\*)/(environ|mem)\b|\bgcore\b|\bgdb -p", "critical", "T1003.007",
          "cat /proc/1/environ", "cat /proc/cpuinfo"),
    _rule("cred.cloud-metadata", "instance-role", r"169\.254\.169\.254|169\.254\.170\.2|metadata\.google\.internal|computeMetadata/v1", "critical", "T1552.005",
          "curl http://169.254.169.254/latest/meta-data/", "curl http://10.0.0.1/"),
    _rule("cred.openclaw", "openclaw-secrets", r"openclaw\.json|openclaw(-agent)?\.sqlite|auth-profiles|OPENCLAW_GATEWAY_(TOKEN|PASSWORD)", "high", "AML.T0083",
          "cat ~/.openclaw/openclaw.json", "cat package.json"),
    _rule("trail.tamper", "audit-path", r"/run/clawtrail|audit\.sock\b", "critical", "T1562.001",
          "nc -U /run/clawtrail/audit.sock", "tail app.log"),
    _rule("trail.bypass", "unrecorded-agent", r"\bopenclaw(\.mjs)? agent (exec|--local)\b", "critical", "T1562.001",
          "openclaw agent exec 'do it'", "openclaw gateway status"),
)  # fmt: skip


def matches(parameters: str) -> list[Rule]:
    """The rules that the text of a call's parameters hits, worst first."""
    rank = {"critical": 0, "high": 1, "medium": 2}
    return sorted((r for r in RULES if r.match.search(parameters)), key=lambda r: rank[r.severity])
