// Where a question is written: its text and the pictures that go with it.

import { readPicture, takePictures } from "./pictures.js";
import { show } from "./view.js";

const find = (id) => document.getElementById(id);
// On a touch screen the focus brings up a keyboard, over the answer.
const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");

/** Calls `send(text, pictures)` where the user asks, and `stop()` where an answer is to end. */
export class Composer {
  constructor(send, stop) {
    this.send = send;
    this.pictures = [];
    this.reading = 0;
    this.field = find("question");
    this.answering(false);
    find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    find("stop").addEventListener("click", stop);
    this.field.addEventListener("input", () => this.update());
    this.field.addEventListener("keydown", (event) => {
      // `isComposing`: Enter picks a word of an input method.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    for (const id of ["attach", "choose"]) {
      find(id).addEventListener("click", () => find("files").click());
    }
    find("files").addEventListener("change", ({ target }) => {
      this.add([...target.files]);
      target.value = ""; // so that the same file can be chosen again
    });
    takePictures(find("drop"), (files) => this.add(files));
  }

  async add(files) {
    show(find("trouble"), "");
    this.reading += 1;
    this.update();
    for (const file of files) {
      try {
        this.pictures.push(await readPicture(file));
      } catch (error) {
        show(find("trouble"), error.message);
      }
      this.update();
    }
    this.reading -= 1;
    this.update();
    this.focus();
  }

  submit() {
    const text = this.field.value.trim();
    if (this.busy || this.reading || !(text || this.pictures.length)) return;
    show(find("trouble"), "");
    const pictures = this.pictures;
    this.clear();
    this.send(text, pictures);
  }

  clear() {
    this.field.value = "";
    this.pictures = [];
    this.update();
    this.focus();
  }

  /** Be ready for the next question. */
  focus() {
    if (TOUCH.matches) this.field.blur();
    else this.field.focus();
  }

  /** Whether an answer is under way: then there is a button to stop it in place of `send`. */
  answering(busy) {
    this.busy = busy;
    const inside = find("stop").matches(":focus") || find("send").matches(":focus");
    find("send").hidden = busy;
    find("stop").hidden = !busy;
    if (inside) this.focus();
    this.update();
  }

  update() {
    find("send").disabled = this.reading > 0 || !(this.field.value.trim() || this.pictures.length);
    this.field.placeholder = this.pictures.length ? "Ask about it, or just send" : "Ask a question";
    const list = find("pictures");
    list.hidden = !this.pictures.length;
    list.replaceChildren(...this.pictures.map((picture) => this.thumbnail(picture)));
    this.field.style.height = "auto"; // grow and shrink with the text
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  thumbnail(picture) {
    const item = find("picture").content.cloneNode(true).firstElementChild;
    const image = item.querySelector("img");
    image.src = picture.url;
    image.alt = picture.name;
    const remove = item.querySelector("button");
    remove.setAttribute("aria-label", `Remove ${picture.name}`);
    remove.addEventListener("click", () => {
      this.pictures = this.pictures.filter((other) => other !== picture);
      this.update();
      this.focus();
    });
    return item;
  }
}
