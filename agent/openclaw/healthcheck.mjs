// The container's health: the gateway is ready, our plugin runs in it, and a record of its gate reaches the forwarder.
import http from "node:http";
import { text } from "node:stream/consumers";

const port = Number(process.env.OPENCLAW_GATEWAY_PORT ?? 18789);

/** GET on the gateway; {status, body}. */
function get(path) {
  return new Promise((resolve, reject) => {
    const request = http.get({ host: "127.0.0.1", port, path, timeout: 5000 }, (response) => {
      text(response).then((body) => resolve({ status: response.statusCode, body }), reject);
    });
    request.on("timeout", () => request.destroy(new Error("no answer in 5 s"))).on("error", reject);
  });
}

async function check() {
  const ready = await get("/readyz");
  if (ready.status !== 200) return `gateway: not ready (HTTP ${ready.status}) ${ready.body.trim().slice(0, 200)}`;
  const { status, body } = await get("/clawtrail/health");
  let health;
  try {
    health = JSON.parse(body);
  } catch {
    // Without the plugin this path is nobody's: the gateway answers with an error or its own page.
  }
  if (typeof health?.plugin !== "string") return `plugin: not loaded in the running gateway (HTTP ${status})`;
  if (!health.ok) return health.failures.join("; ");
  const { plugin, gate, bulk } = health;
  console.log(`gateway ready, plugin ${plugin}, ${gate.accepted} gate records accepted, ${bulk.queued} queued, ${bulk.dropped} dropped`);
}

const failure = await check().catch((error) => `gateway: 127.0.0.1:${port}: ${error.message || error.code}`);
if (failure) {
  console.log(failure);
  process.exit(1);
}
