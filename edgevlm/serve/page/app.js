// The page: a conversation about pictures with the model that this server serves.

import { ServerError, ask } from "./api.js";
import { Composer } from "./composer.js";
import { Exchange, messagesOf } from "./conversation.js";
import { listModels, rememberModel } from "./models.js";
import { LOGIN, REFUSED, dropToken, keepToken, token, tokenOfAddress } from "./token.js";
import { ExchangeView, Narrator, show } from "./view.js";
import { Watch } from "./watch.js";

const find = (id) => document.getElementById(id);
const select = find("model");
const narrator = new Narrator(find("narrator"));
const composer = new Composer(send, stop);
const watch = new Watch(serverChanged);

let exchanges = [];
let underWay = null; // the AbortController of the answer that is coming

function takeToken() {
  const given = tokenOfAddress();
  if (given !== null) keepToken(given);
}

function signInAgain() {
  dropToken();
  location.replace(LOGIN + REFUSED);
}

async function refreshModels() {
  try {
    await listModels(select);
    show(find("banner"), "");
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    // Words that were said here are not thrown away for a token.
    if (error.kind === "token" && !exchanges.length) signInAgain();
    else if (error.kind === "away") watch.look();
    else show(find("banner"), error.message);
  }
}

function send(text, pictures) {
  const exchange = new Exchange(text, pictures);
  exchanges.push(exchange);
  const view = new ExchangeView(exchange, exchanges.length, () => again(exchange, view));
  find("welcome").hidden = true;
  find("conversation").append(view.root);
  view.root.scrollIntoView({ block: "end" });
  answer(exchange, view);
}

function again(exchange, view) {
  if (underWay) return;
  if (exchange.error?.kind === "token") return signInAgain();
  exchange.begin();
  view.update();
  composer.focus(); // the button that had it is gone
  answer(exchange, view);
}

async function answer(exchange, view) {
  const stopping = new AbortController();
  underWay = stopping;
  composer.answering(true);
  try {
    await receive(exchange, view, stopping.signal);
    exchange.state = "done";
  } catch (error) {
    if (stopping.signal.aborted) {
      exchange.state = "stopped";
    } else {
      exchange.state = "failed";
      exchange.error = error;
      if (error.kind === "away" || error.kind === "broken") watch.look();
    }
  } finally {
    // A conversation that was begun anew meanwhile has an answer of its own.
    if (underWay === stopping) {
      underWay = null;
      composer.answering(false);
      narrator.end(exchange.state === "stopped" ? "Stopped." : "");
    }
    following(() => view.update());
  }
}

async function receive(exchange, view, signal) {
  const messages = messagesOf(exchanges.slice(0, exchanges.indexOf(exchange) + 1));
  for await (const { text, finish, own } of ask(select.value, messages, signal)) {
    if (text) {
      exchange.state = "streaming";
      exchange.answer += text;
      narrator.hear(text);
    } else {
      exchange.finish = finish;
      exchange.own = own;
    }
    following(() => view.update());
  }
}

/** Make a change, and stay at the end of the page where the reader is there. */
function following(change) {
  const page = document.documentElement;
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  change();
  if (atEnd) page.scrollTop = page.scrollHeight;
}

function stop() {
  underWay?.abort();
}

function reset() {
  const before = underWay;
  underWay = null;
  before?.abort();
  exchanges = [];
  find("conversation").replaceChildren();
  find("welcome").hidden = false;
  composer.answering(false);
  composer.clear();
  show(find("trouble"), "");
}

function serverChanged(state) {
  const messages = {
    ready: "",
    ending: "The server is ending: it takes no more questions.",
    gone:
      "The server has stopped, or can't be reached. Start it again with “edgevlm serve”:" +
      " this page goes on where it was.",
  };
  show(find("banner"), messages[state]);
  if (state === "ready") refreshModels();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) stop();
});
window.addEventListener("hashchange", () => {
  takeToken();
  refreshModels();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && watch.state === "ready") refreshModels(); // adapters come and go
});
find("reset").addEventListener("click", reset);
rememberModel(select);

takeToken();
if (token()) {
  refreshModels();
  composer.focus();
} else {
  location.replace(LOGIN);
}
