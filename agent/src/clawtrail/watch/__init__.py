"""The state of sessions: what of an event only the session's history tells.

Whether the session has read untrusted content, and from where; how far a text may be trusted; which memory was touched
and who is behind it; whether a destination is new; whether a secret that came out of one call goes into another; what a
run has used. And the rules that need this, `companions.py`: they are judged here, where all facts are at hand.

In memory alone, and bounded: a restarted process begins anew, with no session tainted and no destination known.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Mapping

from . import text, tools
from .companions import COMPANIONS, SEVERITIES, Companion, configured, worse
from .state import Bounded, Call, Run, Session
from .text import line_digests, marks

__all__ = ["COMPANIONS", "Companion", "Standing", "Watch", "configured", "line_digests", "marks"]

SESSIONS = 4096  #: remembered in full
TAINTS = 16_384  #: tainted sessions remembered when the rest of them is forgotten
CALLS = 8192
RUNS = 4096
ITEMS = 8192  #: files written under taint; contents by their item
HOSTS = 16_384
FPS = 8192
JOBS = 1024
NAMES = 2048  #: tools, skills, devices, identities, pairs of agents

#: Reasons of a session's end after which its context goes on.
_GOES_ON = frozenset({"compaction", "shutdown", "restart"})
_BOOTSTRAP = frozenset({"memory.md", "soul.md", "agents.md", "user.md", "identity.md", "tools.md", "heartbeat.md"})  # put into every session by the host
_OFF = frozenset({"off", "none", "disabled", "disable", "false", "never", "full", "removed", "unloaded", "uninstalled", "deleted"})
_ABSENT = frozenset({"", "none", "null", "added", "absent"})
_PII = frozenset({"ssn", "iban", "medical", "card", "credit-card", "passport", "phone", "email", "pii"})
_UNPRIVILEGED = frozenset({"subscriber", "guest", "viewer", "anonymous", "reader"})
_GENERAL = frozenset({"tool.by-non-owner", "tool.by-unverified"})  # behind a rule that says what was done
_TOKENS = ("input", "output", "cache_read", "cache_write", "reasoning")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_VOLATILE = re.compile(r'\\?"(?:fetchedAt|tookMs|cached|cachedAt|durationMs|elapsedMs|timestamp)\\?":\s*(?:\\?"[^"]{0,64}"|[\w.+-]+)|\b[0-9a-f]{16,}\b')
_ENDLESS = re.compile(r"\bcrontab\s+(?:-e|[^\s;&|-])|\|\s*crontab\b|\bwhile\s+(?:true|:|\[\s*1\s*\])|\bfor\s*\(\(\s*;\s*;|systemctl\s+(?:--user\s+)?enable|/etc/cron|\bwatch\s+-n")
_GATE_NAME = re.compile(r"approv|exec\.(?:ask|security)|sandbox|elevated", re.IGNORECASE)


@dataclass(frozen=True)
class Standing:
    """What a stateless rule is told of a session: `owner` is None when the host does not say."""

    tainted: bool
    owner: bool | None


class Watch:
    """Sees every event before it is recorded and adds what its session's history tells. Not thread-safe.

    Args:
        rules: the deployment's rules, see `rules.Rules`: their section `watch` sets thresholds and severities, and texts that
            leave the agent are tried on them. What they match in a call's parameters is found by the caller, who tells them
            of `standing`.
        settings: such a section itself, in place of that of `rules`; see `companions`.
        trusted: tools, or `mcp:server`, whose results are trusted all the same.
        clock: seconds that only go forward.

    Raises ConfigurationError for settings that are none.
    """

    def __init__(
        self,
        rules: Any = None,
        *,
        settings: Mapping[str, Any] | None = None,
        trusted: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._companions = configured(settings if settings is not None else getattr(rules, "watch", None) or {})
        self._trusted, self._clock, self._born = frozenset(trusted), clock, clock()
        self._said = getattr(rules, "said", None)
        self._sessions: Bounded[str, Session] = Bounded(SESSIONS)
        self._taints: Bounded[str, str] = Bounded(TAINTS)
        self._runs: Bounded[str, Run] = Bounded(RUNS)
        self._calls: Bounded[str, Call] = Bounded(CALLS)
        self._items: Bounded[str, str] = Bounded(ITEMS)
        self._contents: Bounded[str, str] = Bounded(ITEMS)
        self._hosts: Bounded[str, None] = Bounded(HOSTS)
        self._fps: Bounded[str, str] = Bounded(FPS)
        self._jobs: Bounded[str, tuple[str, str | None]] = Bounded(JOBS)
        self._spawning: Bounded[str, str] = Bounded(JOBS)
        self._versions: Bounded[str, str] = Bounded(NAMES)
        self._definitions: Bounded[str, str] = Bounded(NAMES)
        self._shown: Bounded[str, dict[str, None]] = Bounded(NAMES)
        self._devices: Bounded[str, None] = Bounded(NAMES)
        self._places: Bounded[str, dict[str, None]] = Bounded(NAMES)
        self._asked: Bounded[str, float] = Bounded(NAMES)
        self._stamps: Bounded[str, list[float]] = Bounded(NAMES)
        self._pairs: Bounded[str, list[float]] = Bounded(NAMES)
        self._prompts: Bounded[str, frozenset[str]] = Bounded(256)
        self.failed = 0  #: events of a shape that could not be read; they are recorded as they came
        self._kinds: dict[str, Callable[[_Seen], None]] = {
            "tool.call": self._tool_call, "tool.result": self._tool_result, "run.start": self._run_start, "run.end": self._run_end,
            "message.in": self._message_in, "message.out": self._message_out, "model.request": self._model_request,
            "model.decision": self._model_decision, "session.end": self._session_end, "subagent.start": self._subagent_start,
            "subagent.end": self._subagent_end, "approval.request": self._approval_request, "approval.result": self._approval_result,
            "auth.login": self._login, "config.change": self._change, "policy.decision": self._policy, "system.heartbeat": self._heartbeat,
        }  # fmt: skip

    # -- what callers use ----------------------------------------------------------------------------------------

    def see(self, kind: str, outcome: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with what the history adds; `fields` itself stays as it is. Never raises."""
        try:
            seen = _Seen(self, kind, outcome, fields)
            if handle := self._kinds.get(kind):
                handle(seen)
            return seen.fields()
        except Exception:
            self.failed += 1
            return fields

    def recorded(self, kind: str, fields: Mapping[str, Any], id: str) -> None:
        """Tells under which id an event that `see` returned was recorded, so that a later one can name it as its cause."""
        session = fields.get("session")
        if isinstance(session, str) and (state := self._sessions.get(session)):
            state.last[kind] = id
        if kind == "tool.call" and (call := self._calls.get(_word(fields.get("tool"), "call_id"))):
            call.id = id

    def standing(self, session: object, run: object = None, actor: object = None) -> Standing:
        """Whether the session is tainted and its actor the owner, for `Rules.hits`. `actor`: whom the host names. Never raises."""
        state = self._sessions.get(session) if isinstance(session, str) else None
        of_run = self._runs.get(run) if isinstance(run, str) else None
        owner = actor.get("owner") if isinstance(actor, dict) and not _nobody(session, run, actor) else None
        if owner is None:
            owner = ((of_run.actor if of_run else None) or (state.actor if state else None) or {}).get("owner")
        taint = state.taint if state else self._taints.get(session, "") if isinstance(session, str) else ""
        return Standing(bool(taint), owner if isinstance(owner, bool) else None)

    def instructions(self, session: object, digests: Iterable[object]) -> None:
        """The lines of a session's system prompt as `line_digests` gives them, for the rule output.repeats-system-prompt."""
        if isinstance(session, str):
            self._prompts.put(session, frozenset(d for d in list(digests)[:512] if isinstance(d, str)))

    def definitions(self, hashes: Mapping[str, str], session: object = None) -> list[tuple[str, str, str]]:
        """The tools' definitions as the model is shown them: name → hash. Returns (name, before, after) of those that changed.

        From now on each call of the tool carries its hash as `tool.def`. A host shows its owner, its guests and its
        subagents different ones: a change is one against what the same sort of session was shown, to what none was.
        """
        changed, sort = [], self._sort(session)
        for name, after in list(hashes.items())[:NAMES]:
            before, known = self._definitions.get(f"{sort} {name}"), self._shown.get(name) or self._shown.put(name, {})
            if before is not None and before != after and after not in known:
                changed.append((name, before, after))
            if len(known) < 32:
                known[after] = None
            self._definitions.put(f"{sort} {name}", after)
        return changed

    def _sort(self, session: object) -> str:
        inner = re.search(r":(subagent|cron|heartbeat):", session) if isinstance(session, str) else None
        return f"{inner[1] if inner else 'main'} {self.standing(session).owner}"

    @property
    def counters(self) -> dict[str, int]:
        """For the heartbeat: sessions known and tainted, taints that there was no room for, events that could not be read."""
        return {"sessions": len(self._sessions), "tainted": len(self._taints), "taints_lost": self._taints.let_go, "unread": self.failed}

    # -- sessions ------------------------------------------------------------------------------------------------

    def _session(self, name: object) -> Session:
        if not isinstance(name, str) or not name:
            return Session()  # nowhere to remember it
        state = self._sessions.use(name)
        return state or self._sessions.put(name, Session(taint=self._taints.get(name, "")))

    def _run(self, name: object, session: object, started: bool = False) -> Run | None:
        if not isinstance(name, str) or not name:
            return None
        run = self._runs.use(name)
        if run is None:
            run = self._runs.put(name, Run(session if isinstance(session, str) else None, started))
        return run

    def _taint(self, name: object, state: Session, source: str) -> None:
        if not state.taint and source:
            state.taint = source[:256]
            if isinstance(name, str) and name:
                self._taints.put(name, state.taint)

    def _carry(self, source: object, to: object) -> None:
        """What one session has read, the other has from now on."""
        if isinstance(source, str) and (taint := self._taints.get(source)):
            self._taint(to, self._session(to), taint)

    def _session_end(self, seen: _Seen) -> None:
        if _word(seen.group("health"), "reason") in _GOES_ON or not isinstance(seen.session, str):
            return
        self._sessions.pop(seen.session, None)
        self._taints.pop(seen.session, None)

    def _subagent_start(self, seen: _Seen) -> None:
        self._descends(seen.session, _word(seen.group("peer"), "session"))
        seen.cause("tool.call")

    def _descends(self, parent: object, child: str) -> None:
        """A subagent has read what its parent has, and works for whom the parent works for."""
        self._carry(parent, child)
        if child and isinstance(parent, str) and (above := self._sessions.get(parent)) and above.actor:
            state = self._session(child)
            state.actor = state.actor or above.actor

    def _subagent_end(self, seen: _Seen) -> None:
        self._carry(_word(seen.group("peer"), "session"), seen.session)  # its answer is announced to who asked

    def _run_start(self, seen: _Seen) -> None:
        run = self._run(seen.run, seen.session, True)
        actor = {} if _nobody(seen.session, seen.run, seen.group("actor")) else seen.group("actor")
        if run:
            run.started, run.actor = True, actor or None
        state, name = seen.state, seen.session if isinstance(seen.session, str) else ""
        state.run = seen.run if isinstance(seen.run, str) else None
        if actor:
            state.actor = actor
        trigger = seen.group("trigger")
        if isinstance(seen.run, str) and seen.run.startswith("announce:v1:"):
            self._carry(seen.run.removeprefix("announce:v1:").rpartition(":")[0], name)
        if trigger.get("type") == "cron" and (job := self._jobs.get(str(trigger.get("ref")))):
            self._taint(name, state, job[0])
        if ":subagent:" in name and not state.taint:
            # The host may tell that a subagent was spawned only after it has begun: who spawns now, may be its parent.
            for parent in self._spawning.values():
                if parent.split(":")[:2] == name.split(":")[:2]:
                    self._descends(parent, name)
        for item in _BOOTSTRAP:
            if item in self._items:
                self._taint(name, state, item.upper().replace(".MD", ".md"))
                break
        self._judge_instruction(seen, actor)
        seen.taint = state.taint or None
        seen.cause("message.in")

    def _run_end(self, seen: _Seen) -> None:
        run = self._runs.pop(seen.run, None) if isinstance(seen.run, str) else None
        if run:
            own = {"steps": run.tools or run.calls, "tools": run.tools, **run.usage}
            usage = seen.group("usage")
            seen.put("usage", {**{k: v for k, v in own.items() if v}, **usage})
            self._budget(seen, run, True)
        seen.cause("run.start")

    def _budget(self, seen: _Seen, run: Run, again: bool = False) -> None:
        limits = self._companions["run.over-budget"].limits
        over = run.steps > limits["steps"] or run.usage.get("input", 0) + run.usage.get("output", 0) > limits["tokens"]
        if over and (again or not run.over):
            run.over = True
            seen.hit("run.over-budget")

    def _known_run(self, seen: _Seen) -> Run | None:
        """The event's run; one that acts and has never begun went past the gate."""
        name = seen.run if isinstance(seen.run, str) else None
        if name is None:
            return None
        if seen.kind == "tool.call" and name not in self._runs and self._clock() - self._born > self._companions["hooks.bypassed"].limits["grace_s"]:
            seen.hit("hooks.bypassed")
        return self._run(name, seen.session)

    # -- messages ------------------------------------------------------------------------------------------------

    def _judge_instruction(self, seen: _Seen, actor: dict[str, Any]) -> None:
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
            self._taint(seen.session, seen.state, str(source or trust))
        else:
            for host in str(seen.group("content").get("links", "")).split():
                seen.state.name(host)
            if actor.get("id"):
                seen.state.name(str(actor["id"]))

    def _message_in(self, seen: _Seen) -> None:
        seen.mark_content()
        actor = seen.group("actor")
        if not actor and seen.state.actor and isinstance(seen.run, str):
            actor = seen.state.actor
        if actor.get("display") and actor.get("auth") in (None, "none", "asserted"):
            given = seen.get("asserted")
            names = [str(n) for n in given] if isinstance(given, list) else []
            seen.put("asserted", names if "actor.display" in names else [*names, "actor.display"])
        if seen.group("actor") and actor.get("id"):
            seen.state.actor = {**(seen.state.actor or {}), **actor}
        self._judge_instruction(seen, actor)
        self._loop(seen)

    def _message_out(self, seen: _Seen) -> None:
        seen.mark_content()
        content, target = seen.group("content"), seen.group("target")
        if seen.outcome != "success" or not seen.get("caused_by"):
            seen.cause("model.decision")
        self._links_out(seen, content)
        if target.get("type") in ("url", "host", "email") and target.get("id"):
            hosts = text.hosts(str(target["id"])) or [text.mail_host(str(target["id"])) or str(target["id"]).lower()]
            self._destinations(seen, hosts, True)
        if content.get("redactions"):
            self._secret_out(seen, content)
        classes = set(str(content.get("classes", "")).replace(",", " ").split())
        if classes & _PII and self._owner(seen) is False:
            seen.hit("pii.to-non-owner")
        if isinstance(target.get("n"), int):
            self._broadcast(seen, target["n"])
        self._tenant(seen)
        self._loop(seen)

    def _links_out(self, seen: _Seen, content: dict[str, Any]) -> None:
        """What a text that leaves the agent links to. A reader's client may fetch it without a click."""
        excerpt = content.get("excerpt")
        if self._said is not None and isinstance(excerpt, str):
            hits = self._said(excerpt, tainted=bool(seen.taint), owner=self._owner(seen))
            seen.flags += [(hit.rule.id, hit.severity, hit.rule.technique) for hit in hits]
        if any(not self._is_known(seen.state, host) for host in str(content.get("links", "")).split()):
            seen.hit("link.unseen-host")

    def _loop(self, seen: _Seen) -> None:
        limits, peer, now = self._companions["message.loop"].limits, seen.group("peer"), self._clock()
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

    # -- the model -----------------------------------------------------------------------------------------------

    def _model_request(self, seen: _Seen) -> None:
        if seen.group("model").get("via") == "proxy":
            return
        self._known_run(seen)
        seen.cause("run.start")

    def _model_decision(self, seen: _Seen) -> None:
        seen.mark_content()
        decision, content = seen.group("decision"), seen.group("content")
        proxy = seen.group("model").get("via") == "proxy"
        if not proxy:
            seen.cause("model.request")
            run = self._known_run(seen)
            if run:
                run.calls += 1
                for key in _TOKENS:
                    if isinstance(n := seen.group("usage").get(key), int) and not isinstance(n, bool) and n > 0:
                        run.usage[key] = run.usage.get(key, 0) + n
                self._budget(seen, run)
            if decision.get("stop") == "refusal":
                seen.state.refusals += 1
                if seen.state.refusals >= self._companions["refusals.repeated"].limits["refusals"]:
                    seen.hit("refusals.repeated")
        prompt = self._prompts.get(seen.session) if isinstance(seen.session, str) else None
        if prompt and isinstance(excerpt := content.get("excerpt"), str):
            if len(prompt.intersection(line_digests(excerpt))) >= self._companions["output.repeats-system-prompt"].limits["lines"]:
                seen.hit("output.repeats-system-prompt")
        self._links_out(seen, content)

    # -- tools ---------------------------------------------------------------------------------------------------

    def _tool_call(self, seen: _Seen) -> None:
        tool, params, state = seen.group("tool"), seen.group("params"), seen.state
        name, short = _word(tool, "name"), _word(tool, "name").rpartition("__")[2].lower()
        run = self._known_run(seen)
        if run:
            run.tools += 1
            self._budget(seen, run)
        self._who(seen, run)
        if not tool.get("def") and (shown := self._definitions.get(f"{self._sort(seen.session)} {name}")):
            seen.put("tool", {**tool, "def": shown})
        touch = tools.touch(name, _word(tool, "type"), _word(tool, "server"), params, self._trusted)
        whole = "\n".join(touch.texts)
        content = seen.group("content")
        found = {k: v for k, v in {"links": " ".join(touch.hosts), "hidden": text.hidden(whole)}.items() if v and not content.get(k)}
        if found:
            seen.put("content", {**content, **found})
        owner, auth = self._owner(seen), seen.group("actor").get("auth")
        self._by_whom(seen, short, owner, auth)
        self._memory_touched(seen, touch, owner)
        self._goes_out(seen, touch, owner)
        job = recurring = None
        if short in tools.SCHEDULES:
            job, recurring = self._schedule(seen, params)
        elif short in tools.SHELLS and _ENDLESS.search(whole):
            seen.hit("schedule.by-agent-no-end")
        if tool.get("type") == "mcp" and seen.group("actor").get("role") in _UNPRIVILEGED and seen.group("policy").get("verdict") in (None, "none"):
            seen.hit("tool.privileged-by-unprivileged")
        if call_id := _word(tool, "call_id"):
            local = short in tools.SHELLS | tools.READS | tools.WRITES | tools.SEARCHES
            self._calls.put(call_id, Call(name, seen.session if isinstance(seen.session, str) else None, state.taint, touch.source, touch.store,
                                          touch.reads, local, job, recurring))  # fmt: skip
            if short == "sessions_spawn" and isinstance(seen.session, str):
                self._spawning.put(call_id, seen.session)
        if short == "sessions_send" and isinstance(to := params.get("sessionKey"), str):
            self._carry(seen.session, to)
        if state.last:
            seen.cause("model.decision")

    def _who(self, seen: _Seen, run: Run | None) -> None:
        """The actor of the run, where the host does not say again for the call."""
        known = (run.actor if run else None) or {}
        given = seen.group("actor")
        missing = {k: known[k] for k in ("type", "id", "auth", "owner", "role", "surface", "tenant", "display") if k in known and given.get(k) is None}
        if missing and (not given.get("id") or given.get("id") == known.get("id")):
            seen.put("actor", {**given, **missing})

    def _owner(self, seen: _Seen) -> bool | None:
        return self.standing(seen.session, seen.run, seen.group("actor")).owner

    def _by_whom(self, seen: _Seen, short: str, owner: bool | None, auth: object) -> None:
        if owner is False:
            seen.hit("tool.by-non-owner", worse_by=1 if short in tools.PRIVILEGED else 0)
        if auth == "none":
            seen.hit("tool.by-unverified")

    def _memory_touched(self, seen: _Seen, touch: tools.Touch, owner: bool | None) -> None:
        taint = seen.state.taint
        origin = "non-owner" if owner is False else taint or ("owner" if owner else None)
        for path in touch.written[:64]:
            if taint or owner is False:
                self._items.put(_item_key(path), taint or "non-owner")
            else:
                self._items.pop(_item_key(path), None)
        store = touch.store
        if not store or store.get("op") == "read":
            return
        seen.put("store", {k: v for k, v in {**store, "origin": origin, **seen.group("store")}.items() if v is not None})
        if store["op"] == "delete" and owner is False:
            seen.hit("memory.delete-by-non-owner")
        if taint or owner is False:
            seen.hit("memory.write-untrusted")

    def _goes_out(self, seen: _Seen, touch: tools.Touch, owner: bool | None) -> None:
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
                self._secret_out(seen, content)
            elif seen.state.taint and (touch.written or _word(seen.group("tool"), "type") == "mcp"):
                seen.hit("secret.written-after-untrusted")

    def _destinations(self, seen: _Seen, places: list[str], sends: bool) -> None:
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

    def _secret_out(self, seen: _Seen, content: dict[str, Any]) -> None:
        followed = any(fp in self._fps for fp in str(content.get("fps", "")).split())
        seen.hit("secret.in-egress", worse_by=0 if followed or seen.state.taint else -1)

    def _broadcast(self, seen: _Seen, n: int) -> None:
        owner = self._owner(seen)
        if n > self._companions["broadcast.unverified"].limits["recipients"] and (owner is not True or seen.state.taint or seen.group("actor").get("auth") == "none"):
            seen.hit("broadcast.unverified")

    def _schedule(self, seen: _Seen, params: dict[str, Any]) -> tuple[str | None, str | None]:
        """The job that a call of `cron` makes, and its schedule when that has no end."""
        given = params.get("job")
        job: dict[str, Any] = given if isinstance(given, dict) else params
        if params.get("action") not in ("add", "create", "update", None):
            return None, None
        name, schedule = str(job.get("name") or job.get("jobId") or "")[:256], job.get("schedule")
        plain = schedule if isinstance(schedule, dict) else {"kind": "cron" if schedule else None, "expr": schedule}
        bounded = plain.get("kind") in ("at", None) or any(job.get(k) or plain.get(k) for k in ("deleteAfterRun", "endAt", "until", "maxRuns"))
        spec = str(plain.get("expr") or plain.get("everyMs") or plain.get("every") or plain.get("kind"))[:128]
        self._jobs.put(name, (seen.state.taint, None if bounded else spec))
        if not bounded:
            seen.hit("schedule.by-agent-no-end")
        return name, None if bounded else spec

    def _tool_result(self, seen: _Seen) -> None:
        seen.mark_content()
        content, tool, state = seen.group("content"), seen.group("tool"), seen.state
        call = self._calls.pop(_word(tool, "call_id"), None) or self._unknown_call(tool)
        short = call.tool.rpartition("__")[2].lower()
        if call.id and not seen.get("caused_by"):
            seen.put("caused_by", call.id)
        if content.get("size") and seen.outcome != "denied":
            self._judge_result(seen, call, content)
        if call.job is not None and (made := _UUID.search(str(content.get("excerpt", "")))):
            self._jobs.put(made[0], (call.taint, call.recurring))
        if short == "sessions_spawn" and (child := re.search(r"agent:[\w-]+:subagent:[0-9a-f-]{36}", str(content.get("excerpt", "")))):
            self._descends(call.session, child[0])
        if short == "sessions_spawn":
            self._spawning.pop(_word(tool, "call_id"), None)
        fps = str(content.get("fps", "")).split()
        for fp in fps[:64]:
            self._fps.put(fp, call.tool)
        excerpt = content.get("excerpt")
        if content.get("redactions") or isinstance(excerpt, str) and text.masked(excerpt):
            seen.hit("secret.in-result")
        self._tenant(seen)

    def _unknown_call(self, tool: dict[str, Any]) -> Call:
        """A result alone: what the tool is still tells where it comes from."""
        touch = tools.touch(_word(tool, "name"), _word(tool, "type"), _word(tool, "server"), {}, self._trusted)
        return Call(_word(tool, "name"), None, "", touch.source, None, [], False)

    def _judge_result(self, seen: _Seen, call: Call, content: dict[str, Any]) -> None:
        state, store = seen.state, seen.group("store")
        read = call.store if call.store and call.store.get("op") == "read" else None
        source, origin = call.source, None
        named = [*call.reads, *(str(read.get("item")) for read in [read] if read and read.get("item"))]
        if call.tool.rpartition("__")[2].lower() in tools.SEARCHES:
            named += [m[1] for m in tools.MEMORY_IN_COMMAND.finditer(str(content.get("excerpt", "")))][:64]
        for path in named:
            if tainted := self._items.get(_item_key(path)):
                source, origin = tools.memory_item(path) or f"file:{path.rpartition('/')[2][:256]}", tainted
                break
        if read or store:
            item = source if origin and read and not read.get("item") else None
            group = {**(read or {}), "item": item or (read or {}).get("item"), **store}
            group = {k: v for k, v in {**group, "origin": origin or group.get("origin")}.items() if v is not None}
            seen.put("store", group)
        trust = content.get("trust")
        if not trust:
            if source:
                trust = "untrusted-data"
            elif call.local:
                trust, source = ("untrusted-data", state.taint) if state.taint else ("trusted-data", None)
        if trust:
            seen.put("content", {k: v for k, v in {**content, "trust": trust, "source": content.get("source") or source}.items() if v is not None})
        if str(trust).startswith("untrusted"):
            self._taint(seen.session, state, str(content.get("source") or source or trust))
        self._same_as_before(seen, content)

    def _same_as_before(self, seen: _Seen, content: dict[str, Any]) -> None:
        store = seen.group("store")
        item, excerpt = store.get("item"), content.get("excerpt")
        if not isinstance(item, str) or store.get("kind") not in ("web", "external") or not isinstance(excerpt, str):
            return
        now = hashlib.sha256(_VOLATILE.sub("", excerpt).encode("utf-8", "replace")).hexdigest()[:16]
        before = self._contents.get(item)
        self._contents.put(item, now)
        if before is not None and before != now:
            seen.hit("content.changed")

    def _tenant(self, seen: _Seen) -> None:
        of, origin = seen.group("actor").get("tenant"), str(seen.group("store").get("origin", ""))
        if of is None:
            of = (seen.state.actor or {}).get("tenant")
        if of and origin.startswith("tenant:") and origin.removeprefix("tenant:") != of:
            seen.hit("tenant.mismatch")

    # -- people, policy, changes ---------------------------------------------------------------------------------

    def _approval_request(self, seen: _Seen) -> None:
        self._asked.put(self._asked_by(seen), self._clock())
        seen.cause("tool.call")

    def _asked_by(self, seen: _Seen) -> str:
        return _word(seen.group("approval"), "id") or _word(seen.group("trace"), "id") or str(seen.session)

    def _approval_result(self, seen: _Seen) -> None:
        approval, limits, now = seen.group("approval"), self._companions["approval.rubber-stamp"].limits, self._clock()
        asked = self._asked.pop(self._asked_by(seen), None)
        waited = approval.get("waited_ms")
        if not isinstance(waited, int) and asked is not None:
            waited = round((now - asked) * 1000)
            seen.put("approval", {**approval, "waited_ms": waited})
        seen.cause("approval.request")
        who = str(approval.get("by") or seen.session)
        if seen.outcome != "success" or not isinstance(waited, int) or waited >= limits["waited_ms"]:
            self._stamps.pop(who, None)
            return
        stamps = [t for t in self._stamps.get(who, []) if now - t <= limits["within_s"]][-64:] + [now]
        self._stamps.put(who, stamps)
        if len(stamps) >= limits["answers"]:
            seen.hit("approval.rubber-stamp")

    def _login(self, seen: _Seen) -> None:
        actor, rule = seen.group("actor"), _word(seen.group("policy"), "rule")
        who, place = _word(actor, "id"), _word(actor, "addr")
        pairing = "pairing" in rule or (seen.outcome == "attempt" and actor.get("auth") == "none")
        if pairing:
            seen.hit("auth.new-device")
        elif who and seen.outcome == "success":
            if self._devices and who not in self._devices:
                seen.hit("auth.new-device")
            self._devices.put(who, None)
        if who and place:
            places = self._places.use(who)
            if places is not None and place not in places:
                seen.hit("auth.new-source")
            if seen.outcome == "success" or places is None:
                places = self._places.put(who, places or {})
                if len(places) < 64:
                    places[place] = None

    def _change(self, seen: _Seen) -> None:
        change = dict(seen.group("change"))
        what, name = _word(change, "what"), _word(change, "name")
        before, after = _word(change, "before"), _word(change, "after")
        if what == "schedule":
            self._job_changed(seen, change, name, after)
        elif what in ("tool", "skill", "plugin", "mcp", "knowledge"):
            self._capability_changed(seen, change, what, name, before, after)
        if what in ("approval", "sandbox", "policy", "config") and after.lower() in _OFF and (what in ("approval", "sandbox") or _GATE_NAME.search(name)):
            seen.hit("approval.switched-off")
        if what == "hook" and (after.lower() in _OFF or seen.outcome == "failure") or what == "plugin" and name == "clawtrail" and after.lower() in _OFF:
            seen.hit("hook.disabled")

    def _job_changed(self, seen: _Seen, change: dict[str, Any], name: str, action: str) -> None:
        caller = next((c for c in reversed(self._calls.values()) if c.job is not None and c.job in (name, "")), None)
        job = self._jobs.get(name)
        if job is None and caller is None:
            return
        taint, spec = job or ((caller.taint, caller.recurring) if caller else ("", None))
        if ident := _word(seen.group("trigger"), "ref"):
            self._jobs.put(ident, (taint, spec))
        seen.taint = taint or None
        if not change.get("by"):
            change["by"] = "agent"
        if spec:
            change.setdefault("spec", spec)
            change.setdefault("ends", "never")
        seen.put("change", change)
        if caller and caller.id and not seen.get("caused_by"):
            seen.put("caused_by", caller.id)
        if change["by"] == "agent" and change.get("ends") == "never" and action in ("added", "updated", ""):
            seen.hit("schedule.by-agent-no-end")

    def _capability_changed(self, seen: _Seen, change: dict[str, Any], what: str, name: str, before: str, after: str) -> None:
        key = f"{what} {name}"
        known = self._versions.get(key, "")
        if not before and known and after:
            before = change["before"] = known
            seen.put("change", change)
        if after:
            self._versions.put(key, after)
        if before.lower() not in _ABSENT and after.lower() not in _ABSENT | _OFF and before != after:
            seen.hit("tool.definition-changed" if what == "tool" else "capability.changed-after-approval")
        elif change.get("by") == "agent" and before.lower() in _ABSENT and what != "knowledge":
            seen.hit("capability.added-by-agent")

    def _policy(self, seen: _Seen) -> None:
        policy = seen.group("policy")
        if policy.get("engine") == "clawtrail" and policy.get("rule") in ("run-gate", "harness") and policy.get("verdict") == "none":
            seen.hit("hooks.bypassed")

    def _heartbeat(self, seen: _Seen) -> None:
        health = seen.group("health")
        if health.get("component") == "openclaw" and (health.get("hooks_missing") or health.get("plugin") in ("disabled", "failed")):
            seen.hit("hook.disabled")


