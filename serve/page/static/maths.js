// Texts with mathematics: KaTeX for what stands between delimiters, text nodes for all else.

const DELIMITED = [
  /\$\$([\s\S]+?)\$\$/y,
  /\\\[([\s\S]+?)\\\]/y,
  /\\\(([\s\S]+?)\\\)/y,
  // As in pandoc: amounts of money are no mathematics.
  /\$(?=\S)((?:[^$\\\n]|\\.)+?)(?<=\S)\$(?!\d)/y,
];
const DISPLAYED = 2; // the first two

// [source, formula, displayed] of the mathematics that begins at `from`, else null.
function mathsAt(text, from) {
  for (const [i, pattern] of DELIMITED.entries()) {
    pattern.lastIndex = from;
    const found = pattern.exec(text);
    if (found) return [found[0], found[1], i < DISPLAYED];
  }
  if (!text.startsWith("\\boxed{", from)) return null;
  let depth = 0;
  for (let end = from + 6; end < text.length; end++) {
    if (text[end] === "\\") end++;
    else if (text[end] === "{") depth++;
    else if (text[end] === "}" && --depth === 0) {
      const source = text.slice(from, end + 1);
      return [source, source.replace(/^\\boxed\{([A-Za-z ]{2,})\}$/, "\\boxed{\\text{$1}}"), false];
    }
  }
  return null;
}

function typeset(source, formula, displayMode) {
  const node = document.createElement("span");
  try {
    window.katex.render(formula, node, {
      displayMode, strict: "ignore", trust: false, maxSize: 20, maxExpand: 500,
    });
  } catch {
    return document.createTextNode(source); // no formula after all: as it was written
  }
  return node;
}

export function fill(node, text) {
  const parts = [];
  let plain = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== "$" && text[i] !== "\\") continue;
    const found = mathsAt(text, i);
    if (!found) {
      if (text[i] === "\\") i++;
      continue;
    }
    parts.push(document.createTextNode(text.slice(plain, i)), typeset(...found));
    plain = i + found[0].length;
    i = plain - 1;
  }
  parts.push(document.createTextNode(text.slice(plain)));
  node.replaceChildren(...parts);
  return node;
}
