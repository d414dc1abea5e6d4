// The plugin's lanes against a forwarder of our own on a real unix socket, and the size of its records.
// Run by test_openclaw_plugin.py, or by hand: node --test tests/unit/
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { BulkLane, GateLane } from "../../agent/openclaw/plugin/lanes.js";
import { MAX_RECORD, inventory, question, record } from "../../agent/openclaw/plugin/records.js";
import { GatewayState } from "../../agent/openclaw/plugin/state.js";

const folder = mkdtempSync(path.join(tmpdir(), "clawtrail-"));
const alive = setInterval(() => {}, 1000); // the lanes hold no process open: something here must
after(() => {
  clearInterval(alive);
  rmSync(folder, { recursive: true });
});
let count = 0;

/** A forwarder that answers each record with `answer(record)`; null: no answer. */
class Forwarder {
  path = path.join(folder, `${++count}.sock`);
  records = [];
  #sockets = new Set();

  constructor(answer = ({ n }) => ({ ack: n })) {
    this.answer = answer;
  }

  async start() {
    this.server = net.createServer((socket) => {
      this.#sockets.add(socket);
      let buffer = "";
      socket.setEncoding("utf8").on("error", () => {}).on("data", (text) => {
        const lines = (buffer + text).split("\n");
        buffer = lines.pop();
        for (const line of lines) {
          const received = JSON.parse(line);
          const answer = this.answer(received, socket);
          if (answer?.ok !== false) this.records.push(received);
          if (answer) socket.write(`${JSON.stringify(answer)}\n`);
        }
      });
    });
    await new Promise((resolve) => this.server.listen(this.path, resolve));
    return this;
  }

