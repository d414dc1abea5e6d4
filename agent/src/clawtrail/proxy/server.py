"""The proxy's server: its settings, what all exchanges share, late decisions, and model calls that only one side saw."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Protocol
from urllib.parse import urlsplit

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

from .. import event as ev
from ..errors import ClawtrailError, ConfigurationError, EventError
from ..gatekeeper import Gatekeeper
from ..recorder import Receipt, Recorder
from ..runs import Runs
from . import apis
from .exchange import Exchange
from .inbound import EXCHANGES
from .late import LateDecisions
from .refusal import Unrecorded

log = logging.getLogger("clawtrail.proxy")

TICK = 0.5  #: seconds between two looks for what is late or alone


class Sees(Protocol):
    """What adds a session's history to an event; see `watch.Watch`."""

    def see(self, kind: str, outcome: str, fields: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Upstream:
    """A provider. `base`: what OpenClaw would have as `baseUrl`; `api`: as OpenClaw names it; `key`: empty for none."""

    base: str
    api: str
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(f"model base URL {self.base!r}; expected http(s)://host[:port][/path]")
        if self.api not in apis.KEY_HEADERS:
            raise ConfigurationError(f"model API {self.api!r}; expected one of {' '.join(apis.KEY_HEADERS)}")
        if not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
            raise ConfigurationError("the model's key holds spaces, line breaks or what is not ASCII; expected the key alone")

    @property
    def host(self) -> str:
        return str(urlsplit(self.base).hostname)


@dataclass(frozen=True)
class Config:
    """
    Attributes:
        upstreams: by name, the first part of the path: `/model/chat/completions` goes to `model`.
        agents: token by agent; what the agents authenticate with.
        folder: where late decisions wait.
        idle: seconds that a provider may be silent within an answer.
        ca: PEM file of authorities that may sign a provider's certificate, beside the system's.
    """

    upstreams: Mapping[str, Upstream]
    agents: Mapping[str, str] = field(repr=False)
    folder: Path
    host: str = "127.0.0.1"
    port: int = 8300
    idle: float = 600.0
    ca: Path | None = None

    def __post_init__(self) -> None:
        if not self.upstreams or not self.agents or any(len(token) < 16 for token in self.agents.values()):
            raise ConfigurationError("the model proxy needs a provider, and for each agent a token of at least 16 characters")


class Proxy:
    """Serves between `start` and `close`, in the running event loop.

    Args:
        recorder: takes the events.
        runs: what is open, as the plugin has recorded it.
        watch: adds to each event what its session's history says; None: nothing.
        gatekeeper: how far an event comes before what it tells of goes on; None: it is accepted.
    """

    def __init__(self, recorder: Recorder, runs: Runs, watch: Sees | None, config: Config, gatekeeper: Gatekeeper | None = None) -> None:
        self.recorder, self.runs, self.config, self._watch = recorder, runs, config, watch
        self.gatekeeper = gatekeeper or Gatekeeper(recorder)
        self.late = LateDecisions(config.folder / "late")
        for name, token in config.agents.items():
            recorder.redactor.learn("agent-token", token)
        for upstream in config.upstreams.values():
            recorder.redactor.learn("model-key", upstream.key)
        self.counters = {"requests": 0, "no_tools": 0, "refused": 0, "unrecorded": 0, "decisions": 0, "cut": 0, "late": 0, "bypassed": 0}
        self.exchanges = self.bodies = 0
        self.bulky = asyncio.Lock()  #: one large body is read at a time
        self._last_stranger = float("-inf")
        self.stopping = False
        self._runner: web.AppRunner | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    def health(self) -> dict[str, Any]:
        """For the heartbeat."""
        return {**self.counters, "late_waiting": len(self.late), "late_lost": self.late.lost, "exchanges": self.exchanges}

    async def start(self) -> None:
        """Listens. Raises OSError when the address is taken, ConfigurationError for a file of authorities that is none."""
        context = ssl.create_default_context()
        if self.config.ca is not None and self.config.ca.exists() and self.config.ca.stat().st_size:
            try:
                context.load_verify_locations(self.config.ca)
            except ssl.SSLError as e:
                raise ConfigurationError(f"{self.config.ca}: {e}; expected certificates in PEM") from None
        self.http = ClientSession(
            connector=TCPConnector(limit=EXCHANGES, keepalive_timeout=30, ssl=context),
            timeout=ClientTimeout(total=None, sock_connect=10, sock_read=self.config.idle),
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
        )
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.config.host, self.config.port, backlog=EXCHANGES).start()
        self._task = asyncio.create_task(self._look())
        log.info("model proxy on port %d for %s", self.port, " ".join(f"{name} ({up.host})" for name, up in self.config.upstreams.items()))

    async def close(self) -> None:
        """Ends what is open; each exchange leaves its decision, the one that it has got so far."""
        self.stopping = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._runner is not None:
            await self._runner.shutdown()
            await self._runner.cleanup()
            await self.http.close()
        self._deliver()
        self.late.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/healthz":
            return web.json_response({"ok": True})
        self.exchanges += 1
        try:
            return await Exchange(self, request).answer()
        finally:
            self.exchanges -= 1

    # -- recording -----------------------------------------------------------------------------------------------

    def note(self, kind: str, outcome: str, fields: dict[str, Any]) -> Receipt:
        """Hands an event to the recorder. Raises Unrecorded."""
        try:
            if self._watch is not None:
                fields = self._watch.see(kind, outcome, fields)
            return self.recorder.record(kind, outcome, **fields)
        except ClawtrailError as e:
            raise Unrecorded(str(e), getattr(e, "accepted", False), isinstance(e, EventError)) from e

    async def acknowledged(self, receipt: Receipt, fields: dict[str, Any]) -> None:
        """What was noted has come as far as the gate asks. Raises Unrecorded."""
        level = self.gatekeeper.level(("model",))
        if level == "off":
            self.gatekeeper.break_glass.pass_by(accepted=True)
        elif why := await self.gatekeeper.refusal(level, receipt, receipt.id, fields):
            raise Unrecorded(why, accepted=True)

    def ungated(self) -> bool:
        """Whether something may go on though there was no room for its event."""
        if self.gatekeeper.level(("model",)) != "off":
            return False
        self.gatekeeper.break_glass.pass_by(accepted=False)
        return True

    def stranger(self) -> bool:
        """Whether one more request without a known token is worth an event: all are counted, one a second is on record."""
        now = time.monotonic()
        if now - self._last_stranger < 1.0:
            return False
        self._last_stranger = now
        return True

    def keep(self, fields: dict[str, Any], outcome: str) -> None:
        """Keeps a decision that the recorder did not take, on disk."""
        fields["model"]["decided_at"] = ev.timestamp()
        if not self.late.put({"outcome": outcome, **fields}):
            self.recorder.lost("late-decision")

    # -- what is late, and what is alone -------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                self._deliver()
                self._flag_alone()
            except Exception:  # whatever it was: the next look comes
                log.exception("what is late or alone could not be told")

    def _deliver(self) -> None:
        while decision := self.late.first():
            fields = {k: v for k, v in decision.items() if k != "outcome" and v is not None}
            fields["model"]["late"] = True
            try:
                self.note("model.decision", str(decision.get("outcome")), fields)
            except Unrecorded as e:
                if e.hopeless:
                    self.recorder.lost("late-decision")
                elif not e.accepted:
                    return
            self.late.delivered()
            self.counters["late"] += 1

    def _flag_alone(self) -> None:
        for one in self.runs.alone():
            self.counters["bypassed"] += 1
            why = "the proxy has a model request that no hook told of" if one.by == "proxy" else "a hook told of a model call that the proxy never saw"
            with suppress(Unrecorded):
                self.note("policy.decision", "unknown", {
                    "session": one.session, "run": one.run, "caused_by": one.event, "trace": {"span": one.span},
                    "policy": {"engine": "clawtrail", "rule": "model-join", "verdict": "flag", "reason": why},
                    "flag": {"rule": "trail.bypass", "severity": "high" if one.by == "proxy" else "critical", "technique": "T1562.001"},
                })  # fmt: skip
