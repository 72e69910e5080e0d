// Serves the files that `deltatap export --fixtures DIR` writes, each as a separate endpoint: /NAME/v1/…
// In a test: `const server = await serve("fixtures", { speed: 0 })`. By hand: `node fixtures.mjs fixtures 8095`.
import { readFile, readdir } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const CORS = { "access-control-allow-origin": "*", "access-control-allow-headers": "*", "access-control-allow-methods": "*" };

/** The head of a response, and its events: each with its time in ms, and the text to write. */
export function parse(text) {
  const [first, ...blocks] = text.split(/\n\n(?=: \d)/);
  const head = JSON.parse(first.trim().replace(/^: deltatap /, ""));
  const events = blocks.map((block) => {
    const [, ms, event] = /^: ([\d.]+)\n([^]*)$/.exec(block);
    return { ms: Number(ms), text: event.trimEnd() + "\n\n" };
  });
  return { head, events };
}

/** Serve a folder of fixtures, and the page of this example at /. `speed: 0` does not wait. */
export async function serve(folder, { port = 0, speed = 1 } = {}) {
  const fixtures = new Map();
  for (const file of await readdir(join(HERE, folder))) {
    if (file.endsWith(".sse")) fixtures.set(file.split(".").slice(0, -2).join("."), parse(await readFile(join(HERE, folder, file), "utf8")));
  }
  const server = createServer(async (request, response) => {
    if (request.method === "OPTIONS") return response.writeHead(204, CORS).end();
    const name = decodeURIComponent(new URL(request.url, "http://localhost").pathname.split("/")[1]);
    if (!name) return response.writeHead(200, { "content-type": "text/html" }).end(await readFile(join(HERE, "index.html")));
    const fixture = fixtures.get(name);
    if (!fixture) return response.writeHead(404, CORS).end(JSON.stringify({ error: { message: `no fixture ${name}` } }));
    await send(fixture, response, speed);
  });
  await new Promise((listening) => server.listen(port, "127.0.0.1", listening));
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => new Promise((closed) => { server.close(closed); server.closeAllConnections(); }) };
}

async function send({ head, events }, response, speed) {
  const started = performance.now();
  const until = (ms) => new Promise((due) => setTimeout(due, speed ? Math.max(0, started + ms / speed - performance.now()) : 0));
  if (!head.status) return response.destroy();
  await until(head.begin_ms);
  response.writeHead(head.status, { ...head.headers, ...CORS });
  for (const { ms, text } of events) {
    await until(ms);
    response.write(head.status === 200 ? text : text.replace(/^data: /, "").trim());
  }
  await until(head.end_ms);
  if (head.end === "cut") return response.socket.end();
  if (head.end !== "stall") response.end();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await serve(process.argv[2] ?? "fixtures", { port: Number(process.argv[3] ?? 0) });
  console.log(`page: ${url}/`);
}
