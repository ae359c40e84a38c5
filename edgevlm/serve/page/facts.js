// What the server tells of an answer, in words: one quiet line, and more for who wants it.

const LOOPBACK = new Set(["127.0.0.1", "localhost", "[::1]"]);
const HERE = LOOPBACK.has(location.hostname) ? "this device" : location.hostname;

/** The items of the line below an answer. */
export function facts(own) {
  const { timings = {}, adapter = [] } = own;
  const sure = typeof own.confidence === "number" ? `${Math.round(own.confidence * 100)}% sure` : "";
  return [
    place(own.route),
    sent(own.route),
    sure,
    timings.ttft_ms > 0 ? `first token ${duration(timings.ttft_ms)}` : "",
    timings.decode_tps > 0 ? `${rounded(timings.decode_tps)} tokens/s` : "",
    adapters(adapter),
  ].filter(Boolean);
}

/** The rows, name and value, that the line opens to. */
export function details(own) {
  const { runtime = {}, usage = {}, timings = {}, route } = own;
  const pictures = usage.image_tokens ? `, ${usage.image_tokens} of them of pictures` : "";
  const known = usage.cached_tokens ? `, ${usage.cached_tokens} known from before` : "";
  const cost = route?.cost_usd;
  return [
    ["Why there", route?.reason],
    ["Cost", typeof cost === "number" ? `$${cost.toFixed(4)}` : ""],
    ["Model", [own.model, own.quantization].filter(Boolean).join(", ")],
    ["Runtime", [...new Set([runtime.vision, runtime.language])].filter(Boolean).join(" and ")],
    ["Read", usage.prompt_tokens ? `${usage.prompt_tokens} tokens${pictures}${known}` : ""],
    ["Written", usage.completion_tokens ? `${usage.completion_tokens} tokens` : ""],
    ["Pictures", timings.vision_ms >= 1 ? `encoded in ${duration(timings.vision_ms)}` : ""],
    ["Waited", own.queue_ms >= 1 ? `${duration(own.queue_ms)} for its turn` : ""],
    ["In all", timings.total_ms > 0 ? duration(timings.total_ms) : ""],
  ].filter(([, value]) => value);
}

function place(route) {
  switch (route?.decision) {
    case "local":
      return `Answered on ${HERE}`;
    case "cloud":
      return "Answered in the cloud";
    case "cache":
      return "An answer from before, kept";
    default:
      return "";
  }
}

function sent(route) {
  if (!route?.sent) return "";
  const parts = [
    [route.sent.text_bytes, "of text"],
    [route.sent.image_bytes, "of pictures"],
    [route.sent.embedding_bytes, "of encoded pictures"],
  ].filter(([bytes]) => bytes > 0);
  if (!parts.length) return `nothing left ${HERE}`;
  return `${parts.map(([bytes, what]) => `${size(bytes)} ${what}`).join(" and ")} left ${HERE}`;
}

function adapters(active) {
  const names = active.map(({ name, scale }) => (scale === 1 ? name : `${name}:${scale}`));
  return names.length ? `adapter ${names.join(", ")}` : "";
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)}\u00a0ms` : `${(ms / 1000).toFixed(1)}\u00a0s`;
}

function rounded(number) {
  return number < 10 ? number.toFixed(1) : Math.round(number);
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${rounded(bytes / 1e3)} kB` : `${rounded(bytes / 1e6)} MB`;
}
