// get.mjs [-d DATA] URL: the body on stdout. The agent's image has no curl.
const [, , ...rest] = process.argv;
const body = rest[0] === "-d" ? rest[1] : undefined;
const response = await fetch(rest.at(-1), { method: body === undefined ? "GET" : "POST", body, signal: AbortSignal.timeout(5000) });
process.stdout.write(await response.text());
