// Requests to the server: each answers with a stream of events, and ends when it is closed.

import { el, plural } from "./page.js";

const page = Math.random().toString(36).slice(2);

class Problem extends Error {}

export async function listModels() {
  return (await fetch("/api/models")).json();
}

// The result of a request. `onEvent` gets what comes before; an AbortSignal stops the work.
export async function ask(task, body, { signal, onEvent = () => {}, file } = {}) {
  const query = file ? `?${new URLSearchParams(body)}` : "";
  let response;
  try {
    response = await fetch(`/api/${task}${query}`, {
      method: "POST",
      signal,
      headers: {
        "content-type": file ? "application/octet-stream" : "application/json",
        "x-page": page,
      },
      body: file ?? JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The program does not answer. Is it still running?");
  }
  if (!response.ok) throw new Problem((await response.json()).error);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Problem("The program has ended before the result was there.");
    text += value;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if ("result" in event) return event.result;
      if ("error" in event) throw new Problem(event.error);
      onEvent(event);
    }
  }
}

// A button that starts a request, one that stops it, and how far it is.
export class Runner {
  constructor(label) {
    this.start = el("button", { type: "submit" }, label);
    this.halt = el("button", { type: "button", hidden: true, onclick: () => this.stop() }, "Stop");
    this.bar = el("progress", { max: 1, hidden: true, "aria-label": "Progress" });
    this.status = el("p", { className: "status", role: "status" });
    this.problem = el("p", { className: "problem", role: "alert" });
    this.buttons = el("div", { className: "buttons" }, this.start, this.halt);
    this.parts = [this.buttons, this.bar, this.status, this.problem];
  }

  stop() {
    this.controller?.abort();
  }

  say(text) {
    this.status.textContent = text;
    this.problem.textContent = "";
  }

  complain(text) {
    this.status.textContent = "";
    this.problem.textContent = text;
  }

  // The result, or undefined if it was stopped or is impossible, which is then said.
  async run(task, body, { onPart = () => {}, file } = {}) {
    this.stop();
    const controller = (this.controller = new AbortController());
    const isOurs = () => this.controller === controller;
    this.say("");
    this.start.disabled = true;
    const late = setTimeout(() => {
      this.halt.hidden = this.bar.hidden = false;
      this.bar.removeAttribute("value");
    }, 150);
    const onEvent = (event) => {
      if (!isOurs()) return;
      if ("part" in event) onPart(event.part);
      if ("progress" in event) {
        this.bar.value = event.progress;
        this.say("");
      }
      if (event.before) this.say(`${plural(event.before, "request")} before this one.`);
    };
    try {
      const result = await ask(task, body, { signal: controller.signal, onEvent, file });
      return isOurs() ? result : undefined;
    } catch (error) {
      if (!isOurs()) return undefined;
      if (error.name === "AbortError") this.say("Stopped.");
      else this.complain(error.message);
      return undefined;
    } finally {
      clearTimeout(late);
      if (isOurs()) {
        this.start.disabled = false;
        this.halt.hidden = this.bar.hidden = true;
      }
    }
  }
}
