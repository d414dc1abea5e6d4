"""The command line. Each command is a few lines; the work is in the module that it names."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Sequence

from . import __version__, health
from .errors import ClawtrailError, ConfigurationError, StoreError
from .recorder import DURABILITIES, POLICIES, Recorder
from .settings import duration as seconds
from .settings import size
from .store import Entry, Loki, as_json, duration
from .transport import TLSFiles


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Exit code 0: done; 1: failed, with the reason on standard error; 2: wrong usage or query."""
    options = _parser().parse_args(arguments)
    level = os.environ.get("CLAWTRAIL_LOG", "INFO").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except ConfigurationError as e:
        return _fail(str(e), 2)
    except (ClawtrailError, OSError) as e:
        return _fail(str(e), 1)
    except KeyboardInterrupt:
        return 130


def _fail(text: str, code: int) -> int:
    print(f"[x] {text}", file=sys.stderr)
    return code


def _setup(o: argparse.Namespace) -> int:
    from . import setup

    made = setup.make_secrets(o.secrets)
    print(setup.step("Secrets", "Grafana password · gateway token · fingerprint key", made))
    names = setup.receiver_names(os.environ.get("RECEIVER_NAMES", ""))
    clients = os.environ.get("CLIENT_NAMES", "openclaw operator").split()
    host_names, owner = setup.words(os.environ.get("HOST_NAMES", "")), int(os.environ.get("OWNER_UID") or 0)
    made, what = setup.make_certificates(o.certs, names, clients, host_names, owner)
    print(setup.step("Certificates", what, made))
    setup.own_volumes(o.volumes)
    return 0


def _password(o: argparse.Namespace) -> int:
    print((o.secrets / "grafana-password").read_text())
    return 0


def _forwarder(o: argparse.Namespace) -> int:
    from .forwarder import Forwarder
    from .outbox import folder_of
    from .redact import Found
    from .rules import Rules
    from .runs import Runs
    from .slices import shorten
    from .watch import Kept, Watch

    shorten()  # before any thread is started: they have what this one has
    key = bytes.fromhex(o.fingerprint_key.read_text().strip()) if o.fingerprint_key else None
    with _recorder(o, agent_type=o.agent_type, agent_version=o.agent_version, fingerprint_key=key, proof=o.proof,
                   gate=o.gates, gate_deadline=o.gate_deadline, quota=size("quota", o.quota)) as recorder:  # fmt: skip
        folder, rules = folder_of(o.spool, o.agent), Rules.load(o.rules)
        watch = Watch(rules, kept=Kept(folder / "watch", lambda value: recorder.redactor.value(value, Found())))
        forwarder = Forwarder(recorder, o.socket, o.gateway_uid, main_process=not o.any_process, rules=rules, watch=watch,
                              runs=Runs(folder / "runs"), proxy=_model_proxy(o, folder), kept=o.hooks, idle=o.idle,
                              secrets_path=o.secrets_socket, secrets=_held(o.secret))  # fmt: skip
        asyncio.run(forwarder.serve())
    return 0


def _held(given: list[str]) -> dict[str, str]:
    """The secrets of the audited provider, from NAME=FILE."""
    out = {}
    for one in given:
        name, equal, path = one.partition("=")
        if not name or not equal:
            raise ConfigurationError(f"--secret {one!r}; expected NAME=FILE")
        out[name] = Path(path).read_text().strip()
    return out


def _model_proxy(o: argparse.Namespace, folder: Path) -> Any:
    if not o.model_url:
        return None
    from .proxy import Config, Upstream

    def read(path: Path | None) -> str:
        return path.read_text().strip() if path else ""

    host, port = _address(o.model_listen)
    upstreams = {"model": Upstream(o.model_url, o.model_api, read(o.model_key))}
    return Config(upstreams, {o.agent: read(o.agent_token)}, folder, host, port, ca=o.model_ca)


def _rules(o: argparse.Namespace) -> int:
    from .rules import Rules
    from .rules.trial import faults

    rules = Rules.load([o.folder] if o.folder else [])
    if o.action == "list":
        for rule in rules:
            print(f"{rule.severity:<9} {rule.id:<30} {rule.action:<8} {rule.technique:<34} {rule.why}")
        return 0
    wrong = [f"{rule.source}: rule {rule.id}: {fault}" for rule in rules for fault in faults(rule, timed=True)]
    for line in wrong:
        print(f"[x] {line}", file=sys.stderr)
    examples = sum(len(rule.hit) + len(rule.miss) for rule in rules)
    print(f"[+] {len(rules)} rules, {examples} examples, {len(wrong)} faults")
    return 1 if wrong else 0


