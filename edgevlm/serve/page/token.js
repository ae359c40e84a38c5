// The server's token: this tab alone keeps it, until the tab is closed.

const KEY = "edgevlm_token";
export const LOGIN = "/page/login.html";
// Where the login page is told that the server did not take the token.
export const REFUSED = "#refused";

export const token = () => sessionStorage.getItem(KEY);
export const keepToken = (value) => sessionStorage.setItem(KEY, value);
export const dropToken = () => sessionStorage.removeItem(KEY);

/** The token of an address like `/#token=...`, which is then taken out of it; null without. */
export function tokenOfAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) history.replaceState(null, "", location.pathname);
  return given;
}
