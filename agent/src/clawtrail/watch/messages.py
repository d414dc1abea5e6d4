"""What is said to the agent and by it: how far the words may be trusted, whom they name, whether two agents only talk to each other."""

from __future__ import annotations

from typing import Any

from .egress import Egress
from .seen import Seen
from .state import Bounded

NAMES = 2048  #: pairs of agents, texts


class Messages:
    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._pairs: Bounded[str, list[float]] = Bounded(NAMES)  #: since when, how many

    def come_in(self, seen: Seen) -> None:
        seen.mark_content()
        actor = seen.group("actor")
        if not actor and seen.state.actor and isinstance(seen.run, str):
            actor = seen.state.actor
        if actor.get("display") and actor.get("auth") in (None, "none", "asserted"):
            given = seen.get("asserted")
            names = [str(n) for n in given] if isinstance(given, list) else []
            seen.put("asserted", names if "actor.display" in names else [*names, "actor.display"])
        if seen.group("actor") and actor.get("id"):
            seen.history.acts_for(seen.session, seen.state, {**(seen.state.actor or {}), **actor})
        judge_instruction(seen, actor)
        self._loop(seen)

    def go_out(self, seen: Seen) -> None:
        seen.mark_content()
        seen.cause("model.decision")
        self._egress.by_message(seen)
        seen.check_tenant()
        self._loop(seen)

    def _loop(self, seen: Seen) -> None:
        limits, peer, now = seen.limits("message.loop"), seen.group("peer"), seen.history.clock()
        keys = []
        if peer.get("agent") or peer.get("session"):
            keys.append(f"peer {seen.session} {peer.get('agent')} {peer.get('session')}")
        if seen.kind == "message.out" and seen.outcome != "attempt" and (sha := seen.group("content").get("sha256")):
            keys.append(f"text {seen.session} {sha}")
        for key in keys:
            window = self._pairs.use(key) or self._pairs.put(key, [now, 0])
            if now - window[0] > limits["within_s"]:
                window[:] = [now, 0]
            window[1] += 1
            if window[1] > limits["messages"]:
                seen.hit("message.loop")


def judge_instruction(seen: Seen, actor: dict[str, Any]) -> None:
    """How far the words of whoever speaks may be trusted. Says nothing where the host says nothing."""
    content, peer = seen.group("content"), seen.group("peer")
    trust, source = content.get("trust"), content.get("source")
    if not trust:
        if peer.get("agent") and peer.get("proof") != "cert":
            trust, source = "untrusted-instruction", source or f"agent:{peer['agent']}"
        elif actor.get("auth") == "none" or actor.get("owner") is False:
            who, surface = str(actor.get("id") or "unknown"), actor.get("surface")
            trust, source = "untrusted-instruction", source or (who if ":" in who or not surface else f"{surface}:{who}")
        elif actor.get("owner") is True:
            trust, source = "trusted-instruction", source or actor.get("surface")
    if not trust:
        return
    seen.put("content", {k: v for k, v in {**content, "trust": trust, "source": source}.items() if v})
    if str(trust).startswith("untrusted"):
        seen.has_read(str(source or trust))
    else:
        for host in str(seen.group("content").get("links", "")).split():
            seen.state.name(host)
        if actor.get("id"):
            seen.state.name(str(actor["id"]))
