// The page without a pass: it shows the token, gets the pass, and opens `/` again.

import { REFUSED, dropToken, keepToken, token, tokenOfAddress } from "./token.js";

const form = document.getElementById("login");
const field = document.getElementById("token");
const problem = document.getElementById("problem");
const waiting = document.getElementById("waiting");

const WRONG = "That is not this server's token. Copy it again, without spaces around it.";
const OLD = "The server does not take the token that this page had. Give it the new one.";
const AWAY = "The server can't be reached. Start it with “edgevlm serve”, then sign in again.";

async function signIn(given) {
  showForm(false);
  let response;
  try {
    response = await fetch("/page", {
      method: "POST",
      headers: { Authorization: `Bearer ${given}` },
    });
  } catch {
    // Also what a token gets that no header can hold.
    return ask(/^[\x21-\x7e]+$/.test(given) ? AWAY : WRONG);
  }
  if (response.ok) {
    keepToken(given);
    location.replace("/");
    return;
  }
  if (response.status !== 401) return ask(await reason(response));
  dropToken();
  ask(WRONG);
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with an error (${response.status}).`;
  }
}

function ask(message) {
  showForm(true);
  problem.textContent = message;
  problem.hidden = !message;
  field.toggleAttribute("aria-invalid", message === WRONG);
  field.select();
  field.focus();
}

function showForm(shown) {
  form.hidden = !shown;
  waiting.hidden = shown;
}

function begin() {
  const refused = location.hash === REFUSED;
  const given = tokenOfAddress() ?? token();
  if (refused) {
    history.replaceState(null, "", location.pathname);
    dropToken();
    ask(OLD);
  } else if (given) {
    signIn(given);
  } else {
    ask("");
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(field.value.trim());
});
window.addEventListener("hashchange", begin);
begin();
