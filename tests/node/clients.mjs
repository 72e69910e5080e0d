// Asks a server with JavaScript clients, many times in one process. Reads batches of cases as JSON from the standard
// input: [[{client, api, url, headers}, …], …]. Runs the cases of a batch at once, and the batches one after another.
// Prints, for each batch and case, {text, ms, finish, error}: ms has the time of each piece of the text.
import { text } from "node:stream/consumers";

import OpenAI from "openai";

import * as aiSdk from "../../examples/front-end/ai-sdk.mjs";
import * as langchain from "../../examples/front-end/langchain.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

/** OpenAI's own client. It has the same result as the clients of the example. */
async function openai(baseURL, { headers, api, onText }) {
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, defaultHeaders: headers });
  const found = { text: "", finishReason: null, error: null };
  const add = (piece) => {
    if (!piece) return;
    found.text += piece;
    onText(piece);
  };
  try {
    if (api === "responses") {
      for await (const event of await client.responses.create({ model: "m", input: "x", stream: true })) {
        if (event.type === "response.output_text.delta") add(event.delta);
        if (event.response) {
          found.finishReason = event.response.incomplete_details?.reason ?? event.response.status;
          found.error = event.response.error;
        }
      }
    } else {
      const body = api === "chat" ? { messages: [{ role: "user", content: "x" }] } : { prompt: "x" };
      const completions = api === "chat" ? client.chat.completions : client.completions;
      for await (const { choices } of await completions.create({ model: "m", stream: true, ...body })) {
        for (const choice of choices) {
          add(api === "chat" ? choice.delta.content : choice.text);
          found.finishReason = choice.finish_reason ?? found.finishReason;
        }
      }
    }
  } catch (error) {
    found.error = error;
  }
  return found;
}

/** What a client shows of an error. */
function shown(error) {
  const outer = error.data?.error ?? error.error?.error ?? error.error ?? error;
  const headers = error.responseHeaders ?? error.headers ?? {};
  return {
    message: String(error.message ?? outer.message ?? error),
    status: error.statusCode ?? error.status ?? null,
    type: outer.type ?? null,
    code: outer.code ?? null,
    retry_after: (headers.get?.("retry-after") ?? headers["retry-after"]) || null,
  };
}

const clients = { openai, "ai-sdk": aiSdk.ask, langchain: langchain.ask };

async function run({ client, api, url, headers }) {
  const started = performance.now();
  const ms = [];
  const { text, finishReason, error } = await clients[client](url, { headers, api, onText: () => ms.push(performance.now() - started) });
  return { text, ms, finish: finishReason, error: error && shown(error) };
}

const found = [];
for (const batch of JSON.parse(await text(process.stdin))) found.push(await Promise.all(batch.map(run)));
console.log(JSON.stringify(found));
