// The view "Labelled run": solutions with the value of each chunk and the rollouts behind it.

import { at, make, plural, showErrors, tint } from "./dom.js";
import { fill } from "./maths.js";

const LIMIT = 10;
const MOST_MARKS = 64;

export function startBrowsing(own) {
  let offset = 0;
  async function show() {
    const outcome = at("run-outcome").value;
    try {
      const page = await own.json(`v1/run?offset=${offset}&limit=${LIMIT}&outcome=${outcome}`);
      showErrors(at("run-errors"), []);
      const last = offset + page.solutions.length;
      at("run-status").textContent = page.total
        ? `${page.name}: ${offset + 1} to ${last} of ${plural(page.total, "solution")}`
        : `${page.name}: none`;
      at("run-before").disabled = offset === 0;
      at("run-after").disabled = last >= page.total;
      at("run-solutions").replaceChildren(...page.solutions.map(solution));
    } catch (error) {
      showErrors(at("run-errors"), [error.message]);
    }
  }
  const move = by => () => {
    offset = Math.max(0, offset + by);
    show();
  };
  at("run-form").addEventListener("submit", event => event.preventDefault());
  at("run-before").addEventListener("click", move(-LIMIT));
  at("run-after").addEventListener("click", move(LIMIT));
  at("run-outcome").addEventListener("change", () => {
    offset = 0;
    show();
  });
  return show;
}

function solution(row) {
  const start = row.start_trials
    ? `${row.start_successes} of ${row.start_trials} responses right` : "";
  const tags = [
    row.correct ? "✓ final answer right" : "✗ final answer wrong",
    `wanted ${row.answer}, found ${row.final_answer ?? "none"}`,
    start,
  ];
  return make("article", "card",
    fill(make("h3", "problem"), row.problem),
    make("p", "tags", ...tags.filter(tag => tag).map(tag => make("span", "", tag))),
    make("ol", "steps", ...row.chunks.map(chunk)));
}

function chunk(row, index) {
  const value = row.value;
  const chips = make("span", "chips");
  const number = make("span", "chip",
    make("b", "", value ? `Q ${value.mean.toFixed(2)}` : "not valued"));
  if (row.label !== null) {
    number.append(make("span", "", row.label ? "✓ labelled Positive" : "✗ labelled Negative"));
  }
  chips.append(number);
  const summary = make("summary", "", make("span", "number", `${index + 1}`),
    fill(make("div", "step-text"), row.text.trim()), chips);
  const item = make("li", "step", make("details", "", summary, make("div", "opinions",
    make("section", "opinion", make("h4", "", "Behind the value"), ...behind(value)))));
  tint(item, value ? value.mean : null);
  tint(number, value ? value.mean : null);
  return item;
}

function behind(value) {
  if (!value) return [make("p", "", "Labels did not need this prefix to be valued.")];
  if (value.is_outcome) {
    return [make("p", "", "The prefix holds the final answer: its value is the outcome.")];
  }
  const wrong = value.trials - value.successes;
  const bar = make("div", "marks");
  bar.setAttribute("aria-hidden", "true");
  const scale = Math.max(1, value.trials / MOST_MARKS);
  for (let i = 0; i < Math.round(value.successes / scale); i++) bar.append(make("i", "Positive", "✓"));
  for (let i = 0; i < Math.round(wrong / scale); i++) bar.append(make("i", "Negative", "✗"));
  const facts = [
    `${value.successes} of ${plural(value.trials, "rollout")} from here end right; 95 % interval ` +
      `${value.low.toFixed(2)} to ${value.high.toFixed(2)}`,
    value.trials < value.planned ? `stopped early, ${value.planned} were planned` : "",
    `first wave ${value.first_successes} of ${value.first_trials}`,
    value.truncated ? `${value.truncated} cut off at the token limit` : "",
    value.unverifiable ? `${value.unverifiable} more could not be checked` : "",
    value.tokens ? plural(value.tokens, "token")
      : "shared with another solution that begins in the same way",
  ];
  return [bar, make("ul", "facts", ...facts.filter(fact => fact).map(fact => make("li", "", fact)))];
}
