// The clients run against the fixtures: `npm test`.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import * as aiSdk from "./ai-sdk.mjs";
import { parse, serve } from "./fixtures.mjs";
import * as langchain from "./langchain.mjs";

let server;
before(async () => { server = await serve("fixtures", { speed: 0 }); });
after(() => server.close());

async function captured(name) {
  const { events } = parse(await readFile(new URL(`fixtures/${name}.chat.sse`, import.meta.url), "utf8"));
  const chunks = events.filter(({ text }) => text.startsWith("data: {")).map(({ text }) => JSON.parse(text.slice(6)));
  return chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
}

for (const [client, { ask }] of Object.entries({ "AI SDK": aiSdk, LangChain: langchain })) {
  test(`${client} streams a text`, async () => {
    const found = await ask(`${server.url}/hello/v1`);
    assert.equal(found.text, await captured("hello"));
    assert.equal(found.finishReason, "stop");
    assert.equal(found.error, null);
  });

  test(`${client} receives a tool call`, async () => {
    const { calls } = await ask(`${server.url}/tools/v1`);
    assert.equal(calls[0].name, "look_up");
    assert.equal(typeof calls[0].input.word, "string");
  });

  test(`${client} keeps the text of a stream that breaks off`, async () => {
    const found = await ask(`${server.url}/cut/v1`);
    assert.equal(found.text, await captured("cut"));
    assert.ok(found.error);
  });

  test(`${client} reports a rate limit`, async () => {
    const found = await ask(`${server.url}/rate-limited/v1`);
    assert.equal(found.error.statusCode ?? found.error.status, 429);
  });
}

test("an event has its time, and the response its head", async () => {
  const { head, events } = parse(await readFile(new URL("fixtures/hello.chat.sse", import.meta.url), "utf8"));
  assert.deepEqual([head.version, head.status, head.end], [1, 200, "close"]);
  assert.ok(events.every(({ ms }, at) => !at || ms >= events[at - 1].ms));
});
