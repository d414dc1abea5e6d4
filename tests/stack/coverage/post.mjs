// POST to the gateway with its token: node post.mjs PATH SESSION BODY. Prints the status and the answer.
import { readFileSync } from "node:fs";

const [path, session, body] = process.argv.slice(2);
const response = await fetch(`http://127.0.0.1:18789${path}`, {
  method: "POST",
  headers: {
    authorization: `Bearer ${readFileSync("/run/secrets/gateway-token", "utf8").trim()}`,
    "content-type": "application/json",
    "x-openclaw-session-key": session,
  },
  body,
});
console.log(response.status, await response.text());
