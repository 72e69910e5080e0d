// A client with LangChain.
import { ChatOpenAI } from "@langchain/openai";

/** Stream an answer: its text, its tool calls, and the error that ended it. */
export async function ask(baseURL, { headers = {}, api = "chat" } = {}) {
  const configuration = { baseURL, defaultHeaders: headers };
  const model = new ChatOpenAI({
    model: "gpt-4o-mini", apiKey: "none", maxRetries: 0, configuration, useResponsesApi: api === "responses",
  });
  const found = { text: "", calls: [], finishReason: null, error: null };
  let whole;
  try {
    for await (const chunk of await model.stream("Say hello.")) {
      found.text += typeof chunk.content === "string" ? chunk.content : chunk.content.map((part) => part.text ?? "").join("");
      whole = whole ? whole.concat(chunk) : chunk;
    }
  } catch (error) {
    found.error = error;
  }
  found.calls = (whole?.tool_calls ?? []).map((call) => ({ name: call.name, input: call.args }));
  found.finishReason = whole?.response_metadata.finish_reason ?? null;
  return found;
}
