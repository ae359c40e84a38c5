// An exchange on the page. Whatever comes from outside is set as text, never as HTML.

import { details, facts } from "./facts.js";

/** Shows one exchange and keeps what is shown up to date. `again` is called where the user
 *  wants its answer anew. */
export class ExchangeView {
  constructor(exchange, number, again) {
    this.exchange = exchange;
    const root = document.getElementById("exchange").content.cloneNode(true).firstElementChild;
    this.root = root;
    this.find = (name) => root.querySelector(`.${name}`);
    root.setAttribute("aria-label", `Question ${number}`);
    this.find("asked").textContent = exchange.text;
    for (const [index, picture] of exchange.pictures.entries()) {
      const image = document.createElement("img");
      image.src = picture.url;
      image.alt = `Picture ${index + 1}: ${picture.name}`;
      this.find("shown").append(image);
    }
    this.find("again").addEventListener("click", again);
    this.update();
  }

  update() {
    const { exchange } = this;
    const answer = this.find("answer");
    answer.dataset.state = exchange.state;
    answer.setAttribute("aria-busy", String(exchange.underWay));
    const waiting = exchange.pictures.length ? "Looking at the picture…" : "Thinking…";
    this.find("said").textContent = exchange.state === "waiting" ? waiting : exchange.answer;
    show(this.find("ending"), ending(exchange));
    this.find("unsure").hidden = !exchange.own?.unsure;
    this.find("notices").replaceChildren(...(exchange.own?.notices ?? []).map((text) => element("p", text)));
    this.tellFacts();
    this.tellProblem();
  }

  tellFacts() {
    const { own } = this.exchange;
    const box = this.find("facts");
    box.hidden = !own;
    if (!own) return;
    box.querySelector("summary").textContent = facts(own).join(" · ");
    const rows = details(own).map(([name, value]) => {
      const row = document.createElement("div");
      row.append(element("dt", name), element("dd", value));
      return row;
    });
    box.querySelector("dl").replaceChildren(...rows);
  }

  tellProblem() {
    const { error } = this.exchange;
    const box = this.root.querySelector("div.problem");
    box.hidden = !error;
    box.querySelector("p").textContent = error?.message ?? "";
    this.find("again").textContent = error?.kind === "token" ? "Sign in again" : "Ask again";
    this.find("again").hidden = error?.kind === "refused";
  }
}

function ending(exchange) {
  if (exchange.state === "stopped") return exchange.answer ? "Stopped here." : "Stopped.";
  return exchange.finish === "length" ? "Cut off: this is as long as an answer may be." : "";
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

/** Show a text, or hide its element where there is none. */
export function show(place, text) {
  place.textContent = text;
  place.hidden = !text;
}

/** Reads an answer to those who listen: sentence by sentence, as tokens would be a stutter. */
export class Narrator {
  constructor(place) {
    this.place = place;
    this.held = "";
  }

  hear(text) {
    this.held += text;
    const last = [...this.held.matchAll(/[.!?:](?=\s)|[。！？\n]/g)].at(-1);
    if (!last) return;
    this.say(this.held.slice(0, last.index + 1));
    this.held = this.held.slice(last.index + 1);
  }

  /** Say what is left, and then `text`. */
  end(text) {
    this.say(this.held);
    this.held = "";
    this.say(text);
  }

  say(text) {
    if (text.trim()) this.place.append(element("p", text.trim()));
    while (this.place.childElementCount > 50) this.place.firstElementChild.remove();
  }
}
