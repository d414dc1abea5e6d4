"""The real nanobot with our hook, against the scripted model: what is on record, and what does not happen without it."""

import asyncio
import json
import os
import subprocess
import sys
import threading

import pytest

nanobot = pytest.importorskip("nanobot", reason="nanobot-ai is not installed")

from nanobot import Nanobot  # noqa: E402
from nanobot.agent import runner  # noqa: E402
from nanobot.agent.hook import AgentHook  # noqa: E402

from clawtrail import testing  # noqa: E402
from clawtrail.adapters.nanobot import Audit, elsewhere, install, mask_logs  # noqa: E402
from clawtrail.demo_model import DemoModel  # noqa: E402
from clawtrail.errors import ConfigurationError, QueueFull  # noqa: E402
from support import eventually  # noqa: E402

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def model():
    with DemoModel("127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


@pytest.fixture
def config(tmp_path, model, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".nanobot" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({
        "agents": {"defaults": {"workspace": str(tmp_path / "ws"), "model": "demo", "provider": "custom"}},
        "providers": {"custom": {"apiKey": "k", "apiBase": model}}}))  # fmt: skip
    return path


def script(*calls):
    return "\n".join(f"TOOL {name} {json.dumps(params)}" for name, params in calls)


def run(config, text, *hooks, **options):
    async def go():
        bot = Nanobot.from_config(config)
        try:
            return await bot.run(text, **{"session_key": "s-1", "hooks": list(hooks), **options})
        finally:
            await bot.aclose()

    return asyncio.run(go())


@pytest.fixture
def recorded():
    with testing.capture() as events:
        yield events, testing.recorder()


def test_a_run_is_on_record_from_the_message_to_the_answer(config, recorded, monkeypatch):
    events, recorder = recorded
    monkeypatch.setenv("TRACEPARENT", TRACE)
    result = run(config, script(("exec", {"command": "echo hello-there"})), Audit(recorder))
    assert "hello-there" in result.content
    assert [(e["kind"], e["outcome"]) for e in events] == [
        ("message.in", "success"), ("run.start", "attempt"),
        ("model.request", "attempt"), ("model.decision", "success"), ("tool.call", "attempt"), ("tool.result", "success"),
        ("model.request", "attempt"), ("model.decision", "success"), ("message.out", "success"), ("run.end", "success"),
    ]  # fmt: skip
    said, start, request, decision, call, outcome, request2, decision2, answer, end = events
    assert {e["session"] for e in events} == {"s-1"} and len({e["run"] for e in events}) == 1
    assert all({**e["trace"], "span": 0} == {"id": TRACE[3:35], "parent": TRACE[36:52], "span": 0} for e in events)
    assert request["trace"]["span"] == decision["trace"]["span"] != request2["trace"]["span"] and "span" not in call["trace"], "one span a model call"
    assert [e["caused_by"] for e in events[1:]] == [
        said["id"], start["id"], request["id"], decision["id"], call["id"], start["id"], request2["id"], decision2["id"], start["id"]
    ]  # fmt: skip
    assert (said["actor"]["type"], said["actor"]["surface"]) == ("user", "cli") and "echo hello-there" in said["content"]["excerpt"]
    assert start["trigger"]["type"] == "user" and start["model"]["requested"] == "demo" and len(start["model"]["system"]) == 64
    assert decision["decision"]["stop"] == "tool" and decision["decision"]["calls"] == [{"id": call["tool"]["call_id"], "tool": "exec"}]
    assert decision["usage"]["input"] > 0 and decision["duration_us"] > 0 and decision["model"]["via"] == "hook"
    assert call["tool"]["name"] == "exec" and call["params"]["command"] == "echo hello-there" and call["step"] == 1
    assert outcome["tool"]["call_id"] == call["tool"]["call_id"] and "hello-there" in outcome["content"]["excerpt"]
    assert decision2["decision"] == {"stop": "end"} and decision2["step"] == 2
    assert answer["content"]["excerpt"].startswith("DONE 1") and answer["target"] == {"type": "channel", "id": "cli:direct"}
    assert end["usage"]["steps"] == 2 and end["usage"]["tools"] == 1 and end["duration_us"] >= decision["duration_us"]


def test_secrets_in_arguments_and_results_are_taken_out(config, recorded):
    events, recorder = recorded
    secret = "gh" + "p_" + "a1B2" * 9
    run(config, script(("exec", {"command": f"echo token {secret}"})), Audit(recorder))
    assert testing.one(events, "tool.call") and secret not in json.dumps(events)


@pytest.mark.parametrize("when", ["before_run", "before_iteration", "before_execute_tools", "before_execute_tool"])
def test_what_cannot_be_recorded_does_not_happen(config, make_recorder, tmp_path, when):
    recorder = make_recorder(("127.0.0.1", 9), when_full="fail", quota=1 << 20)

    class Fill(AgentHook):
        """Stands before ours, and leaves no room in the spool at that moment."""

    async def fill(self, *_):
        with pytest.raises(QueueFull):
            while True:
                recorder.record("log.record", "unknown", content={"excerpt": "x y " * 500})

    setattr(Fill, when, fill)
    marker = tmp_path / "marker"
    with pytest.raises(QueueFull):
        run(config, script(("exec", {"command": f"touch {marker}"})), Fill(), Audit(recorder))
    assert not marker.exists()


def test_a_hook_that_may_swallow_would_let_the_tool_run(config, make_recorder, tmp_path):
    """Why the hook says `reraise`: the same failure, without it."""
    recorder = make_recorder(("127.0.0.1", 9), when_full="fail", quota=1 << 20)
    audit = Audit(recorder)
    audit._reraise = False
    recorder.close(0)
    marker = tmp_path / "marker"
    run(config, script(("exec", {"command": f"touch {marker}"})), audit)
    assert marker.exists()


def test_failures_say_what_failed(config, recorded):
    events, recorder = recorded
    run(config, script(("exec", {"command": "exit 3"}), ("read_file", {"path": "nowhere.txt"}), ("no_such_tool", {"a": 1})), Audit(recorder))
    exec_, read, unknown = testing.find(events, "tool.result")
    assert (exec_["outcome"], exec_["error"]) == ("failure", {"type": "exit", "code": 3})
    assert read["outcome"] == "failure" and "nowhere.txt" in read["error"]["message"]
    assert (unknown["outcome"], unknown["tool"]["name"], unknown["params"], unknown["error"]["type"]) == ("denied", "no_such_tool", {"a": 1}, "refused")
    assert unknown["caused_by"] == testing.find(events, "model.decision")[2]["id"]
    assert len(testing.find(events, "tool.call")) == 2, "a call that nanobot refuses itself never began"


def test_a_model_that_fails_is_a_failed_decision_and_a_failed_run(config, model, recorded):
    events, recorder = recorded
    config.write_text(config.read_text().replace(model, f"{model}/nothing?"))  # a path that the model does not know: 404
    run(config, "hello", Audit(recorder))
    decision = testing.one(events, "model.decision")
    assert (decision["outcome"], decision["decision"]["stop"]) == ("failure", "error") and decision["error"]["message"]
    end = testing.one(events, "run.end")
    assert end["outcome"] == "failure" and end["error"]["message"]


def test_a_cancelled_run_ends_on_record_and_so_does_its_tool(config, recorded, tmp_path):
    events, recorder = recorded
    began = tmp_path / "began"

    async def go():
        bot = Nanobot.from_config(config)
        task = asyncio.create_task(bot.run(script(("exec", {"command": f"touch {began}; sleep 30"})), session_key="s-1", hooks=[Audit(recorder)]))
        while not began.exists():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await bot.aclose()

    asyncio.run(go())
    result = testing.one(events, "tool.result")
    assert (result["outcome"], result["error"]["type"], result["caused_by"]) == ("unknown", "interrupted", testing.one(events, "tool.call")["id"])
    end = testing.one(events, "run.end")
    assert (end["outcome"], end["decision"]["stop"]) == ("unknown", "cancel")


def test_runs_at_the_same_time_do_not_mix(config, recorded):
    events, recorder = recorded
    audit = Audit(recorder)

    async def go():
        bot = Nanobot.from_config(config)
        await asyncio.gather(*(bot.run(script(("exec", {"command": f"echo {n}"})), session_key=f"s-{n}", hooks=[audit]) for n in range(3)))
        await bot.aclose()

    asyncio.run(go())
    for n in range(3):
        mine = [e for e in events if e["session"] == f"s-{n}"]
        assert len(mine) == 10 and len({e["run"] for e in mine}) == 1
        assert testing.one(mine, "tool.call")["params"]["command"] == f"echo {n}"


@pytest.fixture
def installed(monkeypatch):
    original = runner.AgentRunner.run
    yield install
    runner.AgentRunner.run = original


def test_installed_it_sees_every_run_subagents_included(config, recorded, installed):
    events, recorder = recorded
    installed(Audit(recorder))
    task = script(("exec", {"command": "echo from-the-child"}))

    async def go():
        bot = Nanobot.from_config(config)
        await bot.run(script(("spawn", {"task": task, "label": "child"})), session_key="s-1")
        await asyncio.get_running_loop().run_in_executor(None, lambda: eventually(lambda: testing.find(events, "subagent.end")))
        await bot.aclose()

    asyncio.run(go())
    spawn, end = testing.one(events, "subagent.start"), testing.one(events, "subagent.end")
    child = spawn["peer"]["run"]
    assert end["caused_by"] == spawn["id"] and end["outcome"] == "success" and spawn["run"] != child
    start = testing.one(events, "run.start", run=child)
    assert start["trigger"] == {"type": "agent", "ref": spawn["run"]} and start["caused_by"] == spawn["id"]
    assert start["model"]["tools_n"] > 0 and len(start["model"]["tools"]) == 64
    assert testing.one(events, "tool.call", run=child)["params"]["command"] == "echo from-the-child"


def test_installed_and_given_it_records_once(config, recorded, installed):
    events, recorder = recorded
    audit = Audit(recorder)
    installed(audit)
    run(config, "hello", audit)
    assert len(testing.find(events, "run.start")) == 1


def test_a_nanobot_of_another_build_is_refused_when_it_is_installed(monkeypatch, recorded):
    async def other(self, spec, more):
        pass

    monkeypatch.setattr(runner.AgentRunner, "run", other)
    with pytest.raises(ConfigurationError, match="expected nanobot-ai 0.3"):
        install(Audit(recorded[1]))


# -- the command line ----------------------------------------------------------------------------------------------


def launch(receiver_port, tls, *arguments, options=()):
    command = [sys.executable, "-m", "clawtrail.cli", "nanobot", "--receiver", f"127.0.0.1:{receiver_port}", "--tls", str(tls), "--agent", "agent-1", *options, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=dict(os.environ), stdin=subprocess.DEVNULL)


def test_the_command_line_runs_with_the_hook_and_everything_has_arrived_at_its_end(config, receiver, pki):
    done = launch(receiver.port, pki.client, "agent", "-m", script(("exec", {"command": "echo by-command"})), "--session", "s-7")
    assert done.returncode == 0 and "by-command" in done.stdout, done.stdout + done.stderr
    events = [json.loads(m.msg) for m in receiver.messages]
    call = testing.one(events, "tool.call")
    assert (call["session"], call["agent"]["type"], call["agent"]["version"]) == ("s-7", "nanobot", nanobot.__version__)
    assert testing.one(events, "run.end")["outcome"] == "success" and events[-1]["kind"] == "system.stop"


def test_on_the_command_line_too_nothing_runs_that_cannot_be_recorded(config, pki, tmp_path):
    marker, full = tmp_path / "marker", "/dev/full"
    done = launch(9, pki.client, "agent", "-m", script(("exec", {"command": f"touch {marker}"})), options=["--spool", full])
    assert done.returncode == 2 and "spool" in done.stderr and not marker.exists()


def test_a_command_whose_agent_runs_elsewhere_is_refused(config, receiver, pki):
    done = launch(receiver.port, pki.client, "gateway", "--background")
    assert done.returncode == 2 and "expected agent -m" in done.stderr


@pytest.mark.parametrize("here", ["agent -m hi", "agent --message=hi", "agent -mhi", "agent --classic", "gateway", "gateway --port 1", "serve", "status", "agent --help", "-m hi"])
def test_commands_of_this_process(here):
    assert elsewhere(here.split()) is None


@pytest.mark.parametrize("there", ["", "agent", "webui", "gateway --background", "gateway restart", "gateway install-service", "--session x"])
def test_commands_of_another_process(there):
    assert elsewhere(there.split())


def test_nanobots_own_log_tells_of_a_call_and_not_its_secret(config):
    from loguru import logger

    lines, secret = [], "ghp_" + "a1B2" * 9
    sink = logger.add(lines.append, level="DEBUG")
    mask_logs()
    try:
        run(config, script(("exec", {"command": f"echo {secret} > /dev/null"})))
    finally:
        logger.configure(patcher=lambda record: None)
        logger.remove(sink)
    assert any("exec" in line and "[redacted:github:" in line for line in lines), lines
    assert not any(secret in line for line in lines)
