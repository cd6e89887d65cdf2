// Chooses a picture: an example, an uploaded file, or a blank one to draw on.

import { ask } from "./api.js";
import { blank, canvasOf, decode } from "./pixels.js";
import { el, fill, sizeOf, sizeOptions } from "./page.js";

const MOST_BYTES = 2 ** 24;

export class Picker {
  constructor(parent, onPick, { hasBlank = false, hasSizes = true } = {}) {
    Object.assign(this, { onPick, first: 0 });
    this.strip = el("div", { className: "strip", role: "group", "aria-label": "Examples" });
    this.more = el("button", { type: "button", className: "plain", onclick: () => this.showNext() }, "Other examples");
    this.file = el("input", {
      type: "file", accept: "image/png,image/jpeg,image/webp,image/tiff,image/bmp", hidden: true,
      onchange: () => this.upload(),
    });
    this.source = el("p", { className: "source" });
    this.problem = el("p", { className: "problem", role: "alert" });
    this.size = el("select", { "aria-label": "Size of the picture", onchange: () => this.load() });
    const upload = el("button", { type: "button", onclick: () => this.file.click() }, "Upload a picture…");
    const draw = el("button", { type: "button", onclick: () => this.pick(blank(this.shape), null, true) }, "Blank, to draw on");
    parent.append(this.strip, this.source, el("div", { className: "buttons" },
      upload, hasBlank ? draw : null, hasSizes ? this.size : null, this.more, this.file), this.problem);
  }

  get shape() {
    return { channels: this.info.channels, ...sizeOf(this.size.value) };
  }

  async setModel(model, info, size) {
    Object.assign(this, { model, info });
    fill(this.size, sizeOptions(info));
    await this.load(size);
  }

  async load(size) {
    if (size) this.size.value = size;
    this.first = 0;
    await this.show(true);
  }

  async showNext() {
    this.first = this.first + 24 < this.total ? this.first + 24 : 0;
    await this.show(false);
  }

  async show(picksFirst) {
    const { model } = this;
    const { height, width } = this.shape;
    try {
      const examples = await ask("examples", { model, height, width, first: this.first });
      if (model !== this.model) return;
      this.total = examples.total;
      this.more.hidden = examples.total <= 24;
      this.source.textContent = examples.source ? `Examples: ${examples.source}` : "";
      this.strip.replaceChildren(...examples.pictures.map(decode).map((picture, place) => this.thumb(picture, place)));
      if (picksFirst) this.strip.firstChild?.click();
      this.problem.textContent = "";
    } catch (error) {
      if (model === this.model) this.problem.textContent = error.message;
    }
  }

  thumb(picture, place) {
    const name = `example ${this.first + place + 1}`;
    const button = el("button", {
      type: "button", className: "thumb", "aria-pressed": "false",
      onclick: () => this.pick({ ...picture, data: picture.data.slice() }, button),
    }, canvasOf(picture, name));
    return button;
  }

  pick(picture, button, isBlank = false) {
    this.problem.textContent = "";
    for (const each of this.strip.children) each.setAttribute("aria-pressed", each === button);
    this.onPick(picture, isBlank);
  }

  async upload() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    if (file.size > MOST_BYTES) {
      this.problem.textContent = "The file is too large: 16 MB are the most.";
      return;
    }
    this.problem.textContent = "";
    const { height, width } = this.shape;
    try {
      const { picture } = await ask("decode", { model: this.model, height, width }, { file });
      this.pick(decode(picture), null);
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }
}
