// The probability of each class given the visible part of a picture, as it changes.

import { ask } from "./api.js";
import { commandBox, el, shown } from "./page.js";

const PAUSE = 250;  // milliseconds without a change before the model is asked
const MOST = 10;

export class Classes {
  constructor(element) {
    this.element = element;
  }

  setModel(model, info) {
    Object.assign(this, { model, names: info.classes });
    this.stop();
    this.element.hidden = !info.classes.length;
    this.element.replaceChildren();
  }

  stop() {
    clearTimeout(this.timer);
    this.controller?.abort();
  }

  // Ask soon, unless the picture changes again: `describe` makes the picture that is sent.
  update(describe, files) {
    if (!this.names?.length) return;
    this.stop();
    this.timer = setTimeout(() => this.ask(describe(), files), PAUSE);
  }

  async ask(picture, files) {
    const controller = (this.controller = new AbortController());
    try {
      const result = await ask("classify", { model: this.model, picture }, { signal: controller.signal });
      if (!controller.signal.aborted) this.show(result, files);
    } catch (error) {
      if (error.name !== "AbortError") this.element.replaceChildren(el("p", { className: "problem" }, error.message));
    }
  }

  show({ probabilities, command }, files) {
    const ranked = probabilities.map((probability, index) => [probability, this.names[index]]).sort(([a], [b]) => b - a);
    const rows = ranked.slice(0, MOST).map(([probability, name]) => el("tr", {},
      el("th", { scope: "row" }, name),
      el("td", {}, el("meter", { value: probability, "aria-hidden": "true" })),
      el("td", {}, `${shown(100 * probability, 1)}%`)));
    this.element.replaceChildren(
      el("h3", {}, "Class, given what is visible"),
      el("table", {}, el("tbody", {}, ...rows)),
      el("details", {}, el("summary", { className: "quiet" }, "Command line"), commandBox(command, files)));
  }
}
