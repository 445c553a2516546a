// Steps of a solution as a list of cards, each with what one judge or two say about it.

import { make, plural, tint } from "./dom.js";
import { fill } from "./maths.js";

const PREVIEW = 90; // characters of an analysis that are shown while it is written

export const verdictWord = verdict => verdict ?? "no verdict";
const sign = verdict => ({ Positive: "✓", Negative: "✗" })[verdict] ?? "?";

export function chip(score, verdict, whose = "") {
  const node = make("span", "chip",
    make("b", "", score === null ? "–" : score.toFixed(2)),
    make("span", "", `${sign(verdict)} ${verdictWord(verdict)}`));
  if (whose) node.prepend(make("small", "", whose));
  tint(node, score);
  return node;
}

export class StepList {
  constructor(list, judges) {
    this.list = list;
    this.judges = judges;
    this.cards = [];
    list.classList.toggle("two", judges.length > 1);
    list.replaceChildren();
  }

  // Before any verdict: the texts as they were pasted.
  expect(texts) {
    texts.forEach((text, index) => fill(this.card(index).text, text.trim()));
  }

  card(index) {
    while (this.cards.length <= index) this.cards.push(this.#make(this.cards.length));
    return this.cards[index];
  }

  write(judge, index, text) {
    const card = this.card(index);
    const part = card.parts[judge];
    part.written += text;
    part.analysis.textContent = part.written;
    const shown = part.written.replace(/\s+/g, " ");
    part.live.textContent = shown.length > PREVIEW ? `…${shown.slice(-PREVIEW)}` : shown;
  }

  decide(judge, step) {
    const card = this.card(step.index);
    const part = card.parts[judge];
    fill(card.text, step.text.trim());
    fill(part.analysis, step.analysis.trim() || "(the judge wrote nothing)");
    part.live.remove();
    part.step = step;
    const whose = this.judges.length > 1 ? "AB"[judge] : "";
    part.chip.replaceWith(part.chip = chip(step.score, step.verdict, whose));
    if (judge === 0) tint(card.item, step.score);
    part.votes.replaceChildren(...votes(step));
    const verdicts = card.parts.map(other => other.step?.verdict);
    const differ = verdicts.length > 1 && !verdicts.includes(undefined) && verdicts[0] !== verdicts[1];
    card.item.classList.toggle("differ", differ);
    card.note.textContent = differ ? "≠ they differ" : "";
  }

  // The judge's own name, and a mark at its first Negative.
  finish(judge, name, first) {
    if (this.judges.length > 1) {
      for (const card of this.cards) card.parts[judge].title.textContent = `${"AB"[judge]}: ${name}`;
    }
    const card = this.cards[first];
    if (!card) return;
    card.item.classList.add("first");
    const whose = this.judges.length > 1 ? ` of ${"AB"[judge]}` : "";
    card.parts[judge].chip.append(make("small", "", `first${whose}`));
  }

  // How many steps both have judged, and on which of them they differ.
  agreement() {
    const both = this.cards.filter(card => card.parts.every(part => part.step));
    const differ = both.filter(card => card.item.classList.contains("differ"));
    return [both.length, differ.map(card => this.cards.indexOf(card) + 1)];
  }

  #make(index) {
    const text = make("div", "step-text");
    const note = make("span", "note");
    const parts = this.judges.map((name, judge) => {
      const analysis = make("div", "analysis");
      const live = make("p", "live");
      live.setAttribute("aria-hidden", "true"); // the analysis in the card says the same
      const label = this.judges.length > 1 ? `${"AB"[judge]}: ${name}` : "Analysis";
      const votesBox = make("div", "votes");
      const title = make("h3", "", label);
      return {
        written: "", title, analysis, live, votes: votesBox, step: null,
        chip: make("span", "chip waiting", "…"),
        box: make("section", "opinion", title, analysis, votesBox),
      };
    });
    const chips = make("span", "chips", ...parts.map(part => part.chip), note);
    const details = make("details", "",
      make("summary", "", make("span", "number", `${index + 1}`), text, chips),
      make("div", "opinions", ...parts.map(part => part.box)));
    const item = make("li", "step", details, ...parts.map(part => part.live));
    this.list.append(item);
    return { item, text, note, parts };
  }
}

function votes(step) {
  const marks = make("span", "marks", ...step.votes.map(vote => {
    const mark = make("i", vote ?? "none", sign(vote));
    return mark;
  }));
  marks.setAttribute("aria-hidden", "true");
  const counts = ["Positive", "Negative", null]
    .map(verdict => [verdict, step.votes.filter(vote => vote === verdict).length])
    .filter(([, count]) => count)
    .map(([verdict, count]) => `${count} ${verdictWord(verdict)}`);
  const cut = step.truncated ? `, ${step.truncated} cut off at the token limit` : "";
  return [marks, make("span", "", `${plural(step.votes.length, "vote")}: ${counts.join(", ")}; ` +
    `${plural(step.tokens, "token")}${cut}`)];
}
