// A client with Vercel's AI SDK.
import { createOpenAI } from "@ai-sdk/openai";
import { jsonSchema, streamText, tool } from "ai";

/** Stream an answer: its text, its tool calls, and the error that ended it. */
export async function ask(baseURL, { headers = {}, api = "chat" } = {}) {
  const openai = createOpenAI({ baseURL, headers, apiKey: "none" });
  const found = { text: "", calls: [], finishReason: null, error: null };
  const { fullStream } = streamText({
    model: openai[api]("gpt-4o-mini"), // chat or responses
    prompt: "Say hello.",
    maxRetries: 0,
    tools: { look_up: tool({ inputSchema: jsonSchema({ type: "object", properties: { word: { type: "string" } } }) }) },
    onError: () => {},
  });
  try {
    for await (const part of fullStream) {
      if (part.type === "text-delta") found.text += part.text;
      if (part.type === "tool-call") found.calls.push({ name: part.toolName, input: part.input });
      if (part.type === "finish") found.finishReason = part.finishReason;
      if (part.type === "error") found.error = part.error;
    }
  } catch (error) {
    found.error = error; // the connection broke
  }
  return found;
}
