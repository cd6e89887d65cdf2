// Exact likelihoods of pictures, and the bits that each pixel takes.

import { Runner } from "./api.js";
import { Picker } from "./picker.js";
import { Board, canvasOf, decode, encode, floatsOf, inferno, pngOf } from "./pixels.js";
import { commandBox, download, el, shown } from "./page.js";

const MOST = 12;

export class ScoreTab {
  constructor(panel) {
    this.form = panel.querySelector("form");
    this.results = panel.querySelector(".results");
    this.list = panel.querySelector(".chosen");
    this.empty = [...this.results.children];
    this.runner = new Runner("Score");
    panel.querySelector(".run").append(...this.runner.parts);
    this.picker = new Picker(panel.querySelector(".picker"), (picture) => this.add(picture));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.score();
    });
  }

  async setModel(model, info) {
    Object.assign(this, { model, info, pictures: [] });
    this.runner.stop();
    this.runner.say("");
    this.results.replaceChildren(...this.empty);
    this.showChosen();
    await this.picker.setModel(model, info);
  }

  add(picture) {
    if (this.pictures.length === MOST) return this.runner.complain(`${MOST} pictures are the most at once.`);
    const { height, width } = this.pictures[0] ?? picture;
    if (picture.height !== height || picture.width !== width) this.pictures = [];  // of one size only
    this.pictures.push(picture);
    this.showChosen();
    return this.runner.say("");
  }

  showChosen() {
    this.list.replaceChildren(...this.pictures.map((picture, place) => el("li", {},
      canvasOf(picture, `Picture ${place + 1}`),
      el("button", {
        type: "button", "aria-label": `Remove picture ${place + 1}`,
        onclick: () => {
          this.pictures.splice(place, 1);
          this.showChosen();
        },
      }, "×"))));
  }

  async score() {
    if (!this.pictures.length) return this.runner.complain("Choose a picture first.");
    const pictures = [...this.pictures];
    const result = await this.runner.run("score", { model: this.model, pictures: pictures.map(encode) });
    if (result) this.show(result, pictures);
    return undefined;
  }

  show(result, pictures) {
    const scores = result.scores.map((score) => ({ ...score, picture: decode(score.picture), bits: floatsOf(score.bits) }));
    const orders = scores[0].orders.map((_, index) => `Order ${index}`);
    const head = el("tr", {}, ...["Picture", "Ensemble, nats", "Bits/dim", ...orders].map((text) => el("th", { scope: "col" }, text)));
    const map = el("div", { className: "map" });
    const largest = Math.max(...scores.map((score) => score.bits.reduce((most, bits) => Math.max(most, bits), 0)));
    const rows = scores.map((score, place) => {
      const button = el("button", {
        type: "button", className: "thumb", "aria-pressed": "false", "aria-label": `Map of picture ${place + 1}`,
        onclick: () => {
          for (const each of this.results.querySelectorAll(".thumb")) each.setAttribute("aria-pressed", each === button);
          map.replaceChildren(...this.maps(score, largest));
        },
      }, canvasOf(score.picture, `Picture ${place + 1}`));
      return el("tr", {}, el("td", {}, button),
        el("td", {}, el("strong", {}, shown(score.ensemble.nats, 2))),
        el("td", {}, shown(score.ensemble.bpd, 4)),
        ...score.orders.map((order) => el("td", { title: `${shown(order.bpd, 4)} bits per dimension` }, shown(order.nats, 2))));
    });
    const [title] = this.empty;
    const files = Object.fromEntries(pictures.map((picture, place) =>
      [`picture${place}.png`, async (name) => download(await pngOf(picture), name)]));
    this.results.replaceChildren(title,
      el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table of likelihoods" },
        el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))),
      el("h3", {}, "Bits of each pixel, averaged over the orders"), map, scaleBar(largest),
      commandBox(result.command, files));
    rows[0].querySelector("button").click();
    this.runner.say(`${scores.map((score) => shown(score.ensemble.nats, 1)).join(", ")} nats under the ensemble.`);
  }

  maps(score, largest) {
    const { picture, bits } = score;
    const total = bits.reduce((sum, each) => sum + each, 0);
    const board = new Board({
      label: "Bits of each pixel. Arrow keys move.",
      describe: (index) => `: ${shown(bits[index], 3)} bits`,
    });
    board.show(picture, (index) => inferno(bits[index] / largest));
    board.where.textContent = `${shown(total, 1)} bits in all`;
    return [
      el("div", { className: "board" }, canvasOf(picture, "The picture")),
      el("div", { className: "board" }, ...board.parts),
    ];
  }
}

function scaleBar(largest) {
  const line = { height: 1, width: 64 };
  return el("p", { className: "scale" }, "0", canvasOf(line, "Scale of colours", (index) => inferno(index / 63)), `${shown(largest, 1)} bits`);
}

