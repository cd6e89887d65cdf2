// Hide a part of a picture, and let the model complete it.

import { Runner } from "./api.js";
import { Classes } from "./classes.js";
import { Picker } from "./picker.js";
import { Player } from "./player.js";
import {
  Board, HIDDEN, canvasOf, colourOf, decode, encode, holeColour, pngOf, toBase64,
} from "./pixels.js";
import { commandBox, download, el, number, plural, shown } from "./page.js";

export class CompleteTab {
  constructor(panel) {
    this.form = panel.querySelector("form");
    this.results = panel.querySelector(".results");
    this.tools = panel.querySelector(".tools");
    this.empty = [...this.results.children];
    this.player = new Player();
    this.classes = new Classes(panel.querySelector(".classes"));
    this.runner = new Runner("Complete");
    panel.querySelector(".run").append(...this.runner.parts);
    this.board = new Board({
      label: "The picture. Arrow keys move, the space bar brushes.",
      onStroke: (index) => this.stroke(index),
      describe: (index) => (this.hidden[index] ? ", hidden" : ""),
    });
    panel.querySelector(".board").append(...this.board.parts);
    this.picker = new Picker(panel.querySelector(".picker"), (picture, isBlank) => this.take(picture, isBlank), { hasBlank: true });
    const size = this.tools.querySelector("[name=size]");
    size.addEventListener("input", () => (size.nextElementSibling.value = size.value));
    this.tools.addEventListener("change", () => this.showTools());
    panel.querySelector("#clear-hole").addEventListener("click", () => {
      this.hidden.fill(0);
      this.board.draw();
      this.classify();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.complete();
    });
  }

  async setModel(model, info) {
    Object.assign(this, { model, info, picture: null });
    this.runner.stop();
    this.results.replaceChildren(...this.empty);
    this.runner.start.disabled = !info.can_complete;
    this.runner.say(info.can_complete ? "" : "This model has only one order, in which a hole does not see the pixels after it.");
    this.showTools();
    this.classes.setModel(model, info);
    await this.picker.setModel(model, info);
  }

  get tool() {
    return this.tools.querySelector("[name=tool]:checked").value;
  }

  showTools() {
    this.tools.querySelector(".paint").hidden = this.tool !== "paint";
  }

  take(picture, isBlank) {
    this.picture = picture;
    this.hidden = new Uint8Array(picture.height * picture.width);
    if (isBlank) this.tools.querySelector("[value=paint]").click();
    else if (this.tool === "paint") this.tools.querySelector("[value=hide]").click();
    this.board.show(picture, (index) => {
      const colour = colourOf(picture, index);
      return this.hidden[index] ? HIDDEN.map((value, channel) => 0.85 * value + 0.15 * colour[channel]) : colour;
    });
    this.classify();
  }

  classify() {
    const { picture, hidden } = this;
    this.classes.update(() => ({ ...encode(picture), hidden: toBase64(hidden) }), this.files(picture, hidden));
  }

  // What the command lines read, saved when it is asked for.
  files(picture, hidden) {
    return {
      "picture.png": async (name) => download(await pngOf(picture), name),
      "hole.png": async (name) => download(await pngOf(picture, holeColour(hidden)), name),
    };
  }

  // Apply the brush, which is a disk, around a pixel.
  stroke(index) {
    const { height, width, channels, data } = this.picture;
    const size = Number(this.tools.querySelector("[name=size]").value);
    const [row, column] = [Math.floor(index / width), index % width];
    const shift = size % 2 ? 0 : 0.5;
    const colour = this.tools.querySelector("[name=colour]").value.match(/[0-9a-f]{2}/g).map((hex) => parseInt(hex, 16));
    const grey = Math.round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]);
    for (let y = Math.max(0, row - size); y < Math.min(height, row + size + 1); y++) {
      for (let x = Math.max(0, column - size); x < Math.min(width, column + size + 1); x++) {
        if (Math.hypot(y - row + shift, x - column + shift) > size / 2) continue;
        const at = y * width + x;
        if (this.tool !== "paint") this.hidden[at] = this.tool === "hide" ? 1 : 0;
        else for (let c = 0; c < channels; c++) data[c * height * width + at] = channels === 1 ? grey : colour[c];
      }
    }
    this.board.draw();
    this.classify();
  }

  async complete() {
    const hidden = this.hidden.slice();
    const picture = { ...this.picture, data: this.picture.data.slice() };
    const result = await this.runner.run("complete", {
      model: this.model,
      picture: { ...encode(picture), hidden: toBase64(hidden) },
      number: number(this.form, "number"),
      order: this.form.elements.order.value,
      temperature: number(this.form, "temperature"),
      seed: number(this.form, "seed"),
    });
    if (result) this.show(result, picture, hidden);
  }

  show(result, picture, hidden) {
    const original = decode(result.original.picture);
    const context = (index) => (hidden[index] ? HIDDEN : colourOf(original, index));
    const cards = result.completions.map((each, place) => this.card(each, place, result.sequences));
    const list = el("ul", { className: "cards" },
      el("li", {}, canvasOf(original, "The original"), el("p", { className: "nats" }, "Original"), figures(result.original)),
      el("li", {}, canvasOf(original, "What the model sees", context), el("p", { className: "nats" }, "Visible"),
        el("p", { className: "quiet" }, plural(hidden.reduce((sum, each) => sum + each, 0), "hidden pixel"))),
      ...cards);
    const [title] = this.empty;
    this.results.replaceChildren(title, list, this.player.element, commandBox(result.command, this.files(picture, hidden)));
    cards[0].querySelector("button").click();
    this.runner.say(`${plural(cards.length, "completion")} in ${shown(result.seconds, 2)} s, the likeliest with ${shown(result.completions[0].nats, 1)} nats.`);
  }

  card(completion, place, sequences) {
    const picture = decode(completion.picture);
    const button = el("button", {
      type: "button", className: "pick", "aria-pressed": "false",
      "aria-label": `Play completion ${place + 1}`,
      onclick: () => {
        for (const each of this.results.querySelectorAll(".pick")) each.setAttribute("aria-pressed", each === button);
        this.player.load(picture, sequences[completion.order]);
      },
    }, canvasOf(picture, `Completion ${place + 1}`));
    const save = async () => download(await pngOf(picture), `completion${place + 1}.png`);
    return el("li", { className: "completion" }, button,
      el("p", { className: "nats" }, `${shown(completion.nats, 1)} nats`),
      figures(completion, `order ${completion.order}`),
      el("button", { type: "button", className: "plain", "aria-label": `Download completion ${place + 1} as PNG`, onclick: save }, "PNG"));
  }
}

const figures = (likelihood, more) =>
  el("p", { className: "quiet" },
    more ? null : el("span", {}, `${shown(likelihood.nats, 1)} nats`),
    el("span", { title: "bits per hidden dimension" }, `${shown(likelihood.bpd, 3)} bits/dim`),
    more ? el("span", {}, more) : null);
