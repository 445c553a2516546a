// The view "Solve": chunk-reset as it goes, rejected chunks struck through.

import { at, busy, make, plural, showErrors, tint } from "./dom.js";
import { fill } from "./maths.js";
import { chip } from "./steps.js";

export function startSolving(own) {
  busy(at("solve-form"), at("solve-go"), at("solve-cancel"), async signal => {
    showErrors(at("solve-errors"), []);
    at("solve-steps").replaceChildren();
    at("solve-status").textContent = "Solving…";
    const body = { problem: at("solve-problem").value, stream: true };
    if (at("solve-tries").value) body.samples_per_chunk = Number(at("solve-tries").value);
    try {
      await solve(own, body, signal);
    } catch (error) {
      at("solve-status").textContent = signal.aborted ? "Cancelled" : "";
      if (!signal.aborted) showErrors(at("solve-errors"), [error.message]);
    }
  });
}

async function solve(own, body, signal) {
  const list = at("solve-steps");
  const tried = []; // by round, then by sample
  let tokens = 0;
  for await (const [name, data] of own.events("v1/solve", { body, signal })) {
    if (name === "chunk") {
      const round = tried[data.round] ??= [];
      if (!round.length) list.append(round.item = make("li", "step solving"));
      const node = attempt(data, round.length + 1);
      round.push(node);
      round.item.append(node);
      if (data.accepted) tint(round.item, data.score);
      tokens += data.policy_tokens + data.judge_tokens;
      at("solve-status").textContent =
        `${plural(tried.length, "chunk")}, ${plural(tokens, "token")} so far`;
    } else if (name === "kept") {
      const { item } = tried[data.round];
      const node = tried[data.round][data.sample];
      node.replaceWith(stands(node));
      tint(item, data.score);
    } else if (name === "done") {
      finish(data);
    }
  }
}

function attempt(data, number) {
  const text = make(data.accepted ? "div" : "del", "step-text");
  fill(text, data.text.trim());
  const note = data.accepted ? "" : `rejected, try ${number}`;
  const head = make("div", "head", text,
    make("span", "chips", chip(data.score, data.verdict), make("span", "note", note)));
  const node = make("div", data.accepted ? "tried" : "tried rejected", head);
  if (data.analysis) {
    node.append(make("details", "", make("summary", "", "Analysis"),
      fill(make("div", "analysis"), data.analysis.trim())));
  }
  return node;
}

// A rejected attempt that is kept for lack of a better one.
function stands(node) {
  node.className = "tried";
  const crossed = node.querySelector("del");
  crossed.replaceWith(make("div", "step-text", ...crossed.childNodes));
  node.querySelector(".note").textContent = "all tries rejected; the best of them stands";
  return node;
}

function finish(data) {
  const { usage } = data;
  const answer = make("b", "");
  if (data.answer === null) answer.textContent = "No final answer";
  else fill(answer, `Answer: $${data.answer}$`);
  const total = usage.accepted_tokens + usage.rejected_tokens + usage.judge_tokens;
  at("solve-status").replaceChildren(make("span", "", answer, make("small", "",
    `${total} tokens: ${usage.accepted_tokens} accepted, ${usage.rejected_tokens} rejected, ` +
    `${usage.judge_tokens} of the judge · ${(usage.milliseconds / 1000).toFixed(2)} s` +
    (data.forced ? ` · ${plural(data.forced, "chunk")} kept though rejected` : "") +
    (data.finished ? "" : " · cut off"))));
}
