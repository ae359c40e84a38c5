// The list of models: the base that is served, alone or with an adapter.

import { models } from "./api.js";

const KEY = "edgevlm_model";

/** Fill the list from the server, and keep what was chosen. Throws ServerError. */
export async function listModels(select) {
  const wanted = select.value || sessionStorage.getItem(KEY);
  const entries = await models();
  const group = document.createElement("optgroup");
  group.label = "With an adapter";
  select.replaceChildren();
  for (const { id, edgevlm: own } of entries) {
    if (own?.adapter) group.append(new Option(own.title || own.adapter, id));
    else select.append(new Option(id, id));
  }
  if (group.childElementCount) select.append(group);
  if (entries.some(({ id }) => id === wanted)) select.value = wanted;
  select.disabled = false;
}

/** Remember what is chosen for as long as the tab is open. */
export function rememberModel(select) {
  select.addEventListener("change", () => sessionStorage.setItem(KEY, select.value));
}
