// Small helpers. Texts of people and of models only ever become text nodes.

export const at = id => document.getElementById(id);

export function make(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter(child => child !== null));
  return node;
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// The colour of a number from 0 to 1: --bad, --mid, --good and what lies between them.
export function tint(node, score) {
  if (score === null) {
    node.style.removeProperty("--tone");
    return;
  }
  const share = Math.round(200 * Math.abs(score - 0.5));
  const end = score < 0.5 ? "--bad" : "--good";
  node.style.setProperty("--tone", `color-mix(in oklab, var(${end}) ${share}%, var(--mid))`);
}

export function showErrors(box, messages) {
  box.replaceChildren(...messages.map(message => make("p", "error", message)));
}

// One piece of work at a time in a form: its button, and one that cancels.
export function busy(form, go, cancel, work) {
  let controller = null;
  const run = async () => {
    controller?.abort();
    const mine = controller = new AbortController();
    go.disabled = true;
    cancel.hidden = false;
    form.setAttribute("aria-busy", "true");
    try {
      await work(mine.signal);
    } finally {
      if (controller === mine) {
        controller = null;
        if (document.activeElement === cancel) go.disabled = false, go.focus();
        go.disabled = false;
        cancel.hidden = true;
        form.removeAttribute("aria-busy");
      }
    }
  };
  form.addEventListener("submit", event => {
    event.preventDefault();
    run();
  });
  cancel.addEventListener("click", () => controller?.abort());
}
