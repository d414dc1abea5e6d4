// A small MCP server on standard input and output: one tool, `lookup`.
import { createInterface } from "node:readline";

const answer = (id, result) => process.stdout.write(`${JSON.stringify({ jsonrpc: "2.0", id, result })}\n`);
const word = { type: "object", properties: { word: { type: "string" } }, required: ["word"] };

createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, method, params } = JSON.parse(line);
  if (id === undefined) return; // a notification
  if (method === "initialize") {
    answer(id, { protocolVersion: params.protocolVersion, capabilities: { tools: {} }, serverInfo: { name: "words", version: "3.2.1" } });
  } else if (method === "tools/list") answer(id, { tools: [{ name: "lookup", description: "Looks a word up.", inputSchema: word }] });
  else if (method === "tools/call") answer(id, { content: [{ type: "text", text: `meaning of ${params.arguments.word}` }] });
  else answer(id, {});
});