  async stop() {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

const line = (id) => JSON.stringify({ rid: String(id), hook: "test" });
const makeDropped = (counts) => JSON.stringify({ rid: "dropped", hook: "dropped", event: { counts } });
const bulkLane = (socket, options) => new BulkLane(socket, { makeDropped, timeoutMs: 300, pause: [10, 50], ...options });
const rids = (forwarder) => forwarder.records.map(({ rid }) => rid);

async function eventually(condition, within = 5000) {
  const end = Date.now() + within;
  while (!condition()) {
    if (Date.now() > end) assert.fail(`not within ${within} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Runs `action`; it must reject with `pattern` in at most `ms`. */
async function failsWithin(ms, pattern, action) {
  const start = Date.now();
  await assert.rejects(action, pattern);
  assert.ok(Date.now() - start < ms, `took ${Date.now() - start} ms, limit ${ms}`);
}

test("a gate opens when the forwarder accepted the record", async () => {
  const forwarder = await new Forwarder().start();
  const gate = new GateLane(forwarder.path);
  await Promise.all([gate.send(line("a"), 1000), gate.send(line("b"), 1000)]);
  assert.deepEqual(rids(forwarder), ["a", "b"]);
  await forwarder.stop();
});

test("a gate stays shut without a forwarder, with a silent one, and with one that refuses", async () => {
  await failsWithin(1000, /nowhere\.sock: connect ENOENT/, () => new GateLane(path.join(folder, "nowhere.sock")).send(line("a"), 300));
  for (const [answer, pattern] of [
    [() => null, /no answer in time/],
    [({ n }) => ({ ack: n, ok: false, error: "queue full" }), /queue full/],
    [() => ({ ack: null, ok: false, error: "refused: not the gateway" }), /not the gateway/],
    [({ n }) => ({ ack: n + 1 }), /no answer in time/],
    [(_, socket) => void socket.write("x".repeat(100_000)), /answer without end/],
    [(_, socket) => void socket.write("words\n"), /not JSON/],
    [(_, socket) => void socket.destroy(), /closed|ECONNRESET|EPIPE/],
  ]) {
    const forwarder = await new Forwarder(answer).start();
    await failsWithin(1000, pattern, () => new GateLane(forwarder.path).send(line("a"), 300));
    await forwarder.stop();
  }
});

test("a gate rides out a forwarder that restarts within its time", async () => {
  const forwarder = await new Forwarder().start();
  const gate = new GateLane(forwarder.path);
  await gate.send(line("before"), 1000);
  await forwarder.stop();
  const waiting = gate.send(line("during"), 2000);
  setTimeout(() => forwarder.start(), 300);
  await waiting;
  assert.deepEqual(rids(forwarder), ["before", "during"]);
  await forwarder.stop();
});

test("observations arrive in order, once the forwarder is there", async () => {
  const forwarder = new Forwarder();
  const bulk = bulkLane(forwarder.path);
  for (let i = 0; i < 500; i++) bulk.push("test", line(i));
  await bulk.flush(50);
  assert.equal(bulk.queued, 500);
  await forwarder.start();
  await eventually(() => bulk.queued === 0);
  assert.deepEqual(rids(forwarder), Array.from({ length: 500 }, (_, i) => String(i)));
  assert.equal(bulk.bytes, 0);
  await forwarder.stop();
});

test("observations keep their order through broken connections and missing answers", async () => {
  let seen = 0;
  const forwarder = await new Forwarder(({ n }, socket) => {
    seen++;
    if (seen % 97 === 0) return void socket.destroy();
    return seen % 61 === 0 ? null : { ack: n };
  }).start();
  const bulk = bulkLane(forwarder.path);
  for (let i = 0; i < 300; i++) bulk.push("test", line(i));
  await eventually(() => bulk.queued === 0, 20_000);
  const firsts = [...new Set(rids(forwarder))]; // what was sent again has its own id: the forwarder knows it
  assert.deepEqual(firsts, Array.from({ length: 300 }, (_, i) => String(i)));
  await forwarder.stop();
});

test("a record is under way before the one before it is answered, and only so many are", async () => {
  const held = [];
  const forwarder = await new Forwarder(({ n }, socket) => void held.push([n, socket])).start();
  const bulk = bulkLane(forwarder.path, { timeoutMs: 5000, batch: 3 });
  const answer = () => {
    const [n, socket] = held.shift();
    socket.write(`${JSON.stringify({ ack: n })}\n`);
  };
  bulk.push("test", line(0));
  await eventually(() => held.length === 1);
  for (let i = 1; i < 5; i++) bulk.push("test", line(i));
  await eventually(() => held.length === 3);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.deepEqual([rids(forwarder), bulk.queued], [["0", "1", "2"], 5]);
  for (let left = 5; left; left--) {
    await eventually(() => held.length);
    answer();
    await eventually(() => bulk.queued === left - 1);
  }
  assert.deepEqual([rids(forwarder), bulk.accepted, bulk.bytes], [["0", "1", "2", "3", "4"], 5, 0]);
  await forwarder.stop();
});

/** The ids of the records in each write to a socket. */
function writes(t) {
  const written = [];
  const real = net.Socket.prototype._write;
  t.mock.method(net.Socket.prototype, "_write", function (data, ...rest) {
    if (String(data).includes("rid")) written.push(String(data).trim().split("\n").map((one) => JSON.parse(one).rid));
    return real.call(this, data, ...rest);
  });
  return written;
}

test("a record is with the kernel when push returns, and none overtakes those that waited for the connection", async (t) => {
  const written = writes(t);
  const forwarder = await new Forwarder().start();
  const bulk = bulkLane(forwarder.path);
  const connect = net.createConnection;
  t.mock.method(net, "createConnection", (...to) => { // the moment the connection is up, before those that wait hear of it
    return connect(...to).once("connect", () => process.nextTick(() => bulk.push("test", line("c"))));
  });
  for (const id of "ab") bulk.push("test", line(id));
  await eventually(() => bulk.accepted === 3);
  assert.deepEqual(written.flat(), ["a", "b", "c"]);
  bulk.push("test", line("now"));
  assert.deepEqual(written.at(-1), ["now"]);
  await eventually(() => bulk.queued === 0);
  await forwarder.stop();
});

test("a record that may wait goes with the next one, a gate above all, or alone a moment later", async (t) => {
  const forwarder = await new Forwarder().start();
  const bulk = bulkLane(forwarder.path, { lazy: new Set(["lazy"]) });
  bulk.push("test", line("first"));
  await eventually(() => bulk.accepted === 1);
  const written = writes(t);
  bulk.push("lazy", line("a"));
  bulk.push("lazy", line("b"));
  assert.deepEqual(written, []);
  await new GateLane(forwarder.path).send(line("gate"), 1000, bulk);
  bulk.push("lazy", line("c"));
  bulk.push("test", line("d"));
  assert.deepEqual(written, [["a", "b", "gate"], ["c", "d"]]);
  bulk.push("lazy", line("alone"));
  await eventually(() => bulk.queued === 0);
  assert.deepEqual(written.at(-1), ["alone"]);
  bulk.push("lazy", line("held"));
  await forwarder.stop();
  await forwarder.start();
  await eventually(() => bulk.queued === 0);
  assert.deepEqual(rids(forwarder), ["first", "a", "b", "gate", "c", "d", "alone", "held"]);
  await forwarder.stop();
});

test("an answer that comes after its record was sent again changes nothing", async () => {
  let first = true;
  const seen = [];
  const forwarder = await new Forwarder(({ n, rid }) => {
    seen.push(rid);
    const no = rid === "1" && first;
    if (no) first = false;
    return no ? { ack: n, ok: false, error: "queue full" } : { ack: n };
  }).start();
  const bulk = bulkLane(forwarder.path);
  for (let i = 0; i < 4; i++) bulk.push("test", line(i));
  await eventually(() => bulk.queued === 0);
  assert.deepEqual(seen, ["0", "1", "2", "3", "1", "2", "3"]);
  assert.deepEqual([bulk.accepted, bulk.dropped, bulk.bytes], [4, 0, 0]);
  await forwarder.stop();
});

test("what does not fit is counted by hook and told in its place", async () => {
  const forwarder = new Forwarder();
  const bulk = bulkLane(forwarder.path, { maxRecords: 3 });
  for (let i = 0; i < 5; i++) bulk.push(`hook${i}`, line(i));
  assert.equal(bulk.dropped, 2);
  await forwarder.start();
  await eventually(() => forwarder.records.length === 4);
  assert.deepEqual(rids(forwarder), ["0", "1", "2", "dropped"]);
  assert.deepEqual(forwarder.records[3].event.counts, { hook3: 1, hook4: 1 });
  await forwarder.stop();
});

test("a record that the forwarder will never take does not hold up the others", async () => {
  const forwarder = await new Forwarder(({ n, rid }) => (rid === "1" ? { ack: n, ok: false, retry: false, error: "no" } : { ack: n })).start();
  const bulk = bulkLane(forwarder.path);
  for (let i = 0; i < 3; i++) bulk.push("test", line(i));
  await eventually(() => forwarder.records.length === 3);
  assert.deepEqual(rids(forwarder), ["0", "2", "dropped"]);
  await forwarder.stop();
});

test("a record that the forwarder refuses for now is sent again", async () => {
  let refusals = 0;
  const forwarder = await new Forwarder(({ n, rid }) =>
    rid === "0" && refusals++ < 3 ? { ack: n, ok: false, error: "queue full" } : { ack: n },
  ).start();
  const bulk = bulkLane(forwarder.path, { batch: 1 });
  for (let i = 0; i < 3; i++) bulk.push("test", line(i));
  await eventually(() => bulk.queued === 0);
  assert.deepEqual(rids(forwarder), ["0", "1", "2"]);
  await forwarder.stop();
});

test("a record never exceeds its limit and keeps head and tail of what was cut", () => {
  const command = `head ${"ä".repeat(400_000)} tail`;
  const text = record("before_tool_call", { toolName: "exec", params: { command } }, { runId: "r" });
  assert.ok(Buffer.byteLength(text) <= MAX_RECORD);
  const { event, ctx } = JSON.parse(text);
  assert.match(event.params.command, /^head ä+\[clawtrail: cut, 400010 characters in all\]ä+ tail$/);
  assert.equal(ctx.runId, "r");
});

test("a record of very many small values is cut too", () => {
  const params = { list: Array.from({ length: 200_000 }, (_, i) => i) };
  const text = record("before_tool_call", { toolName: "exec", runId: "r", params }, {});
  assert.ok(Buffer.byteLength(text) <= MAX_RECORD);
  const { event } = JSON.parse(text);
  assert.equal(event.toolName, "exec");
  assert.ok(event.cut.bytes > 1_000_000);
});

test("what cannot be JSON does not stop a record", () => {
  const params = { big: 10n, run() {}, signal: new AbortController().signal, error: new TypeError("no") };
  params.self = params;
  const { event, ctx } = JSON.parse(record("before_tool_call", { params }, { config: { secret: 1 }, agentId: "main" }));
  assert.deepEqual(event.params, { big: "10", error: { name: "TypeError", message: "no" }, self: "[circular]" });
  assert.deepEqual(ctx, { agentId: "main" });
});

test("bulky fields are named by size and hash, credentials are left out", () => {
  const run = JSON.parse(record("before_agent_run", { prompt: "hi", systemPrompt: "you are", messages: [{ role: "user" }] }, {}));
  assert.deepEqual(run.event, {
    prompt: "hi",
    systemPrompt: { bytes: 7, sha256: createHash("sha256").update("you are").digest("hex") },
    messages: { count: 1, bytes: 17 },
  });
  const input = JSON.parse(record("llm_input", { tools: [{ name: "exec", schema: "…".repeat(1000) }], historyMessages: [] }, {}));
  assert.deepEqual(input.event.tools.names, ["exec"]);
  assert.deepEqual(input.event.historyMessages, { count: 0, bytes: 2 });
  const pairing = JSON.parse(record("channel_pairing_requested", { code: "123456", senderId: "x" }, {}));
  assert.deepEqual(pairing.event, { senderId: "x" });
});

test("a gate waits for what was queued before it, and for no more", async () => {
  const forwarder = await new Forwarder().start();
  const bulk = bulkLane(forwarder.path);
  bulk.push("test", line("cause"));
  await bulk.flush(2000);
  assert.deepEqual(rids(forwarder), ["cause"]);
  const more = setInterval(() => bulk.push("test", line("more")), 1); // never empty
  await bulk.flush(2000);
  clearInterval(more);
  await forwarder.stop();
});

test("a gate follows what is under way, without waiting for the answers to that", async () => {
  const held = [];
  const forwarder = await new Forwarder((received, socket) => void held.push([received, socket])).start();
  const bulk = bulkLane(forwarder.path, { timeoutMs: 5000 });
  const gate = new GateLane(forwarder.path);
  assert.equal(bulk.pipeline, null, "nothing is under way");
  bulk.push("test", line("cause"));
  await eventually(() => held.length === 1);
  const open = gate.send(line("action"), 5000, bulk);
  await eventually(() => held.length === 2);
  const [[cause, socket], [action, same]] = held;
  assert.deepEqual([cause.rid, action.rid, action.gate, same === socket], ["cause", "action", true, true]);
  socket.write(`${JSON.stringify({ ack: cause.n })}\n`);
  await eventually(() => bulk.queued === 0);
  assert.equal(gate.accepted, 0, "its own answer is what opens it");
  socket.write(`${JSON.stringify({ ack: action.n })}\n`);
  await open;
  assert.deepEqual([gate.accepted, bulk.pipeline], [1, null]);
  await forwarder.stop();
});

test("a gate that loses its way takes its own", async () => {
  let broken = false;
  const forwarder = await new Forwarder(({ n, rid }, socket) => {
    if (rid === "action" && !broken) return (broken = true), void socket.destroy();
    return rid === "cause" && !broken ? null : { ack: n };
  }).start();
  const bulk = bulkLane(forwarder.path, { timeoutMs: 5000 });
  const gate = new GateLane(forwarder.path);
  bulk.push("test", line("cause"));
  await eventually(() => bulk.pipeline);
  await gate.send(line("action"), 2000, bulk);
  await eventually(() => bulk.queued === 0);
  assert.deepEqual([gate.accepted, gate.failed, bulk.accepted, bulk.dropped], [1, 0, 1, 0]);
  await forwarder.stop();
});

test("nobody waits long for a forwarder that is away", async () => {
  const bulk = bulkLane(path.join(folder, "nowhere.sock"));
  bulk.push("test", line("a"));
  const start = Date.now();
  await bulk.flush(5000);
  assert.ok(Date.now() - start < 1000);
});

test("only so many records wait for their answer at once", async () => {
  const forwarder = await new Forwarder(() => null).start();
  const gate = new GateLane(forwarder.path);
  const waiting = Array.from({ length: 1024 }, (_, i) => gate.send(line(i), 800).catch(() => "late"));
  await eventually(() => forwarder.records.length === 1024);
  await failsWithin(300, /1024 records wait/, () => gate.send(line("one more"), 90));
  assert.ok((await Promise.all(waiting)).every((end) => end === "late"));
  await forwarder.stop();
});

test("each tool's contract has a hash of its own, and their order does not matter", () => {
  const [a, b] = [{ name: "a", parameters: { x: 1 } }, { name: "b" }];
  const hashes = (tools) => JSON.parse(record("llm_input", { tools }, {})).event.tools;
  const [one, two, changed] = [hashes([a, b]), hashes([b, a]), hashes([{ ...a, parameters: { x: 2 } }, b])];
  assert.match(one.defs.a, /^[0-9a-f]{16}$/);
  assert.equal(one.sha256, two.sha256);
  assert.deepEqual(two.defs, one.defs);
  assert.notEqual(changed.defs.a, one.defs.a);
  assert.equal(changed.defs.b, one.defs.b);
  assert.notEqual(changed.sha256, one.sha256);
});

test("files of the prompt are named by their hash, and what only the host may hold is left out", () => {
  const context = { bootstrapFiles: [{ name: "A", path: "/A", content: "be kind" }, { name: "B", path: "/B", missing: true }], cfg: { secret: 1 } };
  const { event } = JSON.parse(record("internal:agent:bootstrap", { sessionKey: "s", context }, {}));
  const sha256 = createHash("sha256").update("be kind").digest("hex");
  assert.deepEqual(event, { sessionKey: "s", context: { files: [{ name: "A", path: "/A", bytes: 7, sha256 }, { name: "B", path: "/B", missing: true }] } });
  const patched = JSON.parse(record("internal:session:patch", { context: { patch: { a: 1 }, sessionEntry: { token: 1 }, cfg: {} } }, {}));
  assert.deepEqual(patched.event, { context: { patch: { a: 1 } } });
});

test("the inventory names servers without what they are given in secret", () => {
  const servers = (env) => ({ words: { command: "node", args: ["w.mjs", "--port=1"], env } });
  const of = (env) => inventory({ mcp: { servers: servers(env) }, tools: { deny: ["gateway"], exec: { ask: "off" } } }).inventory;
  const [one, other] = [of({ KEY: "one" }), of({ KEY: "two" })];
  assert.equal(one.mcp[0].spec, "node w.mjs --port=1");
  assert.ok(!JSON.stringify(one).includes("one"));
  assert.equal(one.mcp[0].sha256, other.mcp[0].sha256);
  assert.deepEqual(one.tools, { deny: ["gateway"], ask: "off", profile: undefined, allow: undefined, security: undefined });
  assert.deepEqual(inventory(undefined).inventory.mcp, []);
});

test("the inventory names what stands between each agent and the host", () => {
  const agents = { defaults: { sandbox: { mode: "all" } }, entries: { main: {}, coder: { tools: { exec: { ask: "always" } }, sandbox: { mode: "off" } }, odd: null } };
  const told = inventory({ tools: { exec: { security: "full", ask: 7 } }, agents }).inventory;
  assert.deepEqual(told.gates, {
    "tools.exec.security": "full", "agents.defaults.sandbox.mode": "all",
    "agents.entries.coder.tools.exec.ask": "always", "agents.entries.coder.sandbox.mode": "off",
  });
  assert.deepEqual(told.agents, ["main", "coder", "odd"]);
  assert.deepEqual(inventory({ agents: { entries: 5 } }).inventory.gates, {});
});

test("each row of the gateway's database is read once, and one that cannot be read is told", async () => {
  const now = Date.now() + 1000;
  const rows = {
    operator_approvals: [{ approval_id: "a", presentation_json: '{"commandText":"id"}', updated_at_ms: now }, { approval_id: "b", presentation_json: "{", updated_at_ms: now + 1 }],
    diagnostic_events: [{ sequence: 1, created_at: 0, payload_json: '{"event":"old"}' }, { sequence: 2, created_at: now, payload_json: '{"event":"config.write"}' }],
  };
  const prepare = (sql) => ({
    all: (after, since = 0) => sql.includes("operator_approvals")
      ? rows.operator_approvals.filter((row) => row.updated_at_ms > after)
      : rows.diagnostic_events.filter((row) => row.sequence > after && row.created_at >= since),
  });
  const state = new GatewayState("/state", async () => ({ prepare }));
  const approvals = await state.approvals();
  assert.deepEqual(approvals.map(({ approval_id, presentation }) => [approval_id, presentation]), [["a", { commandText: "id" }], ["b", { unreadable: "{" }]]);
  assert.deepEqual(await state.approvals(), []);
  assert.deepEqual(await state.changes(), [{ event: "config.write" }]);
  assert.deepEqual(await state.changes(), []);
  assert.equal(state.error, "");
  const broken = new GatewayState("/state", async () => { throw new Error("database is locked"); });
  assert.deepEqual(await broken.approvals(), []);
  assert.equal(broken.error, "database is locked");
});

test("an answer that wants a person says what to ask, and one that does not is a no", async () => {
  const answer = { ok: false, error: "needs approval by the rule r.x: why", retry: false, denied: "r.x", approve: true, action: "exec: rm x", severity: "critical" };
  for (const approve of [true, undefined, "yes"]) {
    const forwarder = await new Forwarder(({ n }) => ({ ...answer, ack: n, approve })).start();
    const gate = new GateLane(forwarder.path);
    const { cause } = await gate.send(line("a"), 1000).catch((error) => error);
    assert.deepEqual([cause.name, cause.approve, cause.rule, cause.retry], ["Refused", approve === true, "r.x", false]);
    assert.deepEqual([gate.accepted, gate.failed], approve === true ? [1, 0] : [0, 1]);
    await forwarder.stop();
  }
});

test("a question fits what OpenClaw shows, names call and rule, and no answer is a no", () => {
  const refused = { message: "needs approval by the rule r.x: why", rule: "r.x", action: "exec: rm x", severity: "critical" };
  const asked = question(refused, { toolName: "exec" }, 90000);
  assert.equal(asked.title, "May the agent use exec? (r.x)");
  assert.match(asked.description, /^exec: rm x\n\nneeds approval by the rule r\.x: why\nWithout a yes within 90 s/);
  assert.deepEqual([asked.severity, asked.timeoutMs, asked.allowedDecisions], ["critical", 90000, ["allow-once", "deny"]]);
  const long = question({ ...refused, action: "a".repeat(2000), rule: "r".repeat(200) }, { toolName: "exec" }, 1000);
  assert.ok(long.title.length <= 80 && long.description.length <= 512);
});
