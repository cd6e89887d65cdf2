// The page: its tabs, and the model that all of them use.

import { AboutTab } from "./about.js";
import { ask, listModels } from "./api.js";
import { CompleteTab } from "./complete.js";
import { OrdersTab } from "./orders.js";
import { fill } from "./page.js";
import { SampleTab } from "./sample.js";
import { ScoreTab } from "./score.js";

const panels = [...document.querySelectorAll("[role=tabpanel]")];
const buttons = [...document.querySelectorAll("[role=tab]")];
const chooser = document.querySelector("#model");
const problem = document.querySelector("#problem");
const kinds = { complete: CompleteTab, score: ScoreTab, sample: SampleTab, orders: OrdersTab, about: AboutTab };
const tabs = Object.fromEntries(panels.map((panel) => [panel.id, new kinds[panel.id](panel)]));

function open(id) {
  for (const panel of panels) panel.hidden = panel.id !== id;
  for (const button of buttons) {
    const isOpen = button.getAttribute("aria-controls") === id;
    button.setAttribute("aria-selected", isOpen);
    button.tabIndex = isOpen ? 0 : -1;
  }
  history.replaceState(null, "", `#${id}`);
}

buttons.forEach((button, place) => {
  button.addEventListener("click", () => open(button.getAttribute("aria-controls")));
  button.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = buttons[(place + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  });
});

async function choose() {
  const model = Number(chooser.value);
  problem.textContent = "";
  document.body.setAttribute("aria-busy", "true");
  try {
    const info = await ask("describe", { model });
    if (model !== Number(chooser.value)) return;
    await Promise.all(Object.values(tabs).map((tab) => tab.setModel(model, info)));
  } catch (error) {
    problem.textContent = error.message;
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

const first = location.hash.slice(1);
open(first in tabs ? first : "complete");
chooser.addEventListener("change", choose);
try {
  fill(chooser, (await listModels()).map((name, index) => [index, name]));
  await choose();
} catch {
  problem.textContent = "The program does not answer. Is it still running?";
}
