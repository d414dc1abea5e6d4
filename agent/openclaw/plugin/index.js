// The clawtrail plugin: every hook of the gateway as one record to the forwarder.
// A gate waits until its record is accepted and blocks the action when it is not: no record, no action.
import { readFileSync } from "node:fs";
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";
import { onInternalDiagnosticEvent } from "openclaw/plugin-sdk/diagnostic-runtime";
import { BulkLane, GateLane } from "./lanes.js";
import { inventory, question, record } from "./records.js";
import { GatewayState } from "./state.js";

const { version } = JSON.parse(readFileSync(new URL("./package.json", import.meta.url), "utf8"));

/** The only hooks OpenClaw itself fails closed; ours return a reason before its own time limit. */
const GATES = {
  before_tool_call: (reason) => ({ block: true, blockReason: reason }),
  before_agent_run: (reason) => ({ outcome: "block", reason, message: reason }),
  before_install: (reason) => ({ block: true, blockReason: reason }),
  message_sending: (reason) => ({ cancel: true, cancelReason: reason }),
  reply_payload_sending: (reason) => ({ cancel: true, cancelReason: reason }),
};
const OBSERVED = [
  "gateway_start", "gateway_stop", "session_start", "session_end", "before_reset", "agent_end",
  "after_tool_call", "resolve_exec_env", "before_message_write", "llm_input", "llm_output", "model_call_started", "model_call_ended",
  "message_received", "message_sent", "channel_pairing_requested",
  "subagent_spawned", "subagent_ended", "before_compaction", "after_compaction",
  "cron_reconciled", "cron_changed", "skill_proposal_changed", "skill_changed",
];
/** OpenClaw leaves these out, with a line in its log and no more, unless the configuration allows them to the plugin. */
const CONVERSATION = new Set(["before_agent_run", "llm_input", "llm_output", "agent_end"]);
/** What happens right after these says more; it takes them along. */
const LAZY = new Set(["resolve_exec_env", "model_call_ended"]);
/** After these the process may exit: give the queue a moment. */
const FLUSHED = new Set(["agent_end", "session_end", "gateway_stop"]);
const FLUSH_MS = 1500;
const CAUSE_MS = 100; // for the decision to be on record before the call that it asked for
/** Approvals, gateway authentication and the like have no hook; these events are their only trace. */
const DIAGNOSTICS = [
  "security.event", "run.completed", "tool.execution.blocked", "tool.loop",
  "exec.approval.followup_suppressed", "model.failover", "diagnostic.async_queue.dropped", "gateway.rpc",
  "webhook.received", "webhook.error",
];
const INTERNAL = [
  "command", "session:patch", "session:auto-reset", "agent:bootstrap", "message:transcribed", "gateway:shutdown", "gateway:pre-restart",
];

// register() runs more than once in a process: lanes, heartbeat and subscription exist once, here.
const shared = (globalThis[Symbol.for("clawtrail")] ??= { lanes: new Map(), generation: 0, stopPulse: null });
shared.seen ??= new Set(); // hooks that have fired in this process

function lanesFor(socket) {
  if (!shared.lanes.has(socket)) {
    shared.lanes.set(socket, {
      gate: new GateLane(socket),
      bulk: new BulkLane(socket, { lazy: LAZY, makeDropped: (counts) => record("dropped", { counts }, {}) }),
    });
  }
  return shared.lanes.get(socket);
}

