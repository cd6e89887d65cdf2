// Looks at an order: one of the model's, of a family, or drawn by hand.

import { Runner } from "./api.js";
import { Picker } from "./picker.js";
import { Player } from "./player.js";
import { Board, bytesOf, canvasOf, decode, encode, npyOf, pngOf, viridis } from "./pixels.js";
import { commandBox, download, el, fill, number, plural, shown, sizeOf, sizeOptions } from "./page.js";

export class OrdersTab {
  constructor(panel) {
    this.panel = panel;
    this.form = panel.querySelector("form");
    this.hint = panel.querySelector("#order-hint");
    this.facts = panel.querySelector(".facts");
    this.outcome = panel.querySelector(".outcome");
    this.own = panel.querySelector(".own-order");
    this.runner = new Runner("Show");
    this.runner.start.hidden = true;
    panel.querySelector(".stage .run").append(...this.runner.parts);
    this.board = new Board({
      label: "The order. Arrow keys move to a pixel, whose masks are shown.",
      onMove: (index) => this.showMasks(index),
      onStroke: (index) => this.draw(index),
      describe: (index) => this.describe(index),
    });
    panel.querySelector(".board").append(...this.board.parts);
    this.trial = new Runner("Score in this order");
    this.sampler = el("button", { type: "button", onclick: () => this.sample() }, "Sample in this order");
    this.trial.buttons.append(this.sampler);
    panel.querySelector(".try .run").append(...this.trial.parts);
    this.picker = new Picker(panel.querySelector(".results .picker"), (picture) => (this.picture = picture), { hasSizes: false });
    this.player = new Player();
    this.form.addEventListener("change", (event) => this.change(event.target.name));
    panel.querySelector("#use-own").addEventListener("click", () => this.load());
    panel.querySelector("#clear-own").addEventListener("click", () => this.beginOwn());
    panel.querySelector(".try").addEventListener("submit", (event) => {
      event.preventDefault();
      this.score();
    });
  }

  async setModel(model, info) {
    Object.assign(this, { model, info, order: null });
    this.runner.stop();
    this.trial.stop();
    const own = Array.from({ length: info.num_orders }, (_, index) => [`index ${index}`, `the model’s order ${index}`]);
    const others = info.can_complete ? [...info.families.map((name) => [`family ${name}`, name]), ["own", "draw one"]] : [];
    fill(this.form.elements.order, [...own, ...others]);
    fill(this.form.elements.variant, Array.from({ length: 8 }, (_, index) => [index, `${index}`]));
    fill(this.form.elements.size, sizeOptions(info));
    this.outcome.replaceChildren();
    await this.change("size");
  }

  async change(name) {
    const { order, variant, size } = this.form.elements;
    variant.disabled = !order.value.startsWith("family");
    this.own.hidden = order.value !== "own";
    if (name === "colours") return this.order && this.show();
    if (name === "size") await this.picker.setModel(this.model, this.info, size.value);
    return order.value === "own" ? this.beginOwn() : this.load();
  }

  get size() {
    return sizeOf(this.form.elements.size.value);
  }

  get spec() {
    const [kind, name] = this.form.elements.order.value.split(" ");
    if (kind === "index") return { index: Number(name) };
    if (kind === "family") return { family: name, variant: number(this.form, "variant") };
    const rest = Array.from({ length: this.size.height * this.size.width }, (_, index) => index);
    return { own: [...this.drawn, ...rest.filter((index) => !this.isDrawn.has(index))] };
  }

  beginOwn() {
    Object.assign(this, { order: null, drawn: [], isDrawn: new Set(), isDrawing: true });
    this.facts.replaceChildren();
    this.hint.textContent = "Draw over the pixels in the order in which they are to be generated. Those that you leave out follow row by row.";
    this.showOwn();
  }

  showOwn() {
    const rank = new Map(this.drawn.map((index, place) => [index, place]));
    this.board.show(this.size, (index) => (rank.has(index) ? viridis(rank.get(index) / Math.max(1, this.drawn.length - 1)) : [128, 128, 128]), { path: this.drawn });
  }

  draw(index) {
    if (!this.isDrawing || this.isDrawn.has(index)) return;
    this.drawn.push(index);
    this.isDrawn.add(index);
    this.showOwn();
  }

  async load() {
    const order = await this.runner.run("order", { model: this.model, ...this.size, order: this.spec });
    if (!order) {
      this.order = null;  // such as that of a family which does not exist at this size
      this.facts.replaceChildren();
      return;
    }
    Object.assign(this, { isDrawing: false, order, chosen: this.spec });
    order.masks.forEach((mask) => (mask.taps = bytesOf(mask.taps)));
    order.rank = new Int32Array(order.sequence.length);
    order.sequence.forEach((index, place) => (order.rank[index] = place));
    this.show();
  }

