// Plays the generation of a picture, pixel by pixel in its order.

import { HIDDEN, colourOf, paint } from "./pixels.js";
import { el } from "./page.js";

const SECONDS = 6;

export class Player {
  constructor() {
    this.canvas = el("canvas", { role: "img", "aria-label": "The picture while it is generated" });
    this.slider = el("input", {
      type: "range", min: 0, "aria-label": "Pixels generated", oninput: () => this.go(Number(this.slider.value)),
    });
    this.toggle = el("button", { type: "button", onclick: () => this.playOrPause() }, "Play");
    this.back = el("button", { type: "button", "aria-label": "One pixel back", onclick: () => this.go(this.place - 1) }, "‹");
    this.forth = el("button", { type: "button", "aria-label": "One pixel on", onclick: () => this.go(this.place + 1) }, "›");
    this.output = el("output");
    this.element = el("div", { className: "player", hidden: true },
      this.canvas,
      el("div", { className: "buttons" }, this.toggle, this.back, this.slider, this.forth),
      this.output);
  }

  // `sequence` has the numbers of the pixels that are generated, the first one first.
  load(picture, sequence) {
    this.pause();
    Object.assign(this, { picture, sequence });
    this.rank = new Int32Array(picture.height * picture.width).fill(-1);
    sequence.forEach((index, place) => (this.rank[index] = place));
    this.slider.max = sequence.length;
    this.element.hidden = false;
    this.go(sequence.length);
  }

  hide() {
    this.pause();
    this.element.hidden = true;
  }

  go(place) {
    this.place = Math.min(this.sequence.length, Math.max(0, place));
    this.slider.value = this.place;
    this.slider.setAttribute("aria-valuetext", `${this.place} of ${this.sequence.length} pixels`);
    this.output.textContent = `${this.place} of ${this.sequence.length} pixels generated`;
    paint(this.canvas, this.picture, (index) =>
      this.rank[index] >= this.place ? HIDDEN : colourOf(this.picture, index));
  }

  playOrPause() {
    if (this.frame) this.pause();
    else this.play();
  }

  play() {
    const first = this.place === this.sequence.length ? 0 : this.place;
    const begin = performance.now();
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    let last = 0;
    const next = (now) => {
      this.frame = requestAnimationFrame(next);
      if (isCalm && now - last < 500) return;
      last = now;
      this.go(first + Math.floor(((now - begin) / 1000 / SECONDS) * this.sequence.length));
      if (this.place === this.sequence.length) this.pause();
    };
    this.toggle.textContent = "Pause";
    this.frame = requestAnimationFrame(next);
  }

  pause() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.toggle.textContent = "Play";
  }
}
