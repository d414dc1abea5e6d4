"""The real gateway, driven through everything that it can be made to do here: each hook must fire, each kind must arrive.

What is expected stands in `coverage/expected.json` with the OpenClaw version that it was seen with. After a change of
OPENCLAW_VERSION these tests are the verdict: `make test ARGS='-k coverage'`.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
import urllib.request
import uuid
import zipfile
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import ROOT, Stack, eventually
from test_gates_live import gated

HERE = Path(__file__).with_name("coverage")
EXPECTED = json.loads((HERE / "expected.json").read_text())
FIRES, AT_THE_END = EXPECTED["fires"], EXPECTED["at_the_end"]
OWNER, STRANGER, ASKING, IDLE, ADMITTED, DISMISSED = 1001, 6006, 3003, 4004, 2002, 5005  #: people on Telegram
IDLE_FOR = 61.0  #: seconds; the shortest that OpenClaw can be told is a minute
STOP_WITHIN = 5.0  #: seconds from SIGTERM to the end of a gateway whose forwarder is dead


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return base | {k: merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in more.items()}


class Gateway:
    """The stack's gateway with servers, agents and a second plugin that the tests need, and what was asked of it."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack, self.tag = stack, uuid.uuid4().hex[:8]
        shutil.copytree(HERE, folder / "coverage")
        config = merged(json.loads((ROOT / "agent/openclaw/openclaw.json").read_text()), json.loads((HERE / "openclaw.json").read_text()))
        config["channels"]["telegram"]["botToken"] = "4242:" + "A" * 35
        (folder / "openclaw.json").write_text(json.dumps(config))
        self.override = folder / "override.yml"
        image = f"clawtrail/openclaw:{stack.env['OPENCLAW_VERSION']}-{stack.env['CLAWTRAIL_VERSION']}"
        self.override.write_text(json.dumps({"services": {
            "openclaw": {"mem_limit": "5g", "volumes": [f"{folder}/openclaw.json:/etc/openclaw/openclaw.json:ro", f"{folder}/coverage:/opt/coverage:ro"]},
            "telegram": {"image": image, "networks": ["agents"], "init": True, "volumes": [f"{folder}/coverage:/opt/coverage:ro"],
                         "command": ["node", "/opt/coverage/telegram.mjs"]}}}))  # fmt: skip
        for path in (folder, folder.parent, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def people(self, present: bool = True) -> None:
        """Starts, or ends, the stand-in for Telegram's servers."""
        files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(self.override))
        if present:
            self.stack.compose(*files, "up", "--detach", "--no-deps", "telegram")
        else:
            self.stack.compose(*files, "rm", "--stop", "--force", "telegram")

    def telegram(self, path: str, said: dict[str, Any] | None = None) -> Any:
        url = f"http://{self.stack.address('telegram', 'agents')}:8081{path}"
        body = json.dumps(said).encode() if said is not None else None
        with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"}), timeout=10) as answer:
            return json.load(answer)

    def say(self, person: int, text: str, **more: Any) -> None:
        self.telegram("/say", {"from": str(person), "text": text, **more})

    def told(self, person: int, words: str, buttons: bool = False, within: float = 40) -> dict[str, Any]:
        """The first message of the bot to a person that has these words."""

        def look() -> dict[str, Any] | None:
            sent = [one["params"] for one in self.telegram("/sent") if one["method"] == "sendMessage"]
            found = [p for p in sent if str(p["chat_id"]) == str(person) and words in p.get("text", "")]
            return next((p for p in found if not buttons or "reply_markup" in p), None)

        return eventually(look, within, f"{words!r} to {person}") or {}

    def tap(self, person: int, words: str, decision: str) -> None:
        """A person answers the question that has these words: `o` for once, `d` for no."""
        rows = self.told(person, words, buttons=True)["reply_markup"]
        rows = json.loads(rows) if isinstance(rows, str) else rows
        data = next(b["callback_data"] for row in rows["inline_keyboard"] for b in row if f":{decision}:" in b["callback_data"])
        self.telegram("/say", {"from": str(person), "button": {"data": data, "message": 7}})

    def up(self, *overrides: Path) -> None:
        files = [argument for file in (ROOT / "docker-compose.yml", *overrides) for argument in ("-f", str(file))]
        alone = ["--no-deps"] if overrides else []  # compose remembers it, and would make the container anew at the next plain `up`
        self.stack.compose(*files, "up", "--detach", *alone, "--wait", "--wait-timeout", "180", "openclaw", timeout=240)

    def session(self, name: str, agent: str = "main") -> str:
        return f"agent:{agent}:{name}-{self.tag}"

    def post(self, path: str, session: str, body: dict[str, Any]) -> str:
        code, said = self.stack.run_inside("openclaw", "node", "/opt/coverage/post.mjs", path, session, json.dumps(body))
        assert code == 0, said
        return said

    def turn(self, name: str, *script: tuple[str, dict[str, Any]], agent: str = "main") -> str:
        text = "\n".join(f"TOOL {tool} {json.dumps(params)}" for tool, params in script) or "hello"
        return self.post("/v1/chat/completions", self.session(name, agent), {"model": f"openclaw/{agent}", "messages": [{"role": "user", "content": text}]})

    def call(self, method: str, params: dict[str, Any], *more: str) -> Any:
        """A method of the gateway's control interface, over WebSocket. Its answer, None when it was refused."""
        code, said = self.stack.run_inside("openclaw", "openclaw", "gateway", "call", method, "--params", json.dumps(params), "--json", *more)
        return json.loads(said[min(i for i in (said.find("{"), said.find("[")) if i >= 0) :]) if code == 0 else None

    def events(self, kind: str, where: str = "", count: int = 1, within: float = 30) -> list[dict[str, Any]]:
        found = self.stack.find(f'{{job="audit", agent="openclaw"}} | event="{kind}" {where}', count, within)
        return sorted((json.loads(entry.line) for entry in found), key=lambda e: (e["epoch"], e["seq"]))

    def of(self, name: str, kind: str, where: str = "", agent: str = "main", count: int = 1) -> list[dict[str, Any]]:
        return self.events(kind, f'| session="{self.session(name, agent)}" {where}', count)

    def one(self, name: str, kind: str, where: str, agent: str = "main") -> dict[str, Any]:
        (event,) = self.of(name, kind, where, agent)
        return event

    def drive(self) -> None:
        """Everything once. What it caused is looked up afterwards."""
        self.say(IDLE, "hello")
        since = time.monotonic()
        self.say(STRANGER, 'TOOL exec {"command": "touch /tmp/delicate-late"}')  # nobody answers that
        self.turn("tools", ("exec", {"command": "echo fine"}), ("exec", {"command": "exit 3"}), ("read", {"path": "/no/such/file"}),
                  ("read", {"nopath": 5}), ("exec", {"command": "echo rewrite-me"}), ("exec", {"command": "echo forbidden"}),
                  ("words__lookup", {"word": "hook"}))  # fmt: skip
        self.turn("parent", ("sessions_spawn", {"task": 'TOOL exec {"command": "echo from-the-child"}', "label": "kid"}))
        assert '"ok":true' in self.post("/tools/invoke", self.session("invoke"), {"tool": "session_status", "args": {}})
        self.turn("broken", agent="broken")
        self.turn("failover", agent="second")
        self.turn("asking", ("exec", {"command": "id"}), agent="asking")
        self.chat()
        self.scheduled()
        self.skill()
        assert self.call("health", {}, "--token", "wrong") is None
        code, said = self.stack.run_inside("openclaw", "sh", "-c", "echo 'Be kind.' > /state/workspace/AGENTS.md")
        assert code == 0, said
        self.turn("bootstrap")
        self.messages()
        self.approvals()
        self.pairing()
        assert self.install()["ok"] is True
        self.told(IDLE, "DONE")
        time.sleep(max(0.0, since + IDLE_FOR - time.monotonic()))
        self.say(IDLE, "hello again")
        self.dm(IDLE, "session.end", '|= "idle"', count=2)

    def dm(self, person: int, kind: str, where: str = "", agent: str = "main", count: int = 1) -> list[dict[str, Any]]:
        return self.events(kind, f'| session="agent:{agent}:telegram:direct:{person}" {where}', count, 40)

    def messages(self) -> None:
        self.say(OWNER, "look at this", file="picture")
        self.told(OWNER, "DONE 0")
        self.say(OWNER, 'TOOL say {"text": "this cannot be delivered"}')
        self.dm(OWNER, "message.out", '| outcome="failure"')

    def approvals(self) -> None:
        """The owner answers what others' work asks for: OpenClaw's own question, and that of a rule."""
        self.say(ASKING, 'TOOL exec {"command": "id -u"}')
        self.tap(OWNER, "id -u", "o")
        self.told(STRANGER, "Nobody approved this")
        for n, (word, decision) in enumerate((("yes", "o"), ("no", "d")), 2):
            self.say(STRANGER, f'TOOL exec {{"command": "touch /tmp/delicate-{word}"}}')
            self.tap(OWNER, f"delicate-{word}", decision)
            self.dm(STRANGER, "tool.result", count=n)

    def pairing(self) -> None:
        for person in (ADMITTED, DISMISSED):
            self.say(person, "may I come in?")
            self.told(person, "Pairing code")
        requests = {r["senderId"]: r["requestId"] for r in self.call("channels.pairing.list", {})["requests"]}
        for person, answer in ((ADMITTED, "approve"), (DISMISSED, "dismiss")):
            asked = {"channel": "telegram", "accountId": "default", "requestId": requests[str(person)]}
            assert self.call(f"channels.pairing.{answer}", asked)["senderId"] == str(person)
        self.say(ADMITTED, "hello")
        self.told(ADMITTED, "DONE")

    def install(self, slug: str = "wave") -> Any:
        """The gateway's answer; None when it was refused."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("SKILL.md", f"---\nname: {slug}\ndescription: Waving at people.\n---\n\n1. Wave.\n")
        begun = self.call("skills.upload.begin", {"kind": "skill-archive", "slug": slug, "sizeBytes": len(packed.getvalue())})
        upload = {"uploadId": begun["uploadId"]}
        self.call("skills.upload.chunk", upload | {"offset": 0, "dataBase64": base64.b64encode(packed.getvalue()).decode()})
        self.call("skills.upload.commit", upload)
        return self.call("skills.install", upload | {"source": "upload", "slug": slug, "agentId": "main"})

    def chat(self) -> None:
        session = self.session("chat")
        self.call("chat.send", {"sessionKey": session, "message": 'TOOL exec {"command": "echo chat"}', "idempotencyKey": f"chat-{self.tag}"})
        self.of("chat", "message.out")
        self.of("chat", "run.end")
        assert self.call("sessions.compact", {"key": session})["compacted"] is True
        self.call("sessions.patch", {"key": session, "label": "renamed"})
        assert self.call("sessions.reset", {"key": session})["ok"] is True

    def skill(self) -> None:
        """The agent writes a skill for itself and puts it to use."""
        text = "---\nname: greet-politely\ndescription: Greeting a customer by name.\n---\n\n1. Say hello.\n2. Say the name.\n"
        for action, which, content in (("create", "name", text), ("update", "skill_name", text + "3. Ask for the card.\n")):
            self.turn(f"skill-{action}", ("skill_workshop", {"action": action, which: "greet-politely", "description": "Greeting a customer by name.",
                                                             "proposal_content": content, "goal": "greet"}))  # fmt: skip
            said = self.one(f"skill-{action}", "tool.result", '| tool="skill_workshop"')["content"]["excerpt"]
            found = re.search(r"skill (?:update )?proposal (\S+)", said)
            self.turn(f"skill-{action}d", ("skill_workshop", {"action": "apply", "proposal_id": found[1] if found else said[:100]}))

    def scheduled(self) -> None:
        job = self.call("cron.add", {
            "name": f"tick-{self.tag}", "agentId": "main", "schedule": {"kind": "every", "everyMs": 3_600_000}, "sessionTarget": "isolated",
            "wakeMode": "now", "delivery": {"mode": "none"}, "payload": {"kind": "agentTurn", "message": 'TOOL exec {"command": "echo cron"}'}})  # fmt: skip
        assert self.call("cron.run", {"id": job["id"], "mode": "force"})["ok"] is True
        self.events("config.change", f'|= "tick-{self.tag}" |= "finished"', within=60)
        self.call("cron.remove", {"id": job["id"]})

    def seen(self, wanted: set[str], within: float = 30) -> set[str]:
        """The hooks that have fired, by the plugin's own heartbeat; waits for `wanted`, and does not insist."""
        told: set[str] = set()

        def ask() -> bool:
            nonlocal told
            beats = self.events("system.heartbeat", '|= `"component":"openclaw"` |= `hooks_seen`')
            told = set(beats[-1]["health"]["hooks_seen"].split())
            return wanted <= {_family(hook) for hook in told}

        try:
            eventually(ask, within, "the plugin's heartbeat")
        except AssertionError:
            pass  # which one is missing is said by the test of that name
        return {_family(hook) for hook in told}


