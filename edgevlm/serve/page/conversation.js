// A conversation: what was asked and answered, and what of it the server is sent.

export const DEFAULT_QUESTION = "Describe this image.";

/** One question with its answer. `state`: "waiting", "streaming", "done", "stopped", "failed". */
export class Exchange {
  constructor(text, pictures) {
    this.text = text || DEFAULT_QUESTION;
    this.pictures = pictures;
    this.begin();
  }

  begin() {
    this.state = "waiting";
    this.answer = "";
    this.finish = null;
    this.own = null;
    this.error = null;
  }

  get underWay() {
    return this.state === "waiting" || this.state === "streaming";
  }
}

/** The messages up to the last exchange, whose answer is wanted. Where a question got none, it is
 *  left out; its pictures go with the next, unless it was them that the server refused. */
export function messagesOf(exchanges) {
  const messages = [];
  let kept = [];
  for (const exchange of exchanges) {
    const last = exchange === exchanges.at(-1);
    if (!last && !exchange.answer) {
      if (exchange.error?.kind !== "refused") kept.push(...exchange.pictures);
      continue;
    }
    messages.push({ role: "user", content: content(exchange.text, [...kept, ...exchange.pictures]) });
    kept = [];
    if (!last) messages.push({ role: "assistant", content: exchange.answer });
  }
  return messages;
}

function content(text, pictures) {
  if (!pictures.length) return text;
  const parts = pictures.map(({ uuid, url }) => ({ type: "image_url", image_url: { url }, uuid }));
  return [...parts, { type: "text", text }];
}
