"""What leaves the agent, and to whom: destinations known and new, links, secrets that came out of an earlier call, broadcasts."""

from __future__ import annotations

from typing import Any, Callable

from . import text, tools
from .kept import Kept, as_nothing
from .seen import Seen
from .state import Bounded, Session

HOSTS = 16_384
FPS = 8192

_PII = frozenset({"ssn", "iban", "medical", "card", "credit-card", "passport", "phone", "email", "pii"})


class Egress:
    """Knows the destinations that untainted sessions used, and the fingerprints of the secrets that tools returned.

    Args:
        said: the deployment's rules, tried on a text that leaves the agent: `Rules.said`.
    """

    def __init__(self, said: Callable[..., Any] | None) -> None:
        self._said = said
        self._hosts: Bounded[str, None] = Bounded(HOSTS)
        self._fps: Bounded[str, None] = Bounded(FPS)

    def keep(self, kept: Kept) -> None:
        kept.hold("hosts", self._hosts, as_nothing)
        kept.hold("fps", self._fps, as_nothing)

    def by_call(self, seen: Seen, touch: tools.Touch) -> None:
        content, target = seen.group("content"), seen.group("target")
        if touch.recipients and touch.sends:
            first, rest = touch.recipients[0], touch.recipients[1:]
            kind = "email" if text.mail_host(first) else "channel"
            target = {"type": kind, "id": first, **target, "n": len(touch.recipients)}
            if rest:
                target.setdefault("also", " ".join(rest[:32])[:1024])
            seen.put("target", target)
            self._broadcast(seen, len(touch.recipients))
        elif touch.reaches and not target:
            target = {"type": "host", "id": touch.hosts[0]}
            if touch.hosts[1:]:
                target["also"] = " ".join(touch.hosts[1:])
            seen.put("target", target)
        if touch.reaches:
            self._destinations(seen, touch.hosts + [r.lower() for r in touch.recipients[:32] if touch.sends], touch.sends)
        if content.get("redactions") or content.get("fps"):
            if touch.reaches:
                self._secret(seen, content)
            elif seen.state.taint and (touch.written or seen.word("tool", "type") == "mcp"):
                seen.hit("secret.written-after-untrusted")

    def by_message(self, seen: Seen) -> None:
        content, target = seen.group("content"), seen.group("target")
        self.by_text(seen)
        if target.get("type") in ("url", "host", "email") and target.get("id"):
            hosts = text.hosts(str(target["id"])) or [text.mail_host(str(target["id"])) or str(target["id"]).lower()]
            self._destinations(seen, hosts, True)
        if content.get("redactions"):
            self._secret(seen, content)
        if _PII & set(str(content.get("classes", "")).replace(",", " ").split()) and seen.owner() is False:
            seen.hit("pii.to-non-owner")
        if isinstance(target.get("n"), int):
            self._broadcast(seen, target["n"])

    def by_text(self, seen: Seen) -> None:
        """What a text that leaves the agent says and links to. A reader's client may fetch it without a click."""
        content = seen.group("content")
        excerpt = content.get("excerpt")
        if self._said is not None and isinstance(excerpt, str):
            hits = self._said(excerpt, tainted=bool(seen.taint), owner=seen.owner())
            seen.flags += [(hit.rule.id, hit.severity, hit.rule.technique) for hit in hits]
        if any(not self._is_known(seen.state, host) for host in str(content.get("links", "")).split()):
            seen.hit("link.unseen-host")

    def by_result(self, content: dict[str, Any]) -> None:
        """A secret that a result brought is followed from now on."""
        for fp in str(content.get("fps", "")).split()[:64]:
            self._fps.put(fp, None)

    def _destinations(self, seen: Seen, places: list[str], sends: bool) -> None:
        new = [p for p in places if p and not self._is_known(seen.state, p)]
        if places:
            seen.put("target", {**seen.group("target"), "new": bool(new)})
        if not seen.state.taint:
            for place in places:
                self._hosts.put(place, None)
        elif new:
            seen.hit("egress.after-untrusted", worse_by=0 if sends else -1)

    def _is_known(self, state: Session, place: str) -> bool:
        return place in self._hosts or place in state.named

    def _secret(self, seen: Seen, content: dict[str, Any]) -> None:
        followed = any(fp in self._fps for fp in str(content.get("fps", "")).split())
        seen.hit("secret.in-egress", worse_by=0 if followed or seen.state.taint else -1)

    def _broadcast(self, seen: Seen, n: int) -> None:
        verified = seen.owner() is True and not seen.state.taint and seen.group("actor").get("auth") != "none"
        if n > seen.limits("broadcast.unverified")["recipients"] and not verified:
            seen.hit("broadcast.unverified")
