// Elements of the page, and what the model's tabs share.

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const plural = (number, word) =>
  `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

export const shown = (value, digits) => value.toFixed(digits);

export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// The command line that does the same, with the files that it needs.
export function commandBox(command, files = {}) {
  const words = command.split(/ (?=--)/);  // lines break between flags
  const copied = el("span", { className: "quiet", role: "status" });
  const copy = el("button", {
    type: "button",
    onclick: async () => {
      await navigator.clipboard.writeText(command);
      copied.textContent = "Copied.";
    },
  }, "Copy");
  const downloads = Object.entries(files).map(([name, save]) =>
    el("button", { type: "button", className: "plain", onclick: () => save(name) }, name));
  const needs = downloads.length
    ? el("div", { className: "buttons quiet" }, "It reads:", ...downloads)
    : null;
  return el("div", { className: "command" },
    el("h3", {}, "The same from the command line"),
    el("pre", {}, el("code", {}, ...words.flatMap((word) => [el("span", {}, word), " "]))),
    needs,
    navigator.clipboard ? el("div", { className: "buttons" }, copy, copied) : null);
}

export function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
}

export const sizeOptions = (info) => {
  const own = `${info.height}x${info.width}`;
  const names = info.sizes.map((size) => size.join("x"));
  return [own, ...names.filter((name) => name !== own)]
    .map((name) => [name, name.replace("x", " × ") + (name === own ? " (the model’s)" : "")]);
};

export const sizeOf = (text) => {
  const [height, width] = text.split("x").map(Number);
  return { height, width };
};

export const number = (form, name) => Number(form.elements[name].value);
