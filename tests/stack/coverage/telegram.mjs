// Telegram's Bot API as far as OpenClaw's channel asks for it. The tests play the people who write to the bot:
// POST /say {"from", "text"?, "file"?, "button"?} puts an update before the bot, GET /sent tells what the bot did since the start.
import { createServer } from "node:http";

const BOT = { id: 4242, is_bot: true, first_name: "Claw", username: "claw_bot", can_join_groups: true, can_read_all_group_messages: false, supports_inline_queries: false };
const PICTURE = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64");
const sent = [];
const updates = [];
let waiting = null;
let n = 1;

const now = () => Math.floor(Date.now() / 1000);
const chat = (id) => ({ id: Number(id), type: "private", first_name: `P${id}` });
const message = (id, more) => ({ message_id: ++n, date: now(), chat: chat(id), ...more });

function put(update) {
  updates.push({ update_id: ++n, ...update });
  waiting?.();
}

async function poll({ offset, timeout }) {
  while (updates.length && offset !== undefined && updates[0].update_id < offset) updates.shift();
  if (!updates.length) {
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.min(timeout ?? 0, 20) * 1000);
      waiting = () => (clearTimeout(timer), resolve());
    });
    waiting = null;
  }
  return updates.slice(0, 100);
}

const METHODS = {
  getMe: () => BOT,
  getUpdates: poll,
  getWebhookInfo: () => ({ url: "", has_custom_certificate: false, pending_update_count: 0 }),
  getChat: ({ chat_id }) => chat(chat_id),
  getFile: ({ file_id }) => ({ file_id, file_unique_id: file_id, file_size: PICTURE.length, file_path: `photos/${file_id}.png` }),
};

async function answer(method, params) {
  if (METHODS[method]) return METHODS[method](params);
  sent.push({ method, params });
  if (method.startsWith("send") && params.chat_id !== undefined) {
    if (String(params.text ?? "").includes("cannot be delivered")) throw Object.assign(new Error("Forbidden: bot was blocked by the user"), { code: 403 });
    return message(params.chat_id, { from: BOT, text: params.text });
  }
  if (method.startsWith("edit")) return message(params.chat_id, { from: BOT, text: params.text });
  return true;
}

function said({ from, text, file, button }) {
  const who = { id: Number(from), is_bot: false, first_name: `P${from}`, username: `p${from}` };
  if (button) {
    return put({ callback_query: { id: String(++n), from: who, chat_instance: "1", data: button.data, message: message(from, { from: BOT, message_id: button.message }) } });
  }
  const photo = file && { photo: [{ file_id: file, file_unique_id: file, width: 1, height: 1, file_size: PICTURE.length }], caption: text };
  put({ message: message(from, { from: who, ...(photo ?? { text }) }) });
}

createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString();
  const path = request.url.split("?")[0];
  const type = request.headers["content-type"] ?? "";
  const params = type.includes("json") && body ? JSON.parse(body) : Object.fromEntries(new URLSearchParams(type.includes("urlencoded") ? body : request.url.split("?")[1] ?? ""));
  if (path.startsWith("/file/")) return response.end(PICTURE);
  let status = 200;
  let told;
  try {
    if (path === "/say") told = said(params) ?? {};
    else if (path === "/sent") told = sent;
    else told = { ok: true, result: await answer(path.split("/").at(-1), params) };
  } catch (error) {
    status = error.code ?? 500;
    told = { ok: false, error_code: status, description: error.message };
  }
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(told));
}).listen(8081);