def _family(hook: str) -> str:
    return "internal:command" if hook.startswith("internal:command:") else hook


@pytest.fixture(scope="module")
def gateway(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(running, tmp_path_factory.mktemp("coverage"))
    gateway.people()
    gateway.up(gateway.override)
    try:
        gateway.drive()
        yield gateway
    finally:
        gateway.up()
        gateway.people(present=False)


@pytest.fixture(scope="module")
def seen(gateway: Gateway) -> set[str]:
    return gateway.seen(set(FIRES))


@pytest.fixture(scope="module")
def registered(gateway: Gateway) -> set[str]:
    beats = gateway.events("system.heartbeat", '|= `"component":"openclaw"` |= `hooks_seen`')
    return {_family(hook) for hook in beats[-1]["health"]["hooks"].split()}


def version(stack: Stack) -> str:
    return f"OpenClaw {stack.env['OPENCLAW_VERSION']}; coverage/expected.json was seen with {EXPECTED['openclaw']}"


@pytest.mark.parametrize("hook", FIRES)
def test_coverage_the_hook_fires(hook: str, seen: set[str], running: Stack) -> None:
    assert hook in seen, f"the hook {hook} did not fire any more: {version(running)}"


def test_coverage_every_hook_that_is_registered_is_expected_or_has_its_reason(registered: set[str]) -> None:
    assert registered == {*FIRES, *AT_THE_END, *EXPECTED["not_driven"]}


def test_coverage_every_hook_of_this_openclaw_is_used_or_has_its_reason(gateway: Gateway, registered: set[str], running: Stack) -> None:
    """A hook that OpenClaw gained or lost is a decision to make, not something to find out later."""
    find = "cat $(grep -l '\"subagent_delivery_target\",' /opt/openclaw/node_modules/openclaw/dist/hooks-*.mjs)"
    _, source = running.run_inside("openclaw", "sh", "-c", find)
    names = re.search(r"pluginHookNameSet = [^(]*\(\[(.*?)\]", source, re.DOTALL)
    assert names, "the list of hooks is not where it was"
    theirs = set(re.findall(r'"(\w+)"', names[1]))
    ours = {hook for hook in registered if ":" not in hook}
    assert theirs == ours | set(EXPECTED["unused"]), version(running)


def test_coverage_a_call_and_its_outcome_are_joined(gateway: Gateway) -> None:
    calls = {e["id"]: e for e in gateway.of("tools", "tool.call", count=6)}
    decisions = {e["id"]: e for e in gateway.of("tools", "model.decision", count=8)}
    results = gateway.of("tools", "tool.result", count=7)
    assert len(calls) == 6 and len(results) == 7
    for result in results:
        cause = calls.get(result["caused_by"])
        if cause:
            assert cause["tool"]["call_id"] == result["tool"]["call_id"] and cause["caused_by"] in decisions
            assert cause["tool"]["call_id"] in {c["id"] for c in decisions[cause["caused_by"]]["decision"]["calls"]}
    assert [(r["tool"]["name"], r["outcome"]) for r in results] == [
        ("exec", "success"), ("exec", "failure"), ("read", "failure"), ("read", "failure"), ("exec", "success"), ("exec", "denied"),
        ("words__lookup", "success"),
    ]  # fmt: skip
    assert results[1]["error"] == {"type": "exit", "code": 3}


def test_coverage_bad_arguments_are_on_record_and_named_so(gateway: Gateway) -> None:
    result = gateway.one("tools", "tool.result", '|= "Validation failed"')
    assert (result["outcome"], result["error"]["type"]) == ("failure", "validation")
    decided = {e["id"] for e in gateway.of("tools", "model.decision", count=8)}
    assert result["caused_by"] in decided


def test_coverage_parameters_that_another_plugin_changed_are_shown_before_and_after(gateway: Gateway) -> None:
    asked = gateway.one("tools", "tool.call", '|= "rewrite-me"')
    ran = gateway.one("tools", "tool.result", '|= "echo rewritten"')
    assert ran["caused_by"] == asked["id"] and ran["params"] == {"command": "echo rewritten"}
    assert ran["policy"]["verdict"] == "modify" and ran["policy"]["before"] == asked["content"]["sha256"] != ran["policy"]["after"]


def test_coverage_a_call_that_another_plugin_blocked_says_why(gateway: Gateway) -> None:
    denied = gateway.one("tools", "tool.result", '| outcome="denied"')
    assert denied["policy"]["verdict"] == "deny" and denied["policy"]["reason"] == "rewriter: forbidden here"
    decision = gateway.one("tools", "policy.decision", '| outcome="denied"')
    assert decision["tool"]["call_id"] == denied["tool"]["call_id"] and decision["caused_by"] == denied["caused_by"]


def test_coverage_a_tool_of_an_mcp_server_names_it(gateway: Gateway) -> None:
    call = gateway.one("tools", "tool.call", '| tool="words__lookup"')
    assert (call["tool"]["type"], call["tool"]["server"], call["tool"]["primitive"]) == ("mcp", "words", "tool")
    known = gateway.events("config.change", '|= `"what":"mcp"` |= `"name":"words"`')
    assert "words.mjs" in known[-1]["change"]["spec"] and re.fullmatch("[0-9a-f]{16}", known[-1]["change"]["after"])


def test_coverage_each_call_carries_the_hash_of_the_contract_that_the_model_was_shown(gateway: Gateway) -> None:
    definitions = {e["tool"]["def"] for e in gateway.of("tools", "tool.call", '| tool="exec"', count=4)}
    assert len(definitions) == 1 and re.fullmatch("[0-9a-f]{16}", definitions.pop())
    assert "def" not in gateway.one("tools", "tool.call", '| tool="words__lookup"')["tool"], "llm_input now has the tools of MCP servers: say so in the docs"


def test_coverage_commands_say_where_they_ran(gateway: Gateway) -> None:
    assert {e["tool"].get("sandbox") for e in gateway.of("tools", "tool.result", '| tool="exec"', count=4)} == {"none"}


def test_coverage_a_decision_has_its_text_its_calls_and_its_reason_to_stop(gateway: Gateway) -> None:
    hook = '|= `"via":"hook"`'  # the model proxy records each call a second time, by itself
    decisions = gateway.of("tools", "model.decision", hook, count=8)
    requests = {e["id"]: e for e in gateway.of("tools", "model.request", hook, count=8)}
    assert [d["decision"]["stop"] for d in decisions] == ["tool"] * 7 + ["end"]
    assert [c["tool"] for c in decisions[0]["decision"]["calls"]] == ["exec"] and decisions[0]["content"]["excerpt"].startswith("I call exec")
    for decision in decisions:
        model = requests[decision["caused_by"]]["model"]
        assert all(re.fullmatch("[0-9a-f]{64}", model[member]) for member in ("system", "prompt", "tools")) and model["tools_n"] > 20
        assert decision["model"]["via"] == model["via"] == "hook" and decision["usage"]["input"] > 0
        usage = decision["usage"]
        assert usage["cost_micro"] == round(3 * usage["input"] + 15 * usage["output"]), "dollars per million tokens, coverage/openclaw.json"


def test_coverage_a_subagent_is_joined_to_who_started_it(gateway: Gateway) -> None:
    parent = gateway.one("parent", "run.start", '!= "announce"')
    started = gateway.one("parent", "subagent.start", "")
    spawn = gateway.one("parent", "tool.call", '| tool="sessions_spawn"')
    ended = gateway.one("parent", "subagent.end", "")
    assert started["caused_by"] == spawn["id"] and ended["caused_by"] == started["id"] and ended["outcome"] == "success"
    child = gateway.events("run.start", f'| session="{started["peer"]["session"]}"')[0]
    assert child["run"] == started["peer"]["run"] and child["caused_by"] == started["id"]
    assert child["trigger"] == {"type": "agent", "ref": parent["run"]}
    (call,) = gateway.events("tool.call", f'| session="{started["peer"]["session"]}"')
    assert call["params"] == {"command": "echo from-the-child"}
    (done,) = gateway.events("run.end", f'| session="{started["peer"]["session"]}"')
    announced = gateway.one("parent", "run.start", '|= "announce:"')
    assert announced["trigger"] == {"type": "agent", "ref": child["run"]} and announced["caused_by"] == done["id"]


def test_coverage_a_tool_that_is_invoked_over_http_is_an_attempt(gateway: Gateway) -> None:
    """Its outcome is told by no hook and no diagnostic event."""
    calls = gateway.events("tool.call", '| tool="session_status" | run=""')
    assert calls[-1]["outcome"] == "attempt"
    assert not gateway.stack.query('{job="audit", agent="openclaw"} | event="tool.result" | tool="session_status"')


def test_coverage_the_words_of_a_tools_contract_are_told_when_they_change_and_not_otherwise(gateway: Gateway) -> None:
    """Every turn above was shown the same tools, in several offers: none of them is a change."""
    assert not gateway.stack.query('{job="audit", agent="openclaw"} | event="config.change" |= `"what":"tool"`')


def test_coverage_an_error_of_the_model_is_a_decision_that_failed(gateway: Gateway) -> None:
    failed = gateway.of("broken", "model.decision", '| outcome="failure"', "broken")
    assert any(e["decision"]["stop"] == "error" and e.get("error") for e in failed)
    assert gateway.one("broken", "run.end", "", "broken")["outcome"] == "failure"
    change = gateway.of("failover", "config.change", '|= "failover"', "second")[0]["change"]
    assert (change["before"], change["after"]) == ("broken/none", f"model/{gateway.stack.env['MODEL_NAME']}")


def test_coverage_an_approval_names_its_call_what_was_shown_and_who_answered(gateway: Gateway) -> None:
    call = gateway.one("asking", "tool.call", "", "asking")
    asked = gateway.one("asking", "approval.request", "", "asking")
    answered = gateway.one("asking", "approval.result", "", "asking")
    assert asked["caused_by"] == call["id"] and answered["caused_by"] == asked["id"]
    assert asked["tool"]["call_id"] == answered["tool"]["call_id"] == call["tool"]["call_id"]
    assert asked["params"] == {"command": "id"} and answered["approval"]["id"] == asked["approval"]["id"]
    assert (answered["outcome"], answered["approval"]["state"], answered["approval"]["by"]) == ("denied", "deny", "no-approval-route")


def test_coverage_a_chat_is_recorded_from_the_message_to_the_answer(gateway: Gateway) -> None:
    said = gateway.one("chat", "message.in", '!= "/reset"')
    assert said["actor"] == {"type": "user", "id": "cli", "auth": "asserted", "surface": "webchat"}
    run = gateway.one("chat", "run.start", "")
    assert run["caused_by"] == said["id"] and run["trigger"]["type"] == "user"
    answer = gateway.one("chat", "message.out", '| outcome="attempt"')
    assert answer["content"]["excerpt"].startswith("DONE 1 tool results")
    assert [e["outcome"] for e in gateway.of("chat", "config.change", '|= "compaction"', count=2)] == ["attempt", "success"]
    starts, ends = gateway.of("chat", "session.start", count=2), gateway.of("chat", "session.end", '|= "reset"', count=2)
    assert len(starts) == 2 and ends[-1]["caused_by"] == ends[0]["id"]
    assert gateway.of("chat", "config.change", '|= "session:patch"')


def test_coverage_a_scheduled_job_is_recorded_from_its_plan_to_its_end(gateway: Gateway) -> None:
    changes = gateway.events("config.change", f'|= `"what":"schedule"` |= "tick-{gateway.tag}"', 4)
    assert [c["change"]["after"] for c in changes] == ["added", "started", "finished", "removed"]
    assert changes[0]["change"]["ends"] == "never" and "everyMs=3600000" in changes[0]["change"]["spec"]
    finished = changes[2]
    assert finished["outcome"] == "success" and finished["duration_us"] > 0
    (run,) = gateway.events("run.start", f'| session="{finished["session"]}"')
    assert run["trigger"] == {"type": "cron", "ref": finished["trigger"]["ref"]}
    (called,) = gateway.events("tool.call", f'| session="{finished["session"]}"')
    assert run["actor"]["type"] == called["actor"]["type"] == "system", "nobody asked for it"


def test_coverage_who_came_to_the_gateways_door_is_recorded(gateway: Gateway) -> None:
    assert gateway.events("auth.login", '| outcome="success"')[0]["actor"]["auth"] == "verified"
    refused = gateway.events("auth.login", '| outcome="denied" |= "token_mismatch"')[-1]
    assert (refused["actor"]["auth"], refused["policy"]["reason"]) == ("none", "token_mismatch")
    assert {"chat.send", "sessions.reset"} <= {e["change"]["name"] for e in gateway.events("config.change", '|= `"by":"operator"`', 5)}


def test_coverage_the_files_that_a_prompt_is_built_from_are_hashed(gateway: Gateway) -> None:
    change = gateway.events("config.change", '|= `"what":"prompt"` |= "AGENTS.md"')[-1]["change"]
    assert change["before"] == "none" and re.fullmatch("[0-9a-f]{8}", change["after"])
    run = gateway.one("bootstrap", "run.start", "")
    assert run["store"] == {"kind": "memory", "op": "read", "name": "bootstrap", "item": "AGENTS.md", "n": 1, "size": 9}


def test_coverage_the_start_says_what_the_gateway_is(gateway: Gateway, registered: set[str]) -> None:
    health = gateway.events("system.start", '|= `"component":"openclaw"` |= "words"')[-1]["health"]
    assert {_family(hook) for hook in health["hooks"].split()} == registered
    assert health["mcp"] == "words" and "gateway" in health["denied_tools"].split() and re.fullmatch("[0-9a-f]{64}", health["config"])
    beats = gateway.events("system.heartbeat", '|= `"component":"openclaw"` |= `hooks_seen`')
    assert "state_error" not in beats[-1]["health"] and "hooks_missing" not in beats[-1]["health"]


def test_coverage_a_skill_that_the_agent_wrote_is_recorded_from_its_proposal_to_its_hash(gateway: Gateway) -> None:
    changes = gateway.events("config.change", '|= `"what":"skill"` |= "greet-politely"', 8)
    assert changes[0]["outcome"] == "attempt" and changes[0]["change"]["by"] == "proposal"
    assert not any("flag" in c for c in changes if c["change"]["by"] == "proposal"), "what is proposed is no skill yet"
    live = [c for c in changes if c["change"]["by"] != "proposal"]
    assert live[0]["change"]["before"] == "none" and re.fullmatch("[0-9a-f]{64}", live[0]["change"]["after"])
    assert live[1]["change"]["before"] == live[0]["change"]["after"] != live[1]["change"]["after"]
    assert [(e["change"]["by"], e["flag"]["rule"]) for e in live] == [("agent", "capability.added-by-agent"), ("agent", "capability.changed-after-approval")]


def test_coverage_a_message_to_a_channel_is_recorded_from_its_attempt_to_what_became_of_it(gateway: Gateway) -> None:
    """Webchat's answers are handed to the client itself: there the attempt is all that any hook tells."""
    attempt = gateway.dm(OWNER, "message.out", '| outcome="attempt" |= "cannot be delivered"')[0]
    (failed,) = gateway.dm(OWNER, "message.out", '| outcome="failure"')
    assert failed["caused_by"] == attempt["id"] and failed["target"] == {"type": "channel", "id": f"telegram:{OWNER}"} and failed["error"]["message"]
    (sent,) = gateway.dm(OWNER, "message.out", '| outcome="success" |= "DONE 0 tool results"')
    assert sent["caused_by"] == gateway.dm(OWNER, "message.out", '| outcome="attempt" |= "DONE 0 tool results"')[0]["id"]


def test_coverage_a_message_with_a_picture_names_it_and_who_sent_it(gateway: Gateway) -> None:
    (said,) = gateway.dm(OWNER, "message.in", '|= "look at this"')
    assert said["content"]["mime"] == "image/png" and re.fullmatch(r"/state/media/inbound/[0-9a-f-]{36}\.png", said["content"]["name"])
    who = {"type": "user", "id": str(OWNER), "display": f"P{OWNER}", "auth": "verified", "surface": "telegram"}
    assert {k: said["actor"].get(k) for k in who} == who
    started = gateway.dm(OWNER, "run.start")[0]
    assert started["actor"]["id"] == str(OWNER) and started["caused_by"] == said["id"]


def test_coverage_who_asks_to_write_to_the_agent_and_what_was_answered(gateway: Gateway) -> None:
    asked = gateway.events("auth.login", '|= "channel.pairing"', 2)
    assert {e["actor"]["id"] for e in asked} == {str(ADMITTED), str(DISMISSED)} and {e["outcome"] for e in asked} == {"attempt"}
    assert {e["flag"]["rule"] for e in asked} == {"auth.new-device"}
    steered = {e["change"]["name"]: e["outcome"] for e in gateway.events("config.change", '|= `"by":"operator"` |= "channels.pairing"', 3)}
    assert steered["channels.pairing.approve"] == steered["channels.pairing.dismiss"] == "success"
    assert gateway.dm(ADMITTED, "run.start") and not gateway.stack.query(f'{{job="audit"}} | session="agent:main:telegram:direct:{DISMISSED}"')


def test_coverage_a_skill_that_is_installed_passes_the_gate_first(gateway: Gateway) -> None:
    attempt = gateway.events("config.change", '|= `"name":"wave"` | outcome="attempt"')[0]
    assert attempt["change"]["what"] == "skill" and "skill-archive" in attempt["change"]["spec"]
    installed = gateway.events("config.change", '|= `"name":"wave"` | outcome="success"')[0]
    assert installed["change"]["by"] == "upload" and installed["change"]["before"] == "none" and installed["seq"] > attempt["seq"]


def test_coverage_a_session_that_was_idle_begins_anew(gateway: Gateway) -> None:
    attempt, ended = gateway.dm(IDLE, "session.end", '|= "idle"', count=2)[:2]
    assert (attempt["outcome"], ended["outcome"]) == ("attempt", "success") and ended["caused_by"] == attempt["id"]
    assert attempt["health"]["reason"] == ended["health"]["reason"] == "idle"
    assert gateway.dm(IDLE, "session.start")[-1]["seq"] > ended["seq"]


def test_coverage_an_approval_that_was_given_lets_the_call_run(gateway: Gateway) -> None:
    (call,) = gateway.dm(ASKING, "tool.call", agent="asking")
    (asked,) = gateway.dm(ASKING, "approval.request", agent="asking")
    (answered,) = gateway.dm(ASKING, "approval.result", agent="asking")
    (ran,) = gateway.dm(ASKING, "tool.result", agent="asking")
    assert (asked["caused_by"], answered["caused_by"], ran["caused_by"]) == (call["id"], asked["id"], call["id"])
    assert (answered["outcome"], answered["approval"]["state"], answered["approval"]["by_auth"]) == ("success", "allow-once", "verified")
    assert answered["approval"]["waited_ms"] > 0 and answered["actor"] == {"type": "user", "id": "telegram:default"} and ran["outcome"] == "success"


@pytest.mark.parametrize(("word", "outcome", "state", "by"), [
    ("yes", "success", "allow-once", "telegram:default"), ("no", "denied", "deny", "telegram:default"), ("late", "denied", "deny", None)])  # fmt: skip
def test_coverage_a_rule_that_wants_an_approval_holds_the_call_until_a_person_says_yes(
    word: str, outcome: str, state: str, by: str | None, gateway: Gateway
) -> None:
    (call,) = gateway.dm(STRANGER, "tool.call", f'|= "delicate-{word}"')
    (asked,) = gateway.dm(STRANGER, "approval.request", f'|= "{call["tool"]["call_id"]}"')
    (answered,) = gateway.dm(STRANGER, "approval.result", f'|= "{call["tool"]["call_id"]}"')
    (result,) = gateway.dm(STRANGER, "tool.result", f'|= "{call["tool"]["call_id"]}"')
    policy = {"engine": "clawtrail", "rule": "test.delicate", "verdict": "ask", "reason": "delicate work wants a yes first"}
    assert call["policy"] == policy and call["flag"]["rule"] == "test.delicate"
    assert (asked["caused_by"], answered["caused_by"], result["caused_by"]) == (call["id"], asked["id"], call["id"])
    assert (answered["outcome"], answered["approval"]["state"], answered["approval"].get("by")) == (outcome, state, by)
    assert answered["policy"] | {"reason": ""} == {
        "engine": "clawtrail", "rule": "test.delicate", "verdict": "allow" if word == "yes" else "deny", "reason": ""}  # fmt: skip
    assert result["outcome"] == outcome and (word == "yes" or result["policy"]["rule"] == "test.delicate")
    code, _ = gateway.stack.run_inside("openclaw", "test", "-e", f"/tmp/delicate-{word}")
    assert (code == 0) == (word == "yes"), "it ran, or it did not run"


def test_coverage_a_person_who_is_asked_reads_the_call_and_the_rule(gateway: Gateway) -> None:
    shown = gateway.told(OWNER, "delicate-yes", buttons=True)["text"]
    assert "exec: touch /tmp/delicate-yes" in shown and "test.delicate: delicate work wants a yes first" in shown
    gateway.told(STRANGER, "Nobody approved this within 20 s")


@pytest.fixture
def sent(gateway: Gateway) -> Iterator[Gateway]:
    """A message leaves, and a skill is installed, only when its event was handed to the receiver."""
    for _ in gated(gateway.stack, GATES="message:sent,config:sent"):
        yield gateway


def test_coverage_without_the_receiver_no_message_leaves_and_nothing_is_installed(sent: Gateway) -> None:
    stack, began = sent.stack, int(time.time())
    stack.container("syslog-ng").stop(timeout=5)

    def delivered() -> list[Any]:
        return [one for one in sent.telegram("/sent") if one["method"] == "sendMessage" and str(one["params"]["chat_id"]) == str(OWNER)]

    before = len(delivered())
    sent.say(OWNER, "is anybody there?")
    refused = re.compile(rb"clawtrail: (message_sending|reply_payload_sending) not accepted")
    eventually(lambda: refused.search(stack.container("openclaw").logs(since=began)), 60, "the answer is held back")
    assert sent.install("bow") is None
    assert len(delivered()) == before
    stack.container("syslog-ng").start()
    stack.wait_healthy("syslog-ng")
    denied = sent.events("policy.decision", '| json | outcome="denied" | policy_rule="gate.sent"', 2, 60)
    causes = {e["caused_by"] for e in denied}
    assert causes & {e["id"] for e in sent.dm(OWNER, "message.out", '| outcome="attempt"')}
    assert causes & {e["id"] for e in sent.events("config.change", '|= `"name":"bow"` | outcome="attempt"')}
    assert not stack.query('{job="audit", agent="openclaw", outcome="success"} | event="config.change" |= `"name":"bow"`')


@pytest.fixture
def begun(gateway: Gateway) -> Iterator[Gateway]:
    """A run begins only when its start was handed to the receiver."""
    for _ in gated(gateway.stack, GATES="session:sent"):
        yield gateway


def test_coverage_a_person_whose_task_may_not_begin_reads_why(begun: Gateway) -> None:
    begun.stack.container("syslog-ng").stop(timeout=5)
    begun.say(OWNER, 'TOOL exec {"command": "touch /tmp/never-begun"}')
    assert "tell whoever operates this agent" in begun.told(OWNER, "This action was not carried out")["text"]
    code, _ = begun.stack.run_inside("openclaw", "test", "-e", "/tmp/never-begun")
    assert code != 0, "it ran"


def timed_stop(stack: Stack) -> tuple[float, int]:
    container = stack.container("openclaw")
    start = time.monotonic()
    container.stop(timeout=20)
    took = time.monotonic() - start
    container.reload()
    return took, container.attrs["State"]["ExitCode"]


@pytest.mark.stops("openclaw")
def test_coverage_the_end_of_the_gateway_ends_its_sessions_on_record(gateway: Gateway, running: Stack) -> None:
    """The last of the hooks: these are told by no heartbeat any more."""
    ended = '|= `"component":"openclaw"`'
    before = len(running.query(f'{{job="audit", agent="openclaw"}} | event="system.stop" {ended}'))
    took, code = timed_stop(running)
    assert code == 0 and took < STOP_WITHIN
    stops = gateway.events("system.stop", ended, before + 2)
    assert {"attempt", "success"} <= {e["outcome"] for e in stops[before:]}
    assert gateway.of("chat", "session.end", '|= "shutdown"')


@pytest.mark.stops("forwarder", "openclaw")
def test_coverage_the_gateway_stops_in_time_with_the_forwarder_dead(gateway: Gateway, running: Stack) -> None:
    running.wait_healthy("openclaw")
    gateway.turn("last")
    running.container("forwarder").kill()
    took, code = timed_stop(running)
    assert code == 0 and took < STOP_WITHIN, f"{took:.1f} s, exit code {code}"


@pytest.mark.stops("openclaw")
def test_coverage_a_configuration_that_may_be_written_tells_who_wrote_it(gateway: Gateway, running: Stack, tmp_path: Path) -> None:
    """Not so here: the stack's own is read-only, and no change of it gets as far as OpenClaw's account of its changes."""
    (tmp_path / "etc").mkdir()
    shutil.copy(gateway.override.with_name("openclaw.json"), tmp_path / "etc")
    override = json.loads(gateway.override.read_text())
    openclaw = override["services"]["openclaw"]
    openclaw["environment"] = {"OPENCLAW_CONFIG_READONLY": "", "OPENCLAW_CONFIG_PATH": "/state/etc/openclaw.json"}
    openclaw["volumes"] = [openclaw["volumes"][1], f"{tmp_path}/etc:/state/etc"]
    (tmp_path / "writable.yml").write_text(json.dumps(override))
    for path in (tmp_path, *tmp_path.parents[:2], tmp_path / "etc", tmp_path / "etc/openclaw.json"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    image = f"clawtrail/agent:{running.env['CLAWTRAIL_VERSION']}"
    running.docker.containers.run(image, ["chown", "-R", "1000:1000", "/f"], user="0:0", network_mode="none", remove=True,
                                  volumes={str(tmp_path / "etc"): {"bind": "/f"}})  # fmt: skip
    gateway.up(tmp_path / "writable.yml")
    code, said = running.run_inside("openclaw", "openclaw", "config", "set", "logging.level", "debug")
    assert code == 0, said
    (change,) = gateway.events("config.change", '|= "logging.level" |= "config.write"')
    told = change["change"]
    assert (change["outcome"], told["what"], told["name"], told["by"]) == ("success", "config", "/state/etc/openclaw.json", "cli")
    assert "logging.level" in told["spec"].split() and re.fullmatch("[0-9a-f]{64}", told["before"]) and told["after"] != told["before"]
    assert "config set logging.level debug" in change["params"]["argv"]
    for ask in ("always", "off"):
        code, said = running.run_inside("openclaw", "openclaw", "config", "set", "tools.exec.ask", ask)
        assert code == 0, said
        running.container("openclaw").restart(timeout=10)
        running.wait_healthy("openclaw", 120)
        gate = gateway.events("config.change", f'|= "tools.exec.ask" |= `"what":"approval"` |= `"after":"{ask}"`')[-1]
        assert gate["change"]["before"] == {"always": "off", "off": "always"}[ask]
        assert gate.get("flag", {}).get("rule") == {"always": None, "off": "approval.switched-off"}[ask]
