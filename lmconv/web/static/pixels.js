// Pictures as the server sends them, and canvases that show them.

const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

export function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}

export const bytesOf = fromBase64;
export const floatsOf = (text) => new Float32Array(fromBase64(text).buffer);

export const decode = (picture) => ({ ...picture, data: fromBase64(picture.data) });
export const encode = (picture) => ({ ...picture, data: toBase64(picture.data) });

export function blank({ channels, height, width }) {
  return { channels, height, width, data: new Uint8Array(channels * height * width) };
}

// Red, green and blue of a pixel, by its number.
export function colourOf(picture, index) {
  const plane = picture.height * picture.width;
  return [0, 1, 2].map((channel) => picture.data[Math.min(channel, picture.channels - 1) * plane + index]);
}

// Show a picture, one dot for each pixel; `colour` may change the colour of a pixel.
export function paint(canvas, picture, colour = (index) => colourOf(picture, index)) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  const image = new ImageData(picture.width, picture.height);
  for (let index = 0; index < picture.height * picture.width; index++) {
    image.data.set([...colour(index), 255], 4 * index);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

export function canvasOf(picture, label, colour) {
  const canvas = paint(document.createElement("canvas"), picture, colour);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  return canvas;
}

export const pngOf = (picture, colour) =>
  new Promise((resolve) => paint(document.createElement("canvas"), picture, colour).toBlob(resolve));

// Whole numbers as a file of NumPy.
export function npyOf(numbers) {
  const header = `{'descr': '<i4', 'fortran_order': False, 'shape': (${numbers.length},), }`;
  const padded = header.padEnd(117) + "\n";  // to 128 bytes in all
  const start = Uint8Array.from(`\x93NUMPY\x01\x00\x76\x00${padded}`, (letter) => letter.charCodeAt(0));
  return new Blob([start, Int32Array.from(numbers)]);
}

// The hole as the command line reads it: hidden pixels are white.
export const holeColour = (hidden) => (index) => (hidden[index] ? [255, 255, 255] : [0, 0, 0]);

export const HIDDEN = [92, 130, 181];

const scaleOf = (stops) => (value) => {
  const place = Math.min(1, Math.max(0, value)) * (stops.length - 1);
  const first = Math.min(Math.floor(place), stops.length - 2);
  return stops[first].map((low, channel) => low + (stops[first + 1][channel] - low) * (place - first));
};

// Perceptually uniform scales, at equal distances: viridis and inferno.
export const viridis = scaleOf([
  [68, 1, 84], [70, 50, 127], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 194, 109],
  [159, 218, 58], [253, 231, 37],
]);
export const inferno = scaleOf([
  [0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21],
  [250, 193, 39], [252, 255, 164],
]);

// A canvas with large pixels and a cursor that the pointer or the arrow keys move.
export class Board {
  // `onMove(index)` follows the cursor; `onStroke(index, isFirst)` is called for each pixel that is
  // pressed upon; `describe(index)` says what is there.
  constructor({ label, onMove = () => {}, onStroke = null, describe = () => "" }) {
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "pixel canvas");
    this.canvas.setAttribute("aria-label", label);
    this.where = document.createElement("p");
    this.where.className = "where";
    this.where.setAttribute("aria-live", "polite");
    Object.assign(this, { onMove, onStroke, describe, cursor: null, isPressed: false });
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(name, () => (this.isPressed = false));
    }
    this.canvas.addEventListener("pointerleave", () => this.isPressed || this.move(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("keyup", (event) => event.key === " " && (this.isPressed = false));
    this.canvas.addEventListener("blur", () => (this.isPressed = false));
  }

  get parts() {
    return [this.canvas, this.where];
  }

  // Show pixels: `colour(index)` gives the colour of each, `path` joins some by a line.
  show({ height, width }, colour, { path = [], marked = [] } = {}) {
    Object.assign(this, { height, width, colour, path, marked });
    const scale = (this.scale = Math.max(4, Math.floor(896 / Math.max(height, width))));
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    this.draw();
  }

  draw() {
    const { width, height, scale } = this;
    const context = this.canvas.getContext("2d");
    const small = paint(document.createElement("canvas"), { width, height }, this.colour);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, width * scale, height * scale);
    const middle = (index) => [index % width, Math.floor(index / width)].map((at) => (at + 0.5) * scale);
    if (this.path.length && scale >= 6) {
      context.strokeStyle = "rgba(255, 255, 255, 0.8)";
      context.lineWidth = scale / 10;
      context.beginPath();
      this.path.forEach((index, place) => {
        const [x, y] = middle(index);
        const [left, top] = place ? middle(this.path[place - 1]) : [x, y];
        const isStep = Math.max(Math.abs(x - left), Math.abs(y - top)) <= 1.5 * scale;
        if (place && isStep) context.lineTo(x, y);
        else context.moveTo(x, y);
      });
      context.stroke();
    }
    const frame = (index, colour, inset) => {
      const [x, y] = [index % width, Math.floor(index / width)].map((at) => at * scale + inset);
      context.strokeStyle = colour;
      context.lineWidth = Math.max(2, scale / 12);
      context.strokeRect(x, y, scale - 2 * inset, scale - 2 * inset);
    };
    for (const index of this.marked) frame(index, "#ff9d2e", scale / 8);
    if (this.cursor !== null) {
      frame(this.cursor, "#000", 0);
      frame(this.cursor, "#fff", scale / 12);
    }
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.width);
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.height);
    return [row, column];
  }

  press(event) {
    if (event.button !== 0 || !this.width) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.isPressed = true;
    this.go(...this.at(event), true);
  }

  drag(event) {
    if (!this.width) return;
    const [row, column] = this.at(event);
    const last = this.last ?? [row, column];
    // All pixels on the way, since fast pointers leave some out.
    const steps = this.isPressed ? Math.max(1, Math.abs(row - last[0]), Math.abs(column - last[1])) : 1;
    for (let step = 1; step <= steps; step++) {
      const between = (from, to) => Math.round(from + ((to - from) * step) / steps);
      this.go(between(last[0], row), between(last[1], column), false);
    }
  }

  go(row, column, isFirst) {
    this.last = [row, column];
    if (row < 0 || column < 0 || row >= this.height || column >= this.width) return;
    const index = row * this.width + column;
    if (index === this.cursor && !isFirst) return;
    this.move(index);
    if (this.isPressed) this.onStroke?.(index, isFirst);
  }

  move(index) {
    this.cursor = index;
    this.onMove(index);
    this.draw();
    this.say();
  }

  say() {
    if (this.cursor === null) return;
    const [row, column] = [Math.floor(this.cursor / this.width) + 1, (this.cursor % this.width) + 1];
    this.where.textContent = `Row ${row}, column ${column}${this.describe(this.cursor)}`;
  }

  key(event) {
    if (!this.width) return;
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const cursor = this.cursor ?? Math.floor(this.height / 2) * this.width + Math.floor(this.width / 2);
    const [row, column] = [Math.floor(cursor / this.width), cursor % this.width];
    if (event.key in steps) {
      event.preventDefault();
      const [down, across] = steps[event.key];
      this.go(row + down, column + across, false);
    } else if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      if (event.repeat) return;
      this.isPressed = true;
      this.go(row, column, true);
      this.say();
      if (event.key === "Enter") this.isPressed = false;
    }
  }
}
