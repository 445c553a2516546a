// The view "Judge": one solution, judged by this service and, where one is named, by a second one.

import { at, busy, make, plural, showErrors } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { Server } from "./server.js";
import { StepList } from "./steps.js";

// Only to show the steps before the service has cut them itself.
function cut(text) {
  const chunks = [...text.matchAll(/<chunk>([\s\S]*?)<\/chunk>/g)].map(match => match[1]);
  return chunks.length ? chunks : text.split(/\n\s*\n/).filter(step => step.trim());
}

export function startJudging(own) {
  for (const example of EXAMPLES) at("example").append(new Option(example.name, example.name));
  at("example").addEventListener("change", () => {
    const chosen = EXAMPLES.find(example => example.name === at("example").value);
    if (!chosen) return;
    at("problem").value = chosen.problem;
    at("solution").value = chosen.solution;
  });
  for (const id of ["problem", "solution"]) {
    at(id).addEventListener("input", () => { at("example").value = ""; });
  }
  busy(at("judge-form"), at("judge-go"), at("judge-cancel"), signal => judge(own, signal));
}

async function judge(own, signal) {
  const servers = [own];
  if (at("second").open && at("second-address").value) {
    servers.push(new Server(at("second-address").value, () => at("second-key").value));
  }
  const body = {
    problem: at("problem").value,
    response: at("solution").value,
    stop_at_first_negative: at("stop-at-first").checked,
    stream: true,
  };
  if (at("votes").value) body.votes = Number(at("votes").value);
  const list = new StepList(at("judge-steps"), servers.map(server => server.name));
  const expected = cut(body.response);
  list.expect(expected);
  at("judge-legend").hidden = false;
  showErrors(at("judge-errors"), []);
  let judged = 0;
  const tell = () => {
    at("judge-status").textContent =
      `Judging: ${judged} of ${servers.length * expected.length} verdicts`;
  };
  tell();

  async function ask(server, index) {
    for await (const [name, data] of server.events("v1/judge", { body, signal })) {
      if (name === "analysis") {
        list.write(index, data.index, data.text);
      } else if (name === "step") {
        list.decide(index, data);
        judged++;
        tell();
      } else if (name === "done") {
        const { name: model, weight_version: weights } = data.model;
        list.finish(index, `${model}, weights ${weights}, ${server.name}`, data.first_negative);
        return data;
      }
    }
    throw new Error(`${server.name} ended without an answer`);
  }

  const answers = await Promise.allSettled(servers.map(ask));
  if (signal.aborted) {
    at("judge-status").textContent = "Cancelled";
    return;
  }
  const failed = answers.filter(answer => answer.status === "rejected");
  showErrors(at("judge-errors"), failed.map(answer => answer.reason.message));
  const sentences = answers.flatMap((answer, i) =>
    answer.status === "fulfilled" ? [summary(answer.value, servers.length > 1 ? "AB"[i] : "")] : []);
  if (servers.length > 1 && !failed.length) sentences.push(make("span", "", agreement(list)));
  at("judge-status").replaceChildren(...sentences);
  if (!sentences.length) at("judge-steps").replaceChildren();
  at("judge-legend").hidden = !sentences.length;
}

function summary(answer, whose) {
  const first = answer.first_negative;
  const count = answer.steps.length;
  const undecided = answer.steps.filter(step => step.verdict === null).length;
  const found = first >= 0 ? `First Negative: step ${first + 1}`
    : `No Negative in ${plural(count, "step")}`;
  const { usage, model } = answer;
  const facts = [
    undecided ? `${plural(undecided, "step")} without a verdict` : "",
    `${plural(count, "step")} judged by ${model.name}, weights ${model.weight_version}`,
    `${usage.prompt_tokens} tokens read, ${usage.judge_tokens} written`,
    `${(usage.milliseconds / 1000).toFixed(2)} s`,
  ];
  return make("span", "", make("b", "", whose ? `${whose}: ${found}` : found),
    make("small", "", facts.filter(fact => fact).join(" · ")));
}

function agreement(list) {
  const [both, differ] = list.agreement();
  if (!differ.length) return `They agree on ${plural(both, "step")}.`;
  return `They agree on ${both - differ.length} of ${plural(both, "step")} and differ on ` +
    `${differ.length === 1 ? "step" : "steps"} ${differ.join(", ")}.`;
}
