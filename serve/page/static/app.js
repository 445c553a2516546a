// The page: which view is shown, the key, and what the service says of itself.

import { startBrowsing } from "./browse.js";
import { at } from "./dom.js";
import { startJudging } from "./judge.js";
import { Server } from "./server.js";
import { startSolving } from "./solve.js";

const VIEWS = ["judge", "solve", "run"];
const own = new Server("", () => at("key").value);
let health = null;

startJudging(own);
startSolving(own);
const browse = startBrowsing(own);

function show() {
  const wanted = location.hash.slice(1);
  if (wanted === "main") return; // the link that skips to the content
  const view = VIEWS.includes(wanted) ? wanted : VIEWS[0];
  for (const name of VIEWS) at(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${at(`${view}-title`).textContent} · StepWiser`;
  if (view === "run" && health?.run && (!health.token_required || at("key").value)) browse();
}

async function connect() {
  try {
    health = await own.json("health");
  } catch (error) {
    at("model").textContent = error.message;
    return;
  }
  const model = health.model ? `${health.model.name} · weights ${health.model.weight_version} · ` : "";
  at("model").textContent = health.ready ? `${model}v${health.version}` : `not ready: ${health.error}`;
  at("key-box").hidden = !health.token_required;
  at("solve-missing").hidden = health.policy !== null;
  at("solve-form").hidden = health.policy === null;
  at("run-missing").hidden = health.run !== null;
  at("run-form").hidden = health.run === null;
  show();
}

addEventListener("hashchange", show);
at("key").addEventListener("change", show);
show();
connect();
