// What a record carries. Mapping and redaction happen in the forwarder; here records only become small:
// what is bulky and said elsewhere (system prompt, tool schemas, history) is replaced by its size and hash.
import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

export const MAX_RECORD = 256 * 1024; // bytes of one line; the forwarder's limit is 1 MiB

const sha256 = (text) => createHash("sha256").update(text).digest("hex");
const size = (value) => Buffer.byteLength(encode(value) ?? "");
const digest = (value) => {
  const text = typeof value === "string" ? value : encode(value) ?? "";
  return { bytes: Buffer.byteLength(text), sha256: sha256(text) };
};
const short = (text) => sha256(text).slice(0, 16);
/** Each line as 32 bits of its hash, as `watch.line_digests` does: enough to see that an answer repeats them, no more. */
const lines = (text, shortest = 24, most = 512) => text.split(/\r\n|\r|\n/)
  .map((line) => line.toLowerCase().split(/\s+/).filter(Boolean).join(" "))
  .filter((line) => line.length >= shortest)
  .slice(0, most)
  .map((line) => sha256(line).slice(0, 8));
const volume = (list) => ({ count: list.length, bytes: size(list) });

/** JSON without cycles, functions and live handles; a string over `limit` keeps its head and tail. */
function encode(value, limit = Infinity) {
  const above = [];
  return JSON.stringify(value, function (_key, item) {
    if (typeof item === "bigint") return item.toString();
    if (typeof item === "string") return item.length > limit ? cut(item, limit) : item;
    if (item === null || typeof item !== "object") return item;
    if (item instanceof Error) return { name: item.name, message: item.message };
    if (item instanceof AbortSignal) return undefined;
    while (above.length && above.at(-1) !== this) above.pop();
    if (above.includes(item)) return "[circular]";
    above.push(item);
    return item;
  });
}

function cut(text, limit) {
  const half = Math.floor(limit / 2);
  return `${text.slice(0, half)}[clawtrail: cut, ${text.length} characters in all]${text.slice(-half)}`;
}

/** The hooks whose events are too big to pass on whole; each rule returns what it replaces. */
const SLIM = {
  before_agent_run: ({ systemPrompt, messages }) => ({
    systemPrompt: systemPrompt && digest(systemPrompt),
    messages: messages && volume(messages),
  }),
  llm_input: ({ systemPrompt, historyMessages, tools }) => ({
    systemPrompt: systemPrompt && { ...digest(systemPrompt), lines: lines(String(systemPrompt)) },
    historyMessages: historyMessages && volume(historyMessages),
    tools: tools && definitions(tools),
  }),
  agent_end: ({ messages }) => ({ messages: messages && volume(messages) }),
  before_reset: ({ messages }) => ({ messages: messages && volume(messages) }),
  before_compaction: ({ messages }) => ({ messages: messages && volume(messages) }),
  after_compaction: ({ messages }) => ({ messages: messages && volume(messages) }),
  "internal:agent:bootstrap": ({ context }) => ({ context: { ...plain(context), files: files(context?.bootstrapFiles ?? []) } }),
  channel_pairing_requested: () => ({ code: undefined }), // a live credential
};

const nameOf = (tool) => String(tool?.name ?? tool?.function?.name);

/** Each tool's contract by its hash, and the hash of them all, whatever their order. */
function definitions(tools) {
  const texts = tools.map((tool) => encode(tool) ?? "");
  const defs = Object.fromEntries(tools.map((tool, i) => [nameOf(tool), short(texts[i])]));
  const lines = Object.entries(defs).sort(([a], [b]) => (a < b ? -1 : 1)).map((line) => line.join(" "));
  return { names: Object.keys(defs), defs, bytes: Buffer.byteLength(texts.join()) + 2, sha256: sha256(lines.join("\n")) };
}

