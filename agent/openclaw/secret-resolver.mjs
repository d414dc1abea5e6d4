#!/usr/local/bin/node
// OpenClaw's exec secret provider: its request goes to the forwarder as it is, the forwarder's answer to stdout.
// It holds no secret. Without the forwarder's record there is none.
import net from "node:net";
import { text } from "node:stream/consumers";

const request = JSON.parse(await text(process.stdin));
const refuse = (why) => {
  const error = { code: "AUDIT_UNAVAILABLE", message: `clawtrail: ${why} (no record, no secret)` };
  const errors = Object.fromEntries((request.ids ?? []).map((id) => [id, error]));
  console.log(JSON.stringify({ protocolVersion: 1, values: {}, errors }));
  process.exit(0);
};
const socket = net.createConnection("/run/clawtrail/secrets.sock", () => socket.write(`${JSON.stringify(request)}\n`));
socket.setTimeout(4000, () => refuse("the forwarder does not answer"));
socket.on("error", (error) => refuse(error.message));
let answer = "";
socket.on("data", (data) => {
  answer += data;
  if (answer.endsWith("\n")) process.stdout.write(answer, () => process.exit(0));
});
socket.on("close", () => refuse("the forwarder closed the connection"));
