// One turn of the agent: the message on stdin, the answer on stdout.
//   node /opt/clawtrail/turn.mjs [--session NAME] [--json] [--timeout SECONDS] < message
// Exit code: 0 answered, 1 the gateway refused or failed (its words on stderr), 2 wrong call.
import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import { parseArgs } from "node:util";

function fail(code, message) {
  console.error(`[x] Turn           ${message}`);
  process.exit(code);
}

let options;
try {
  ({ values: options } = parseArgs({
    options: {
      session: { type: "string", default: "main" },
      json: { type: "boolean", default: false },
      timeout: { type: "string", default: "300" },
    },
  }));
} catch (error) {
  fail(2, error.message);
}
if (!/^[\w.-]{1,64}$/.test(options.session)) fail(2, "--session: letters, digits, . _ - only, at most 64");
if (!(Number(options.timeout) > 0)) fail(2, "--timeout: seconds, more than 0");

const message = (await text(process.stdin)).trim();
if (!message) fail(2, "no message on stdin");

const port = process.env.OPENCLAW_GATEWAY_PORT ?? 18789;
try {
  const token = readFileSync("/run/secrets/gateway-token", "utf8").trim();
  const response = await fetch(`http://127.0.0.1:${port}/v1/chat/completions`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${token}`,
      "content-type": "application/json",
      "x-openclaw-session-key": `agent:main:${options.session}`,
    },
    body: JSON.stringify({ model: "openclaw", messages: [{ role: "user", content: message }] }),
    signal: AbortSignal.timeout(Number(options.timeout) * 1000),
  });
  const body = await response.text();
  if (!response.ok) fail(1, `HTTP ${response.status} ${body.trim()}`);
  console.log(options.json ? body.trim() : JSON.parse(body).choices[0].message.content);
} catch (error) {
  fail(1, error.cause?.message ?? error.message);
}
