// Draws new images.

import { Runner } from "./api.js";
import { Player } from "./player.js";
import { canvasOf, decode, pngOf } from "./pixels.js";
import { commandBox, download, el, fill, number, plural, shown, sizeOf, sizeOptions } from "./page.js";

export class SampleTab {
  constructor(panel) {
    this.form = panel.querySelector("form");
    this.results = panel.querySelector(".results");
    this.empty = [...this.results.children];
    this.player = new Player();
    this.runner = new Runner("Sample");
    panel.querySelector(".run").append(...this.runner.parts);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.sample();
    });
  }

  setModel(model, info) {
    Object.assign(this, { model, info });
    this.runner.stop();
    this.runner.say("");
    this.results.replaceChildren(...this.empty);
    fill(this.form.elements.order, Array.from({ length: info.num_orders }, (_, index) => [index, `order ${index}`]));
    fill(this.form.elements.size, sizeOptions(info));
    fill(this.form.elements.class, [["", "any"], ...info.classes.map((name) => [name, name])]);
    this.form.elements.class.parentElement.hidden = !info.classes.length;
  }

  async sample() {
    const wanted = number(this.form, "number");
    const cells = Array.from({ length: wanted }, () => el("div", { className: "waiting" }));
    const grid = el("div", { className: "samples" }, ...cells);
    const pictures = [];
    const [title] = this.empty;
    this.player.hide();
    this.results.replaceChildren(title, grid, this.player.element);
    const onPart = (part) => {
      for (const picture of part.pictures.map(decode)) {
        const place = pictures.push(picture) - 1;
        const button = el("button", {
          type: "button", "aria-label": `Play sample ${place + 1}`, disabled: true,
        }, canvasOf(picture, `Sample ${place + 1}`));
        cells[place].replaceWith(button);
        cells[place] = button;
      }
    };
    const result = await this.runner.run("sample", {
      model: this.model,
      number: wanted,
      order: { index: number(this.form, "order") },
      ...sizeOf(this.form.elements.size.value),
      temperature: number(this.form, "temperature"),
      seed: number(this.form, "seed"),
      class: this.form.elements.class.value || null,
    }, { onPart });
    for (const cell of cells.slice(pictures.length)) cell.remove();
    if (!result) return;
    cells.forEach((button, place) => {
      button.disabled = false;
      button.addEventListener("click", () => this.play(pictures[place], result.sequence, place));
    });
    const save = el("button", { type: "button", className: "plain", onclick: () => this.save() }, "Download this sample as PNG");
    this.player.element.append(...(this.player.element.querySelector(".plain") ? [] : [save]));
    this.play(pictures[0], result.sequence, 0);
    this.results.append(commandBox(result.command));
    this.runner.say(`${plural(wanted, "image")} in ${shown(result.seconds, 1)} s and ${plural(result.steps, "step")} of the network.`);
  }

  play(picture, sequence, place) {
    Object.assign(this, { picture, place });
    this.player.load(picture, sequence);
  }

  async save() {
    download(await pngOf(this.picture), `sample${this.place}.png`);
  }
}
