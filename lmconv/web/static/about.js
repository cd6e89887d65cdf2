// What the model is: its file, its training and its card.

import { el } from "./page.js";

export class AboutTab {
  constructor(panel) {
    this.list = panel.querySelector("dl");
    this.curves = panel.querySelector(".curves");
    this.card = panel.querySelector(".card");
  }

  setModel(model, info) {
    const size = ["file", `${info.path} (${info.megabytes.toFixed(1)} MB)`];
    this.list.replaceChildren(...[size, ...info.lines].flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    this.curves.replaceChildren(...info.curves.map(chart));
    const nothing = info.curves.length ? [] : [el("p", { className: "empty" }, "There are no metrics of its training beside the file.")];
    this.card.replaceChildren(...nothing, ...markdown(info.card));
  }
}

const [WIDTH, HEIGHT] = [360, 160];
const svg = (tag, attributes, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
};

function chart({ title, unit, points }) {
  const steps = points.map(([step]) => step);
  const values = points.map(([, value]) => value);
  const sorted = [...values].sort((a, b) => a - b);
  // The first steps would take up all of the height.
  const [low, high] = [sorted[0], sorted[Math.floor(0.98 * (sorted.length - 1))]];
  const x = (step) => (step / Math.max(1, ...steps)) * WIDTH;
  const y = (value) => HEIGHT - Math.min(1, (value - low) / (high - low || 1)) * HEIGHT;
  const line = points.map(([step, value], place) => `${place ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const picture = svg("svg", { viewBox: `0 -22 ${WIDTH} ${HEIGHT + 42}`, role: "img", "aria-label": `${title}: from ${values[0].toPrecision(4)} to ${values.at(-1).toPrecision(4)}` });
  picture.append(
    svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
    svg("path", { d: points.length > 1 ? line : `${line}h4` }),
    svg("text", { x: 0, y: -8 }, high.toPrecision(4)),
    svg("text", { x: 0, y: HEIGHT - 4 }, low.toPrecision(4)),
    svg("text", { x: WIDTH, y: HEIGHT + 14, "text-anchor": "end" }, `step ${Math.max(...steps).toLocaleString("en")}`));
  return el("figure", {}, el("figcaption", {}, `${title}${unit ? `, ${unit}` : ""}: ${values.at(-1).toPrecision(4)}`), picture);
}

// The little of Markdown that model cards use.
function markdown(text) {
  const blocks = [];
  for (const block of text.split(/^(```[^]*?^```)$|\n\s*\n/m).map((each) => each?.trim()).filter(Boolean)) {
    if (block.startsWith("```")) blocks.push(el("pre", {}, el("code", {}, block.replace(/^```\w*\n|\n?```$/g, ""))));
    else if (block.startsWith("#")) blocks.push(el("h3", {}, block.replace(/^#+ /, "")));
    else if (block.startsWith("|")) blocks.push(table(block.split("\n")));
    else blocks.push(el("p", {}, ...inline(block.replaceAll("\n", " "))));
  }
  return blocks;
}

function table(lines) {
  const cells = (line) => line.split("|").slice(1, -1).map((cell) => cell.trim());
  const row = (line, tag) => el("tr", {}, ...cells(line).map((cell) => el(tag, {}, ...inline(cell))));
  return el("div", { className: "scroll" }, el("table", {},
    el("thead", {}, row(lines[0], "th")), el("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")))));
}

const inline = (text) =>
  text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)]+\))/).map((part) => {
    if (part.startsWith("`")) return el("code", {}, part.slice(1, -1));
    if (part.startsWith("**")) return el("strong", {}, part.slice(2, -2));
    return part.replace(/^\[([^\]]+)\]\(.*\)$/, "$1");
  });
