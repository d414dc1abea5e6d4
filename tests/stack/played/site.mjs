// site.mjs PORT FOLDER: the rest of the world, on every address of the loopback. GET gives a page of the folder, POST is always welcome.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { basename, join } from "node:path";

const [, , port, folder] = process.argv;
createServer((request, response) => {
  let page = "nothing here";
  try {
    page = readFileSync(join(folder, basename(new URL(request.url, "http://any").pathname)), "utf8");
  } catch {
    // A page that there is not is answered all the same.
  }
  request.resume().on("end", () => response.setHeader("content-type", "text/plain; charset=utf-8").end(page));
}).listen(Number(port), "0.0.0.0");