export default definePluginEntry({
  id: "clawtrail",
  name: "clawtrail",
  description: "Puts every action on the record before it takes effect: no record, no action.",
  register(api) {
    refuseAgentExec();
    const {
      socket = "/run/clawtrail/audit.sock", acceptTimeoutMs: atLeastMs = 2000, heartbeatMs = 10000, approvalTimeoutMs = 120000,
    } = api.pluginConfig ?? {};
    // The forwarder says no at its deadline, in words for the user: the same key of .env for both, and a second for the way.
    const acceptTimeoutMs = Math.max(atLeastMs, (Number(process.env.GATE_DEADLINE) || 3) * 1000 + 1000);
    const { gate, bulk } = lanesFor(socket);
    const generation = ++shared.generation;
    const state = new GatewayState();
    const conversation = api.config?.plugins?.entries?.clawtrail?.hooks?.allowConversationAccess === true;
    const registered = [
      ...[...Object.keys(GATES), ...OBSERVED].filter((hook) => conversation || !CONVERSATION.has(hook)),
      ...INTERNAL.map((name) => `internal:${name}`), ...DIAGNOSTICS.map((name) => `diag:${name}`),
    ];

    // Nothing here may throw into the host: a record that cannot be made is counted like any other loss.
    const observe = (hook, event, ctx) => {
      try {
        shared.seen.add(hook);
        bulk.push(hook, record(hook, event, ctx));
      } catch (error) {
        api.logger.error(`clawtrail: ${hook} could not be recorded: ${error.message}`);
        bulk.push("dropped", record("dropped", { counts: { [hook]: 1 }, error: String(error.message).slice(0, 500) }, {}));
      }
    };

    for (const [hook, blocked] of Object.entries(GATES)) {
      api.on(hook, async (event, ctx) => {
        try {
          shared.seen.add(hook);
          if (!bulk.pipeline) await bulk.flush(CAUSE_MS);
          await gate.send(record(hook, event, ctx), acceptTimeoutMs, bulk);
        } catch (error) {
          const { cause } = error;
          if (hook === "before_tool_call" && cause?.name === "Refused" && cause.approve) {
            return { requireApproval: { ...question(cause, event, approvalTimeoutMs), onResolution: (resolution) => answered(cause, event, ctx, resolution) } };
          }
          api.logger.error(`clawtrail: ${hook} not accepted at ${error.message}; no record, no action`);
          return blocked(`${inWords(error)} (no record, no action)`);
        }
      }, { priority: 1000, timeoutMs: acceptTimeoutMs + 3000 }); // first: what another plugin blocks is an attempt too
    }
    // A person's answer is on record with the row that says who gave it; where the gateway could ask nobody there is none.
    function answered({ rule }, { toolName, toolCallId, runId }, ctx, resolution) {
      const told = { toolName, toolCallId, runId, rule, resolution };
      void readState(async () => observe("approval.resolved", { ...told, approvals: await state.approvals() }, { sessionKey: ctx?.sessionKey, trace: ctx?.trace }));
    }

    for (const hook of OBSERVED) {
      api.on(hook, (event, ctx) => {
        if (hook === "before_message_write" && event?.message?.role === "toolResult") return; // after_tool_call has told it
        observe(hook, hook === "gateway_start" ? { ...event, hooks: registered.join(" "), ...inventory(ctx?.config) } : event, ctx);
        if (hook === "gateway_start") startPulse();
        if (hook === "gateway_stop") stopPulse();
        if (FLUSHED.has(hook)) return bulk.flush(FLUSH_MS);
      });
    }
    api.registerHook(INTERNAL, (event) => {
      const { type, action, sessionKey, timestamp, context } = event;
      observe(`internal:${type}:${action}`, { sessionKey, timestamp, context }, {});
    }, { name: "clawtrail", description: "commands, session settings, bootstrap files, transcripts, restarts" });

    // Only the gateway has a pulse; the heartbeat's absence in the store means that it is gone or runs without us.
    function startPulse() {
      shared.stopPulse?.();
      const unsubscribe = onInternalDiagnosticEvent((event, meta) => {
        if (event.type === "gateway.rpc" && event.phase !== "response") return; // one record per call
        const tell = (more) => observe(`diag:${event.type}`, { ...event, ...more }, { trusted: meta?.trusted === true });
        if (event.type === "security.event" && String(event.action).startsWith("exec.approval.")) {
          void readState(async () => tell({ approvals: await state.approvals() }));
        } else tell();
      }, { include: DIAGNOSTICS });
      const timer = setInterval(async () => {
        await readState(tellState);
        observe("heartbeat", { ...status(), ...hookStatus() }, {});
      }, heartbeatMs).unref();
      shared.stopPulse = () => {
        clearInterval(timer);
        unsubscribe?.();
        shared.stopPulse = null;
      };
    }
    // A reload registers the new instance before it stops the old one: that must not end the new pulse.
    function stopPulse() {
      if (generation === shared.generation) shared.stopPulse?.();
    }

    // One after the other: two readings at once would tell the same rows twice.
    let reading = Promise.resolve();
    function readState(read) {
      reading = reading.then(read).catch((error) => api.logger.error(`clawtrail: the gateway's state: ${error.message}`));
      return reading;
    }

    async function tellState() {
      for (const approval of await state.approvals()) observe("state:approval", approval, {});
      for (const change of await state.changes()) observe("state:config-audit", change, {});
    }

    function hookStatus() {
      return {
        hooks: registered.join(" "),
        hooksSeen: [...shared.seen].join(" "),
        ...(!conversation && { hooksMissing: [...CONVERSATION].join(" ") }),
        ...(state.error && { stateError: state.error }),
      };
    }

    function status() {
      return {
        plugin: version,
        uptime: Math.round(process.uptime()),
        rss: process.memoryUsage.rss(),
        gate: { accepted: gate.accepted, failed: gate.failed },
        bulk: { accepted: bulk.accepted, queued: bulk.queued, dropped: bulk.dropped },
      };
    }

    // Answered by this very instance inside the running gateway, after a round trip to the forwarder.
    api.registerHttpRoute({
      path: "/clawtrail/health",
      auth: "plugin", // no secrets in it; the gateway listens on the container's loopback only
      match: "exact",
      handler: async (_request, response) => {
        const failures = [];
        if (!shared.stopPulse) failures.push("the gateway has not started the plugin");
        if (!conversation) {
          failures.push("hooks.allowConversationAccess of the plugin is not true: run and model hooks are dropped");
        }
        const unreachable = (error) => failures.push(`forwarder: ${error.message}`);
        await gate.send('{"ping":true}', acceptTimeoutMs).catch(unreachable);
        response.statusCode = failures.length ? 503 : 200;
        response.setHeader("content-type", "application/json");
        response.end(`${JSON.stringify({ ok: !failures.length, failures, pid: process.pid, ...status() })}\n`);
        return true;
      },
    });
  },
});

/** Why an action was refused, for the person who uses the agent: the forwarder's own words, or that it does not answer. */
function inWords(error) {
  if (error.cause?.name === "Refused") return error.cause.message;
  return "This action was not carried out: the audit recorder does not answer, and what cannot be recorded is not done. "
    + "Nothing is wrong with the request. Try again in a moment; if it goes on, tell whoever operates this agent.";
}

// `openclaw agent exec` loads plugins but runs no typed hooks: nothing it does could be recorded.
function refuseAgentExec() {
  const at = process.argv.indexOf("agent");
  if (at > 0 && process.argv[at + 1] === "exec") {
    process.stderr.write("clawtrail: `openclaw agent exec` runs without hooks and cannot be recorded: refused\n");
    process.exit(78);
  }
}
