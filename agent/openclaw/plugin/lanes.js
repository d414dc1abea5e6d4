// The two lanes to the forwarder's unix socket. One JSON line per record; the forwarder answers {"ack":n} once it
// has accepted the record, {"ack":n,"ok":false,"error":"…"} when it refuses it ("retry":false: it will never accept
// this one), {"ack":null,"ok":false,"error":"…"} when it refuses the connection. Every wait is bounded.
import net from "node:net";
import { setTimeout as wait } from "node:timers/promises";

const MAX_WAITING = 1024; // records whose answer is not there yet; a gateway has a few actions at once
const AWAY_MS = 300;
const HELD_MS = 5; // that a record waits for one to go with
const MAX_ANSWER = 64 * 1024; // an answer is a few bytes; more than this is not our forwarder

/** The forwarder answered and said no; trying the same record again at once is pointless. */
export class Refused extends Error {
  /** `answer`: the forwarder's. `approve`: it may run once a person said yes to `action`, which `rule` holds up. */
  constructor(answer) {
    super(String(answer.error ?? "refused"));
    this.name = "Refused"; // the lanes outlive a reload of the plugin, and with them the class of an older module
    this.retry = answer.retry !== false;
    this.approve = answer.approve === true;
    this.rule = String(answer.denied ?? "");
    this.action = String(answer.action ?? "");
    this.severity = answer.severity;
  }
}

/** One connection, made on demand, with the records that wait for their answer. */
class Connection {
  #path;
  #socket = null;
  #connecting = null;
  #waiting = new Map();
  #buffer = "";
  #opening = 0; // records that wait for the connection
  #held = ""; // lines that go with the next one
  #release = null;
  #n = 0;

  constructor(path) {
    this.#path = path;
  }

  get connected() {
    return this.#socket !== null;
  }

  /**
   * Resolves when the forwarder accepted `line` (a JSON object without "n"); rejects at `deadline` (ms epoch). `gate`: an
   * action waits. `lazy`: it may leave with the next one, HELD_MS later at most; each write wakes the forwarder up.
   */
  exchange(line, deadline, { gate = false, lazy = false } = {}) {
    if (this.#waiting.size >= MAX_WAITING) return Promise.reject(new Error(`${MAX_WAITING} records wait for their answer already`));
    // At once where it can be: the forwarder is then at it while the host goes on with what it is about.
    if (this.#socket && !this.#opening) return this.#send(line, deadline, gate, lazy);
    this.#opening++; // all of them wait for one promise: who came before is before
    const opened = (then) => (result) => {
      if (--this.#opening === 0) this.#connecting = null;
      return then(result);
    };
    return this.#open(deadline).then(opened(() => this.#send(line, deadline, gate, lazy)), opened((error) => Promise.reject(error)));
  }

  #send(line, deadline, gate, lazy) {
    if (!this.#socket) return Promise.reject(new Error("connection closed by the forwarder"));
    const n = ++this.#n;
    return new Promise((resolve, reject) => {
      const late = () => this.#fail(new Error("no answer in time"));
      const timer = setTimeout(late, Math.max(1, deadline - Date.now()));
      this.#waiting.set(n, {
        resolve: () => (clearTimeout(timer), resolve()),
        reject: (error) => (clearTimeout(timer), reject(error)),
      });
      this.#held += `{"n":${n},${gate ? '"gate":true,' : ""}${line.slice(1)}\n`;
      if (lazy) this.#release ??= setTimeout(() => this.#write(), HELD_MS);
      else this.#write();
    });
  }

  #write() {
    clearTimeout(this.#release);
    this.#release = null;
    const lines = this.#held;
    this.#held = "";
    if (lines) this.#socket.write(lines);
  }

  #open(deadline) {
    this.#connecting ??= new Promise((resolve, reject) => {
      const socket = net.createConnection(this.#path);
      const late = () => socket.destroy(new Error("connect timed out"));
      const timer = setTimeout(late, Math.max(1, deadline - Date.now()));
      const lost = (error) => {
        clearTimeout(timer);
        if (this.#socket === socket) this.#fail(error);
        reject(error);
      };
      socket.once("connect", () => {
        clearTimeout(timer);
        socket.unref();
        socket.setEncoding("utf8");
        this.#socket = socket;
        resolve();
      });
      socket.on("data", (text) => this.#read(text));
      socket.on("error", lost);
      socket.on("close", () => lost(new Error("connection closed by the forwarder")));
    });
    return this.#connecting;
  }

  // After one missing answer nothing later on this connection can be trusted to be in order: start anew.
  #fail(error) {
    const socket = this.#socket;
    this.#socket = null;
    this.#buffer = this.#held = "";
    socket?.destroy();
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const record of waiting) record.reject(error);
  }

  #read(text) {
    this.#buffer += text;
    if (this.#buffer.length > MAX_ANSWER) return this.#fail(new Error("answer without end"));
    let end;
    while ((end = this.#buffer.indexOf("\n")) >= 0) {
      const line = this.#buffer.slice(0, end);
      this.#buffer = this.#buffer.slice(end + 1);
      let answer;
      try {
        answer = JSON.parse(line);
      } catch {
        return this.#fail(new Error("answer is not JSON"));
      }
      if (answer?.ack === null && answer.ok === false) return this.#fail(new Error(String(answer.error ?? "refused")));
      const record = this.#waiting.get(answer?.ack);
      if (!record) continue;
      this.#waiting.delete(answer.ack);
      if (answer.ok === false) record.reject(new Refused(answer));
      else record.resolve();
    }
  }
}

