// ask.mjs SESSION owner|guest < message: one turn of the agent, as its owner or as someone who may only write to it.
import { text } from "node:stream/consumers";

const [, , session, who] = process.argv;
const response = await fetch("http://127.0.0.1:18789/v1/chat/completions", {
  method: "POST",
  headers: {
    "content-type": "application/json",
    "x-openclaw-session-key": `agent:main:${session}`,
    ...(who === "guest" && { "x-openclaw-scopes": "operator.write" }),
  },
  body: JSON.stringify({ model: "openclaw", messages: [{ role: "user", content: await text(process.stdin) }] }),
  signal: AbortSignal.timeout(90_000),
});
const body = await response.text();
if (!response.ok) throw new Error(`HTTP ${response.status} ${body}`);
console.log(JSON.parse(body).choices[0].message.content);