/** What of the configuration stands between an agent and the host, by its path there; of single agents where they differ. */
function gates(config) {
  const found = {};
  const note = (path, of) => {
    for (const name of ["ask", "security"]) if (typeof of?.tools?.exec?.[name] === "string") found[`${path}tools.exec.${name}`] = of.tools.exec[name];
    if (typeof of?.sandbox?.mode === "string") found[`${path}sandbox.mode`] = of.sandbox.mode;
  };
  note("", { tools: config?.tools });
  note("agents.defaults.", config?.agents?.defaults);
  for (const [id, agent] of Object.entries(config?.agents?.entries ?? {}).slice(0, 100)) note(`agents.entries.${id}.`, agent);
  return found;
}

/** What the gateway was started with: capabilities by name and hash, nothing that could be a secret. */
export function inventory(config) {
  const servers = Object.entries(config?.mcp?.servers ?? {}).map(([name, server]) => ({
    name,
    transport: server?.transport ?? (server?.url ? "http" : "stdio"),
    spec: [server?.command, ...(server?.args ?? []), server?.url].filter((part) => typeof part === "string").join(" "),
    sha256: sha256(encode({ ...server, env: Object.keys(server?.env ?? {}), headers: Object.keys(server?.headers ?? {}) })),
  }));
  let file;
  try {
    file = digest(readFileSync(process.env.OPENCLAW_CONFIG_PATH ?? "", "utf8"));
  } catch {
    // Not a file that this process may read: the trail then says nothing about it.
  }
  const { exec, profile, deny, allow } = config?.tools ?? {};
  return {
    inventory: {
      ...(file && { file }), mcp: servers, plugins: config?.plugins?.allow, gates: gates(config),
      agents: Object.keys(config?.agents?.entries ?? {}),
      tools: { profile, deny, allow, security: exec?.security, ask: exec?.ask },
    },
  };
}

const SEVERITIES = { low: "info", medium: "warning", high: "warning", critical: "critical" };

/** What OpenClaw asks a person whose yes a rule wants. No answer is a no; OpenClaw shows 80 and 512 characters and takes no more. */
export function question({ message, rule, action, severity }, { toolName }, timeoutMs) {
  const seconds = Math.round(timeoutMs / 1000);
  return {
    title: `May the agent use ${toolName}? (${rule})`.slice(0, 80),
    description: `${action || toolName}\n\n${message}\nWithout a yes within ${seconds} s it is not done.`.slice(0, 512),
    severity: SEVERITIES[severity] ?? "warning",
    timeoutMs,
    timeoutReason: `Nobody approved this within ${seconds} s, so it was not carried out (${message}).`,
    allowedDecisions: ["allow-once", "deny"],
  };
}

/** Files that OpenClaw puts into the prompt before a run. The forwarder keys their hashes: a short file could be guessed. */
function files(list) {
  return list.map(({ name, path, missing, content }) => ({ name, path, ...(missing || content === undefined ? { missing: true } : digest(content)) }));
}

const NEVER = [
  "config", "cfg", "deps", "getCron", "dispatcher", "abortSignal", "bootstrapFiles", "sessionEntry", "previousSessionEntry", "pluginConfig",
];

/** ctx and gateway events carry live objects and the whole configuration: never on the record. */
function plain(object) {
  if (!object || typeof object !== "object") return object ?? {};
  const rest = { ...object };
  for (const name of NEVER) delete rest[name];
  if (rest.context && typeof rest.context === "object") rest.context = plain(rest.context);
  return rest;
}

/** One record as a JSON line without its number; at most MAX_RECORD bytes whatever the event holds. */
export function record(hook, event, ctx) {
  const head = { rid: randomUUID(), hook, at: new Date().toISOString() };
  const small = { ...plain(event), ...SLIM[hook]?.(event ?? {}) };
  for (const limit of [Infinity, 65536, 16384, 4096, 1024, 256]) {
    const line = encode({ ...head, event: small, ctx: plain(ctx) }, limit);
    if (Buffer.byteLength(line) <= MAX_RECORD) return line;
  }
  // Not long strings but very many values: its beginning as text, and how much there was.
  const whole = encode(small);
  const { runId, toolCallId, toolName, sessionKey } = event ?? {};
  return encode({
    ...head,
    event: { runId, toolCallId, toolName, sessionKey, cut: { bytes: Buffer.byteLength(whole), text: cut(whole, 32768) } },
    ctx: plain(ctx),
  }, 65536);
}