/**
 * Records an action waits for. `send` tries until the forwarder accepted, refused, or `timeoutMs` is over. What `before`
 * has under way is on record first: the record follows it on its connection, where there is one.
 */
export class GateLane {
  #connection;
  accepted = 0;
  failed = 0;

  constructor(path) {
    this.path = path;
    this.#connection = new Connection(path);
  }

  get connected() {
    return this.#connection.connected;
  }

  async send(line, timeoutMs, before) {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      try {
        await (before?.pipeline ?? this.#connection).exchange(line, deadline, { gate: true });
        this.accepted++;
        return;
      } catch (error) {
        // A forwarder that restarts is away for a moment: the record id stays, so a second copy is recognised.
        if (error instanceof Refused || Date.now() + 100 >= deadline) {
          if (error.approve) this.accepted++;
          else this.failed++;
          throw new Error(`${this.path}: ${error.message}`, { cause: error });
        }
        await wait(100);
      }
    }
  }
}

/**
 * Records that nobody waits for: in order, bounded in number and bytes, retried until accepted.
 * What does not fit is counted by hook and told in its place by a `dropped` record (`makeDropped(counts)`).
 */
export class BulkLane {
  #connection;
  #queue = [];
  #dropped = {};
  #sent = 0; // of the queue's head: their answers are not there yet
  #round = 0; // ends with an answer that is missing or a no
  #heard = Promise.resolve();
  #pausing = false;
  #pause = 0;
  #flushing = [];
  accepted = 0;
  dropped = 0;
  bytes = 0;

  constructor(path, options) {
    this.#connection = new Connection(path);
    Object.assign(this, {
      timeoutMs: 5000, // for an answer
      batch: 64, // records under way
      maxRecords: 5000,
      maxBytes: 16 * 1024 * 1024,
      maxRefusals: 120, // of one record; about ten minutes
      lazy: new Set(), // hooks whose records may wait a moment for the next one
      pause: [250, 5000], // ms before the next try: the first, and the longest
    }, options);
    this.#pause = this.pause[0];
  }

  get connected() {
    return this.#connection.connected;
  }

  get queued() {
    return this.#queue.length;
  }

  /** The connection on which all that is queued is in flight; null when nothing is, or not all of it. */
  get pipeline() {
    return this.#sent && this.#sent === this.#queue.length && this.connected ? this.#connection : null;
  }

  push(hook, line) {
    if (this.#queue.length >= this.maxRecords || this.bytes + line.length > this.maxBytes) return this.#drop(hook);
    this.#tellDropped();
    this.#append(hook, line);
    this.#pump();
  }

  /** Waits until everything that is queued now is accepted, at most `ms`; a forwarder that is away is not waited for that long. */
  async flush(ms) {
    if (!this.#queue.length) return;
    const waiter = { left: this.#queue.length };
    const done = new Promise((resolve) => (waiter.resolve = resolve));
    this.#flushing.push(waiter);
    await Promise.race([done, wait(this.connected ? ms : Math.min(ms, AWAY_MS), undefined, { ref: false })]);
    this.#flushing = this.#flushing.filter((one) => one !== waiter);
  }

  #append(hook, line) {
    this.#queue.push({ hook, line, refusals: 0 });
    this.bytes += line.length;
  }

  #drop(hook) {
    this.dropped++;
    this.#dropped[hook] = (this.#dropped[hook] ?? 0) + 1;
  }

  #tellDropped() {
    if (!Object.keys(this.#dropped).length) return;
    this.#append("dropped", this.makeDropped(this.#dropped));
    this.#dropped = {};
  }

  #shift() {
    const record = this.#queue.shift();
    this.bytes -= record.line.length;
    for (const waiter of this.#flushing) if (--waiter.left === 0) waiter.resolve();
    return record;
  }

  /** Sends what was not sent yet, so that a record is under way the moment it is pushed; its answer is heard in its turn. */
  #pump() {
    while (!this.#pausing && this.#sent < Math.min(this.#queue.length, this.batch)) {
      const round = this.#round;
      const { hook, line } = this.#queue[this.#sent++];
      const answer = this.#connection.exchange(line, Date.now() + this.timeoutMs, { lazy: this.lazy.has(hook) });
      answer.catch(() => {}); // it is heard below, and may come to nothing before that
      const inTurn = (hear) => (result) => round === this.#round && hear(result); // of an earlier round: it was sent again
      this.#heard = this.#heard.then(() => answer).then(inTurn(() => this.#accept()), inTurn((reason) => this.#refuse(reason)));
    }
  }

  #accept() {
    this.#done();
    this.accepted++;
    this.#pause = this.pause[0];
    this.#next();
  }

  // Only an unbroken run of accepted records leaves the queue, so the order holds; later ones are sent again.
  #refuse(reason) {
    const head = this.#queue[0];
    if (reason instanceof Refused && (!reason.retry || ++head.refusals >= this.maxRefusals)) {
      this.#drop(this.#done().hook);
      return this.#next();
    }
    this.#round++;
    this.#sent = 0;
    this.#pausing = true;
    void wait(this.#pause, undefined, { ref: false }).then(() => { // a one-shot process may end while the forwarder is away
      this.#pausing = false;
      this.#pump();
    });
    this.#pause = Math.min(this.#pause * 2, this.pause[1]);
  }

  #done() {
    this.#sent--;
    return this.#shift();
  }

  #next() {
    if (!this.#queue.length) this.#tellDropped();
    this.#pump();
  }
}
