// Requests to the server that this page came from, and what can go wrong with them.

import { token } from "./token.js";

/** `kind`: "token" (not taken), "away" (can't be reached), "broken" (went away in the middle),
 *  "busy" (may be asked again) or "refused" (asking again does not help). */
export class ServerError extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

const AWAY = "The server can't be reached. It may have been stopped.";
const BROKEN = "The server stopped in the middle of the answer.";

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, {
      cache: "no-store",
      ...options,
      headers: { Authorization: `Bearer ${token()}`, ...options.headers },
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("away", AWAY);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `The server answered with an error (${response.status}).`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Something between the page and the server answered: its words are not for the user.
  }
  const seconds = Number(response.headers.get("Retry-After"));
  switch (response.status) {
    case 401:
      return new ServerError("token", "The server no longer takes this page's token.");
    case 429:
      return new ServerError("busy", `The server is busy with other answers. ${later(seconds)}`);
    case 408:
    case 500:
    case 503:
      return new ServerError("busy", message);
    default:
      return new ServerError("refused", message);
  }
}

function later(seconds) {
  return seconds > 0 ? `Ask again in ${seconds} s.` : "Ask again in a moment.";
}

/** The entries of `/v1/models`. */
export async function models() {
  return (await (await request("/v1/models")).json()).data;
}

/** Yields `{text}` as an answer comes, and last `{finish, own}`: why it ended, and what the
 *  server tells of it. Throws ServerError, and what `signal` makes fetch throw. */
export async function* ask(model, messages, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true }),
    signal,
  });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError("busy", String(chunk.error.message));
      const [choice] = chunk.choices;
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { finish: choice.finish_reason, own: chunk.edgevlm ?? {} };
    }
  } catch (error) {
    if (error instanceof ServerError || signal.aborted) throw error;
    throw new ServerError("broken", BROKEN);
  }
  throw new ServerError("broken", BROKEN);
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}