class _Seen:
    """One event while it is looked at. Groups are replaced, never changed: they are still the caller's."""

    def __init__(self, watch: Watch, kind: str, outcome: str, fields: dict[str, Any]) -> None:
        self.kind, self.outcome, self._given = kind, outcome, fields
        self._added: dict[str, Any] = {}
        self._companions, self._owner = watch._companions, watch._owner
        self.session, self.run = fields.get("session"), fields.get("run")
        self.state = watch._session(self.session)
        self.taint: str | None = self.state.taint or None  # as it was before this event
        self.flags: list[tuple[str, str, str]] = []

    def get(self, name: str) -> Any:
        return self._added.get(name, self._given.get(name))

    def group(self, name: str) -> dict[str, Any]:
        value = self.get(name)
        return value if isinstance(value, dict) else {}

    def put(self, name: str, value: Any) -> None:
        self._added[name] = value

    def cause(self, kind: str) -> None:
        """Names the session's last event of this kind as the cause, if the host named none."""
        if not self.get("caused_by") and (id := self.state.last.get(kind)):
            self.put("caused_by", id)

    def mark_content(self) -> None:
        content = self.group("content")
        excerpt = content.get("excerpt")
        if isinstance(excerpt, str) and "links" not in content and "hidden" not in content and (found := marks(excerpt)):
            self.put("content", {**content, **found})

    def hit(self, rule: str, worse_by: int = 0) -> None:
        companion = self._companions[rule]
        if not companion.enabled:
            return
        severity = companion.severity
        steps = worse_by + (1 if companion.raised and (self.taint or self._owner(self) is False) else 0)
        for _ in range(max(steps, 0)):
            severity = worse(severity)
        if steps < 0:
            severity = SEVERITIES[max(SEVERITIES.index(severity) + steps, 0)]
        self.flags.append((rule, severity, companion.technique))

    def fields(self) -> dict[str, Any]:
        out = {**self._given, **self._added}
        if self.taint and not out.get("taint") and not self.kind.startswith(("system.", "auth.")):
            out["taint"] = self.taint
        if self.flags:
            out["flag"] = _merged(out.get("flag"), self.flags)
        return out


