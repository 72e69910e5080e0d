// A client with LangChain.
import { ChatAnthropic } from "@langchain/anthropic";
import { ChatOpenAI, OpenAI } from "@langchain/openai";

/** The model of an API, for example `chat`. Legacy completions need a model with this name. */
function modelOf(api, baseURL, defaultHeaders) {
  const options = { model: "gpt-4o-mini", apiKey: "none", maxRetries: 0 };
  if (api === "messages") {
    return new ChatAnthropic({ ...options, clientOptions: { baseURL: baseURL.replace(/\/v1$/, ""), defaultHeaders } });
  }
  const configuration = { baseURL, defaultHeaders };
  if (api === "completions") return new OpenAI({ ...options, model: "gpt-3.5-turbo-instruct", configuration });
  return new ChatOpenAI({ ...options, configuration, useResponsesApi: api === "responses" });
}

/** Stream an answer: its text, its tool calls, and the error that ended it. `onText` receives each piece of the text. */
export async function ask(baseURL, { headers = {}, api = "chat", onText = () => {} } = {}) {
  const found = { text: "", calls: [], finishReason: null, error: null };
  let whole;
  const handleLLMEnd = ({ generations }) => { found.finishReason = generations[0][0].generationInfo?.finishReason ?? null; };
  try {
    for await (const chunk of await modelOf(api, baseURL, headers).stream("Say hello.", { callbacks: [{ handleLLMEnd }] })) {
      const { content = chunk } = chunk; // legacy completions stream plain texts
      const text = typeof content === "string" ? content : content.map((part) => part.text ?? "").join("");
      found.text += text;
      if (text) onText(text);
      whole = whole && typeof chunk !== "string" ? whole.concat(chunk) : chunk;
    }
  } catch (error) {
    found.error = error;
  }
  const { tool_calls: calls = [], response_metadata: end = {}, additional_kwargs: more = {} } = whole ?? {};
  found.calls = calls.map((call) => ({ name: call.name, input: call.args }));
  found.finishReason ??= end.finish_reason ?? end.status ?? more.stop_reason ?? null;
  return found;
}
