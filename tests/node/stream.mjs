// Streams one completion with OpenAI's JavaScript client and prints its text and times as JSON.
// Arguments: the base URL, and the request body as JSON.
import OpenAI from "openai";

const [baseURL, body] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const found = { text: "", ms: [], finish_reason: null, usage: null, error: null };
const started = performance.now();
try {
  for await (const chunk of await client.chat.completions.create(JSON.parse(body))) {
    const choice = chunk.choices[0];
    if (choice?.delta?.content) {
      found.ms.push(performance.now() - started);
      found.text += choice.delta.content;
    }
    found.finish_reason = choice?.finish_reason ?? found.finish_reason;
    found.usage = chunk.usage ?? found.usage;
  }
} catch (error) {
  found.error = error.constructor.name;
}
console.log(JSON.stringify(found));