def _recorder(o: argparse.Namespace, **options: Any) -> Recorder:
    return Recorder(_address(o.receiver), o.tls, agent=o.agent, spool=o.spool, durability=o.durability, **options)


def _break_glass(o: argparse.Namespace) -> int:
    if o.close == bool(o.time):
        raise ConfigurationError("break-glass: expected either --for TIME with --reason TEXT, or --close")
    if o.close:
        health.ask(o.socket, {"close": {"by": o.by}})
        print("the gates are closed; what ran meanwhile and is not on record, if anything, is reported by a system.drop event")
        return 0
    state = health.ask(o.socket, {"open": {"seconds": seconds("--for", o.time), "reason": o.reason, "by": o.by}})
    print(f"the gates stand open until {state['gate_open']}: actions run whether or not they are recorded")
    return 0


def _demo_model(o: argparse.Namespace) -> int:
    from .demo_model import serve

    serve(*_address(o.listen))
    return 0


def _prove(o: argparse.Namespace) -> int:
    from .prove import prove
    from .setup import step

    with _recorder(o) as recorder:
        seconds = prove(recorder, Loki(o.loki))
    print(step("Proof", "one event sent over mutual TLS, found in Loki", f"{seconds:.1f} s"))
    return 0


def _query(o: argparse.Namespace) -> int:
    try:
        for entry in Loki(o.loki).query(o.logql, duration(o.since)):
            print(_as_json(entry))
    except StoreError as e:
        return _fail(str(e), 2 if 400 <= e.status < 500 else 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has seen enough
    return 0


def _alerts(o: argparse.Namespace) -> int:
    from .alerts import firing, table

    alerts = firing(Loki(o.loki))
    print(table(alerts) if alerts else "no alert")
    return 0


def _as_json(entry: Entry) -> str:
    """The event as it is stored; a line that is no JSON object (a stock handler's, a dead letter) inside one."""
    if isinstance(as_json(entry.line), dict) and "\n" not in entry.line:
        return entry.line
    return json.dumps({"time": entry.time, **entry.labels, "line": entry.line}, ensure_ascii=False)


def _trail(o: argparse.Namespace) -> int:
    from .trail import sessions, table

    store, since, deadline = Loki(o.loki), duration(o.since), time.monotonic() + o.wait
    found = sessions(store, o.session, since)
    while o.until and not any(e.labels.get("event") == o.until for e in found) and time.monotonic() < deadline:
        time.sleep(0.2)
        found = sessions(store, o.session, since)
    if not found:
        return _fail(f"no event of the session {o.session!r} in the last {o.since}", 1)
    print(table(found))
    return 0


def _record(o: argparse.Namespace) -> int:
    """JSON lines from standard input; the line's `kind` and `outcome` and its other members as fields."""
    refused = 0
    with _recorder(o) as recorder:
        for number, raw in enumerate(sys.stdin, 1):
            try:
                fields = json.loads(raw)
                recorder.record(fields.pop("kind"), fields.pop("outcome", "success"), **fields)
            except (ClawtrailError, ValueError, KeyError, TypeError, AttributeError) as e:
                refused += 1
                print(f"[x] line {number} not recorded: {e!r}; expected an object with kind and outcome", file=sys.stderr)
        if not recorder.close(10):
            return _fail(f"{recorder.stats()['spooled']} events are not proven to have arrived: {recorder.stats()['last_error']}", 1)
    return 1 if refused else 0


def _pipe(o: argparse.Namespace) -> int:
    from .adapters.scribe import Scribe, trace
    from .pipe import Pipe

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if "CLAWTRAIL_LOG" not in os.environ:
        logging.getLogger("clawtrail").setLevel(logging.WARNING)  # standard error is for the lines that are not recorded
    fields = {"session": o.session, "run": o.run_id, "trace": trace()}
    options: dict[str, Any] = {"when_full": o.when_full, "quota": size("quota", o.quota), "agent_type": o.agent_type}
    recorder = _recorder(o, gate=o.gate, gate_deadline=o.gate_deadline, proof=o.proof, **options)
    lost = False
    try:
        pipe = Pipe(
            Scribe(recorder, _some_rules(o)), text=o.text, fields={k: v for k, v in fields.items() if v}, answers=sys.stdout if o.ack else None, errors=sys.stderr
        )
        pipe.run(sys.stdin.buffer)
    finally:
        if not recorder.close(10):
            state = recorder.stats()
            lost = recorder.folder is None
            where = "lost: there is no spool" if lost else "in the spool, for the next process of this agent"
            waits = state["spooled"] or state["unsent"]
            print(f"[{'x' if lost else '+'}] {waits} events are not proven to have arrived ({state['last_error']}); they are {where}", file=sys.stderr)
    if pipe.bad or pipe.refused:
        print(f"[x] {pipe.bad + pipe.refused} of {pipe.accepted + pipe.bad + pipe.refused} lines are refused", file=sys.stderr)
    return 1 if pipe.bad or pipe.refused or lost else 0


def _hook(o: argparse.Namespace) -> int:
    from . import hook

    return hook.main(o.arguments)


def _nanobot(o: argparse.Namespace) -> int:
    from importlib.metadata import PackageNotFoundError, version

    from .adapters import nanobot
    from .adapters.relay import Relay

    if o.socket:
        relay = Relay(o.socket, o.agent, seconds("--gate-deadline", o.gate_deadline))
        for given in o.secret:
            _resolve(relay, given)
        nanobot.main(relay, o.arguments)
        return 0
    try:
        running = version("nanobot-ai")
    except PackageNotFoundError:
        running = ""
    options = {"gate": o.gate, "gate_deadline": o.gate_deadline, "proof": o.proof}
    with _recorder(o, agent_type="nanobot", agent_version=running, **options) as recorder:
        for given in o.secret:
            _resolve(recorder, given)
        nanobot.main(recorder, o.arguments, _some_rules(o))
    return 0


def _timeline(o: argparse.Namespace) -> int:
    from .timeline import as_jsonl, as_lines, timeline

    deadline = time.monotonic() + o.wait
    made = timeline(Loki(o.loki), o.session, duration(o.since))
    while not made.rows and time.monotonic() < deadline:
        time.sleep(0.2)
        made = timeline(Loki(o.loki), o.session, duration(o.since))
    if not made.rows:
        return _fail(f"no event of the session {o.session!r} in the last {o.since}; expected a session as `session` has it in the store", 1)
    try:
        for line in (as_jsonl if o.json else as_lines)(made):
            print(line)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has seen enough
    if made.cut:
        print("[x] more sessions, runs and traces hang together here than are followed; what is shown is not all", file=sys.stderr)
    return 0


def _schema(o: argparse.Namespace) -> int:
    """Prints the schema of an event; or says which lines of standard input are none by it."""
    from . import schema

    if not o.check:
        print(schema.table() if o.table else schema.text(), end="\n" if o.table else "")
        return 0
    found = wrong = 0
    for number, raw in enumerate(sys.stdin, 1):
        if raw.strip():
            found += 1
            event = as_json(raw)
            errors = ["not JSON"] if event is None else schema.check(event)
            wrong += bool(errors)
            for error in errors:
                print(f"[x] line {number}: {error}", file=sys.stderr)
    return _fail(f"{wrong} of {found} events are not of the schema", 1) if wrong else 0


def _resolve(recorder: Any, given: str) -> None:
    """A secret from a file into our environment. Not on record: not read."""
    name, equals, path = given.partition("=")
    if not (name and equals and path):
        raise ConfigurationError(f"--secret {given.partition('=')[0]!r}; expected NAME=FILE")
    with recorder.resolving(name, path) if hasattr(recorder, "resolving") else recorder.action(
        name, kind="credential.access", credential={"provider": "file", "use": "resolve"}, target={"type": "file", "id": path}):  # fmt: skip
        os.environ[name] = Path(path).read_text().strip()


def _some_rules(o: argparse.Namespace) -> Any:
    from .rules import Rules

    try:
        return Rules.load(o.rules)
    except ConfigurationError as e:
        if o.rules or "PyYAML" not in str(e):
            raise
        print("[x] tool calls are not flagged: the rules need PyYAML; expected pip install clawtrail[stack]", file=sys.stderr)
        return None


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigurationError(f"address {text!r}; expected host:port, for example syslog-ng:6514")
    return host.strip("[]"), int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clawtrail", description="The flight recorder for AI agents.")
    parser.add_argument("--version", action="version", version=f"clawtrail {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    environment = os.environ.get
    loki = environment("CLAWTRAIL_LOKI", "http://loki:3100")

    def sender(sub: argparse.ArgumentParser, agent: str, durability: str) -> None:
        sub.add_argument("--receiver", default=environment("CLAWTRAIL_RECEIVER", "localhost:6514"), metavar="HOST:PORT")
        sub.add_argument("--tls", type=TLSFiles.bundle, default=environment("CLAWTRAIL_TLS", "/etc/clawtrail/tls"), metavar="FOLDER",
                         help="folder with ca.crt, client.crt, client.key")  # fmt: skip
        sub.add_argument("--agent", default=environment("CLAWTRAIL_AGENT", agent), help="name in the client certificate")
        sub.add_argument("--durability", default=environment("CLAWTRAIL_DURABILITY", durability), choices=DURABILITIES,
                         help="where an accepted event is: on the disk, written to the spool, in memory (default: %(default)s)")  # fmt: skip
        sub.add_argument("--spool", metavar="FOLDER", help="the spool's folder (default: $CLAWTRAIL_SPOOL, or ~/.local/state/clawtrail/spool)")

    def gated(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--proof", default="window", help="what proves that an event arrived: window, barrier, or a watermark service's https URL")
        sub.add_argument("--gate", default="spooled", metavar="LEVELS",
                         help="how far an event comes before its action runs: off, spooled, sent or stored, also as tool:sent,credential:stored")  # fmt: skip
        sub.add_argument("--gate-deadline", default="3", metavar="SECONDS", help="after which an action is refused (default: %(default)s)")
        sub.add_argument("--rules", type=Path, action="append", default=[], metavar="FOLDER", help="folder with more rules (*.yaml); may be repeated")

    sub = command("setup", _setup, "make the missing passwords, keys and certificates")
    sub.add_argument("--certs", type=Path, default=Path("/certs"))
    sub.add_argument("--secrets", type=Path, default=Path("/secrets"))
    sub.add_argument("--volumes", type=Path, default=Path("/volumes"))
    sub = command("password", _password, "show Grafana's password")
    sub.add_argument("--secrets", type=Path, default=Path("/secrets"))

    sub = command("forwarder", _forwarder, "take records over a unix socket and ship them")
    sender(sub, "openclaw", "write")
    sub.add_argument("--socket", required=True, metavar="PATH")
    sub.add_argument("--agent-type", default="openclaw")
    sub.add_argument("--agent-version", default="")
    sub.add_argument("--fingerprint-key", type=Path, metavar="FILE", help="hex; the key of the fingerprints of redacted secrets")
    sub.add_argument("--gateway-uid", type=int, help="accept only peers of this uid")
    sub.add_argument("--any-process", action="store_true", help="accept every process of that uid, not a container's main process alone")

    sub.add_argument("--proof", default="window", help="what proves that an event arrived: window, barrier, or a watermark service's https URL")
    sub.add_argument("--gates", default="spooled", metavar="LEVELS",
                     help="how far an event comes before its action runs: off, spooled, sent or stored, also as tool:sent,credential:stored")  # fmt: skip
    sub.add_argument("--gate-deadline", default="3", metavar="SECONDS", help="after which an action is refused (default: %(default)s)")
    sub.add_argument("--rules", type=Path, action="append", default=[], metavar="FOLDER", help="folder with more rules (*.yaml); may be repeated")

    sub.add_argument("--secrets-socket", default="/run/clawtrail/secrets.sock", metavar="PATH", help="where the resolver asks for a --secret")
    sub.add_argument("--secret", action="append", default=[], metavar="NAME=FILE", help="a secret that is given to the gateway's resolver; may be repeated")
    sub.add_argument("--model-url", default="", metavar="URL", help="the model provider's base URL: serve the model proxy")
    sub.add_argument("--model-api", default="openai-completions", metavar="API", help="as OpenClaw names it (default: %(default)s)")
    sub.add_argument("--model-key", type=Path, metavar="FILE", help="the provider's key")
    sub.add_argument("--model-ca", type=Path, metavar="FILE", help="authorities that may sign the provider's certificate, beside the system's")
    sub.add_argument("--model-listen", default="127.0.0.1:8300", metavar="HOST:PORT")
    sub.add_argument("--agent-token", type=Path, metavar="FILE", help="what the agent authenticates with at the model proxy")

    sub.add_argument("--quota", default="256 MiB", metavar="SIZE", help="of the spool at most (default: %(default)s)")
    sub.add_argument("--hooks", type=Path, metavar="FOLDER", help="hear `clawtrail hook` too; what joins two hooks is kept in the folder")
    sub.add_argument("--idle", type=float, default=0.0, metavar="SECONDS", help="stop when nothing came for so long (default: never)")

    sub = command("break-glass", _break_glass, "let actions run for a stated time whether or not they are recorded; on record itself")
    sub.add_argument("--socket", default="/run/clawtrail/audit.sock")
    sub.add_argument("--for", dest="time", metavar="TIME", default="", help="for example 15m; at most 24h")
    sub.add_argument("--reason", default="")
    sub.add_argument("--by", default="", help="who opens")
    sub.add_argument("--close", action="store_true", help="close at once")

    sub = command("rules", _rules, "check the rules: each against its own examples, and the time that it takes")
    sub.add_argument("action", choices=("check", "list"))
    sub.add_argument("folder", type=Path, nargs="?", help="folder with rule files (*.yaml) beside the packaged ones")

    health.options(command("health", health.check, "ask the forwarder, or an address, whether it works"))
    sub = command("demo-model", _demo_model, "serve the scripted model")
    sub.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")

    sub = command("prove", _prove, "send one event and find it in Loki")
    sender(sub, "operator", "memory")
    sub.add_argument("--loki", default=loki)
    sub = command("query", _query, "print the matching events as JSON lines")
    sub.add_argument("logql")
    sub.add_argument("--since", default="1h")
    sub.add_argument("--loki", default=loki)
    sub = command("alerts", _alerts, "print what the store's rules say needs a person now")
    sub.add_argument("--loki", default=loki)
    sub = command("schema", _schema, "print the JSON Schema of an event")
    sub.add_argument("--table", action="store_true", help="its members as a Markdown table")
    sub.add_argument("--check", action="store_true", help="check the events on standard input, one a line")
    sub = command("timeline", _timeline, "show a session across agents, causes before effects")
    sub.add_argument("session", help="for example agent:main:demo")
    sub.add_argument("--since", default="24h")
    sub.add_argument("--json", action="store_true", help="one object per event, for machines")
    sub.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait for its first event")
    sub.add_argument("--loki", default=loki)
    sub = command("trail", _trail, "show a session's events as a table")
    sub.add_argument("session", help="for example agent:main:demo")
    sub.add_argument("--since", default="15m")
    sub.add_argument("--until", metavar="KIND", default="", help="wait until an event of this kind is there")
    sub.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    sub.add_argument("--loki", default=loki)
    sub = command("pipe", _pipe, "record the lines of standard input: an event in JSON each, or text")
    sender(sub, "operator", "write")
    sub.add_argument("--text", action="store_true", help="each line is a text, whatever it looks like")
    sub.add_argument("--ack", action="store_true", help="answer each line on standard output when it is accepted, or why it is not")
    sub.add_argument("--session", default=environment("CLAWTRAIL_SESSION"), help="of every event that names none ($CLAWTRAIL_SESSION)")
    sub.add_argument("--run", dest="run_id", default=environment("CLAWTRAIL_RUN"), help="of every event that names none ($CLAWTRAIL_RUN)")
    sub.add_argument("--agent-type", default="pipe")
    sub.add_argument("--when-full", default="block", choices=POLICIES, help="with a full spool: wait 5 s and refuse, refuse, or drop")
    sub.add_argument("--quota", default="256 MiB", metavar="SIZE", help="of the spool at most (default: %(default)s)")
    gated(sub)
    command("hook", _hook, "record one hook of Claude Code, given on standard input (see clawtrail hook --help)").add_argument(
        "arguments", nargs=argparse.REMAINDER)  # fmt: skip
    sub = command("nanobot", _nanobot, "run nanobot with every run, decision and tool call on record")
    sender(sub, "nano-claw", "write")
    gated(sub)
    sub.add_argument("--socket", default=environment("CLAWTRAIL_SOCKET", ""), metavar="PATH",
                     help="of a `clawtrail forwarder` that records for this nanobot; certificate, spool, gates and rules are its own")  # fmt: skip
    sub.add_argument("--secret", action="append", default=[], metavar="NAME=FILE",
                     help="nanobot's environment variable NAME is what FILE holds; on record; may be repeated")  # fmt: skip
    sub.add_argument("arguments", nargs=argparse.REMAINDER, help='nanobot\'s own: agent -m "…", agent --classic, gateway, serve')
    sub = command("record", _record, "record JSON lines from standard input")
    sender(sub, "operator", "memory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