def _merged(given: Any, flags: list[tuple[str, str, str]]) -> dict[str, Any]:
    """One flag of all: the worst in front, the others by name in `also`."""
    all_ = list(flags)
    also: list[str] = []
    if isinstance(given, dict) and given.get("rule"):
        all_.insert(0, (str(given["rule"]), str(given.get("severity")), str(given.get("technique", ""))))
        also = str(given.get("also") or "").split()
    rank = {s: i for i, s in enumerate(reversed(SEVERITIES))}
    all_.sort(key=lambda f: (rank.get(f[1], len(rank)), f[0] in _GENERAL))
    rule, severity, technique = all_[0]
    rest = [r for r in dict.fromkeys([f[0] for f in all_[1:]] + also) if r != rule]
    return {k: v for k, v in {"rule": rule, "severity": severity, "technique": technique, "also": " ".join(rest)}.items() if v}


def _nobody(session: object, run: object, actor: Mapping[str, Any]) -> bool:
    """What a host starts by itself it calls "not the owner": no person is behind that."""
    inner = isinstance(session, str) and any(sort in session for sort in (":subagent:", ":cron:", ":heartbeat:"))
    inner = inner or (isinstance(run, str) and run.startswith("announce:")) or actor.get("type") in ("agent", "system")
    return inner and not actor.get("id") and actor.get("owner") is not True


def _word(group: object, name: str) -> str:
    value = group.get(name) if isinstance(group, dict) else None
    return value if isinstance(value, str) else ""


def _item_key(path: str) -> str:
    """One name for the ways in which a file is written: a memory item by its name, others by folder and file."""
    item = tools.memory_item(path)
    return item.lower() if item else "/".join(path.replace("\\", "/").rstrip("/").split("/")[-2:])