  show() {
    const { sequence, levels, rank, num_levels, window } = this.order;
    const byLevel = this.form.elements.colours.value === "levels";
    const [places, most] = byLevel ? [levels, num_levels - 1] : [rank, sequence.length - 1];
    this.board.show(this.size, (index) => viridis(places[index] / Math.max(1, most)), { path: byLevel ? [] : sequence });
    this.hint.textContent = "Dark pixels are generated first. Point at a pixel to see its masks.";
    const guesses = window
      ? `The sampler guesses up to ${window} positions at once, and keeps those that come out right.`
      : "The sampler guesses nothing here: it would not be faster.";
    this.masks = el("div", { className: "masks" });
    this.facts.replaceChildren(
      el("p", {}, `${plural(sequence.length, "pixel")} in ${plural(num_levels, "step")}: pixels of one step do not depend on each other. ${guesses}`),
      this.masks);
    this.board.cursor = sequence[sequence.length >> 1];
    this.showMasks(this.board.cursor);
    this.board.draw();
  }

  describe(index) {
    if (!this.order) return "";
    return `: number ${this.order.rank[index] + 1}, step ${this.order.levels[index] + 1}`;
  }

  showMasks(index) {
    if (!this.order || index === null) return;
    const { kernel, masks } = this.order;
    const { height, width } = this.size;
    const taps = kernel * kernel;
    const [row, column] = [Math.floor(index / width), index % width];
    const last = masks[masks.length - 1];
    this.board.marked = Array.from({ length: taps }, (_, tap) => tap)
      .filter((tap) => last.taps[index * taps + tap])
      .map((tap) => [row, column].map((at, axis) => at + last.dilation * ((axis ? tap % kernel : Math.floor(tap / kernel)) - (kernel >> 1))))
      .filter(([y, x]) => y >= 0 && x >= 0 && y < height && x < width)
      .map(([y, x]) => y * width + x);
    this.masks.replaceChildren(...masks.map((mask) => {
      const isOn = (tap) => mask.taps[index * taps + tap];
      const number = Array.from({ length: taps }, (_, tap) => tap).filter(isOn).length;
      const colour = (tap) => (isOn(tap) ? [255, 157, 46] : [110, 114, 120]);
      const dilation = mask.dilation > 1 ? ` (${mask.dilation} apart)` : "";
      return el("figure", {},
        canvasOf({ height: kernel, width: kernel }, `${mask.name}: ${number} of ${taps} taps on`, colour),
        el("figcaption", {}, `${mask.name}${dilation}`, el("br"), `${number} of ${taps} taps`));
    }));
  }

  // The files that a command line reads.
  files(pictures) {
    const files = Object.fromEntries(pictures.map((picture, place) =>
      [`picture${place}.png`, async (name) => download(await pngOf(picture), name)]));
    if (this.chosen.own) files["order.npy"] = (name) => download(npyOf(this.chosen.own), name);
    return files;
  }

  async score() {
    if (!this.order || !this.picture) return this.trial.complain("Show an order first.");
    const { model } = this;
    const pictures = [this.picture];
    const run = (order) => this.trial.run("score", { model, pictures: pictures.map(encode), order });
    const here = await run(this.chosen);
    const all = here && await run(null);
    if (!all) return undefined;
    const rows = [
      ["this order", here.scores[0].orders[0]],
      ...all.scores[0].orders.map((each, index) => [`the model’s order ${index}`, each]),
      ["the model’s ensemble", all.scores[0].ensemble],
    ];
    this.player.hide();
    this.outcome.replaceChildren(
      el("div", { className: "scroll" }, el("table", {},
        el("thead", {}, el("tr", {}, ...["", "nats", "bits/dim"].map((text) => el("th", { scope: "col" }, text)))),
        el("tbody", {}, ...rows.map(([name, { nats, bpd }]) => el("tr", {},
          el("td", {}, name), el("td", {}, shown(nats, 2)), el("td", {}, shown(bpd, 4))))))),
      commandBox(here.command, this.files(pictures)));
    return undefined;
  }

  async sample() {
    if (!this.order) return this.trial.complain("Show an order first.");
    const parts = [];
    const result = await this.trial.run("sample", {
      model: this.model, number: 1, seed: 1, temperature: 1, ...this.size, order: this.chosen,
    }, { onPart: (part) => parts.push(...part.pictures.map(decode)) });
    if (!result) return undefined;
    this.outcome.replaceChildren(this.player.element,
      el("p", { className: "quiet" }, `A sample in this order, drawn in ${plural(result.steps, "step")}.`),
      commandBox(result.command, this.files([])));
    this.player.load(parts[0], result.sequence);
    return undefined;
  }
}
