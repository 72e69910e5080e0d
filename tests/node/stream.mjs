// Streams one completion with OpenAI's own client, and prints what came and when: BASE_URL, and the request's body as JSON.
import OpenAI from "openai";

const [baseURL, body] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const found = { text: "", ms: [], finish_reason: null, usage: null, error: null };
const begun = performance.now();
try {
  for await (const chunk of await client.chat.completions.create(JSON.parse(body))) {
    const choice = chunk.choices[0];
    if (choice?.delta?.content) {
      found.ms.push(performance.now() - begun);
      found.text += choice.delta.content;
    }
    found.finish_reason = choice?.finish_reason ?? found.finish_reason;
    found.usage = chunk.usage ?? found.usage;
  }
} catch (error) {
  found.error = error.constructor.name;
}
console.log(JSON.stringify(found));
