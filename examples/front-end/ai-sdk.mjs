// A client with Vercel's AI SDK.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { jsonSchema, streamText, tool } from "ai";

const look_up = tool({ inputSchema: jsonSchema({ type: "object", properties: { word: { type: "string" } } }) });

/** Stream an answer: its text, its tool calls, and the error that ended it. `onText` receives each piece of the text. */
export async function ask(baseURL, { headers = {}, api = "chat", onText = () => {} } = {}) {
  const provider = (api === "messages" ? createAnthropic : createOpenAI)({ baseURL, headers, apiKey: "none" });
  const kind = { chat: "chat", completions: "completion", responses: "responses", messages: "messages" }[api];
  const found = { text: "", calls: [], finishReason: null, error: null };
  const { fullStream } = streamText({
    model: provider[kind]("gpt-4o-mini"),
    prompt: "Say hello.",
    maxRetries: 0,
    tools: api === "completions" ? undefined : { look_up },
    onError: () => {},
  });
  try {
    for await (const part of fullStream) {
      if (part.type === "text-delta") {
        found.text += part.text;
        onText(part.text);
      }
      if (part.type === "tool-call") found.calls.push({ name: part.toolName, input: part.input });
      if (part.type === "finish") found.finishReason = part.finishReason;
      if (part.type === "error") found.error = part.error;
    }
  } catch (error) {
    found.error = error; // the connection broke
  }
  return found;
}
