// What OpenClaw writes into its own database and reports by no hook: who answered an approval, and every change of its
// configuration. Read only, a few rows at a time; a database that cannot be read is told in the heartbeat.
import path from "node:path";

const AT_ONCE = 50; // rows of one reading; the others come with the next

const APPROVALS = `SELECT approval_id, kind, status, presentation_json, source_agent_id, source_session_key, source_run_id,
  source_tool_call_id, source_tool_name, created_at_ms, expires_at_ms, updated_at_ms, decision, terminal_reason,
  resolved_at_ms, resolver_kind, resolver_id
  FROM operator_approvals WHERE updated_at_ms > ? ORDER BY updated_at_ms LIMIT ${AT_ONCE}`;
const CHANGES = `SELECT sequence, created_at, payload_json FROM diagnostic_events
  WHERE scope = 'config-audit' AND sequence > ? AND created_at >= ? ORDER BY sequence LIMIT ${AT_ONCE}`;

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return { unreadable: String(text).slice(0, 500) };
  }
}

export class GatewayState {
  #file;
  #open;
  #database = null;
  #since; // what was written before this gateway started was told by the one before it
  #approved;
  #changed = 0;
  error = "";

  /** `open(file)` gives something with node:sqlite's `prepare(sql).all(…)`. */
  constructor(folder = process.env.OPENCLAW_STATE_DIR ?? "", open = openDatabase) {
    this.#file = path.join(folder, "state", "openclaw.sqlite");
    this.#open = open;
    this.#since = Date.now() - process.uptime() * 1000;
    this.#approved = this.#since;
  }

  /** Approvals that are new or were answered since the last call. */
  async approvals() {
    const rows = await this.#read(APPROVALS, this.#approved);
    if (rows.length) this.#approved = rows.at(-1).updated_at_ms;
    return rows.map(({ presentation_json, ...row }) => ({ ...row, presentation: parsed(presentation_json) }));
  }

  /** Changes of the configuration since the last call, as OpenClaw's config audit has them. */
  async changes() {
    const rows = await this.#read(CHANGES, this.#changed, this.#since);
    if (rows.length) this.#changed = rows.at(-1).sequence;
    return rows.map(({ payload_json }) => parsed(payload_json));
  }

  async #read(sql, ...values) {
    try {
      this.#database ??= await this.#open(this.#file);
      const rows = this.#database.prepare(sql).all(...values);
      this.error = "";
      return rows;
    } catch (error) {
      this.error = String(error.message).slice(0, 200);
      this.close();
      return [];
    }
  }

  close() {
    try {
      this.#database?.close?.();
    } catch {
      // It is gone either way.
    }
    this.#database = null;
  }
}

async function openDatabase(file) {
  const { DatabaseSync } = await import("node:sqlite");
  return new DatabaseSync(file, { readOnly: true, timeout: 100 });
}
