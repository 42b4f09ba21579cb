"use strict";
const known = JSON.parse(document.getElementById("runs").textContent);
const panel = document.getElementById("panel");
const body = document.getElementById("panel-body");
const SHOWN = 60;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// The numbers behind "3-5 9".
function numbers(ranges) {
  return ranges.split(" ").flatMap(range => {
    const [first, last = first] = range.split("-").map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

function stateOf(number) {
  return known.texts[known.runs[number][1]];
}

function describe(number) {
  const [id, , seed, command, difference, commit, dirty, seconds, proof, outcome] = known.runs[number];
  const box = element("div", undefined, "run");
  box.tabIndex = -1;
  const head = element("p");
  head.append(element("span", stateOf(number), "state " + stateOf(number)));
  head.append(` · seed ${seed} · run ${id}`);
  box.append(head);
  if (outcome) box.append(element("p", "Outcome: " + outcome));
  if (known.texts[difference]) {
    box.append(element("p", "Unlike most runs of its table: " + known.texts[difference]));
  }
  if (commit !== undefined) {
    box.append(element("p", "Init proof: " + known.texts[proof]));
    const changed = dirty ? " with uncommitted changes" : "";
    box.append(element("p", `Commit ${known.texts[commit]}${changed}, ${seconds} s`));
  }
  box.append(element("code", known.texts[command].replace("{seed}", seed)));
  return box;
}

function more(runs, from) {
  for (const run of runs.slice(from, from + SHOWN)) body.append(describe(run));
  const left = runs.length - from - SHOWN;
  if (left <= 0) return;
  const button = element("button", `Show ${Math.min(left, SHOWN)} more of ${left}`, "all");
  button.type = "button";
  button.addEventListener("click", () => {
    const before = button.previousElementSibling;
    button.remove();
    more(runs, from + SHOWN);
    before.nextElementSibling.focus();   // where the button was: a keyboard goes on from there
  });
  body.append(button);
}

// Its row and column; the artefact, of all its runs.
function labelOf(button) {
  const cell = button.closest("td");
  if (!cell) return button.closest("section").querySelector("h2").textContent;
  const head = cell.closest("table").tHead.rows[0].cells[cell.cellIndex];
  return `${cell.parentNode.cells[0].textContent}, ${head.textContent}`;
}

function open(button) {
  const runs = numbers(button.dataset.runs);
  const states = {};
  for (const run of runs) states[stateOf(run)] = (states[stateOf(run)] || 0) + 1;
  const counts = Object.entries(states).map(([state, count]) => `${count} ${state}`).join(", ");
  document.getElementById("panel-title").textContent = `${labelOf(button)}: ${counts}`;
  body.replaceChildren();
  more(runs, 0);
  panel.showModal();
  panel.scrollTop = 0;
}

// What a cell is sorted by: its first number, NaN where it has none.
function numberIn(cell) {
  const found = cell.textContent.match(/[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?/);
  return found ? Number(found[0].replace("−", "-")) : NaN;
}

function compare(a, b, column, sign) {
  const cells = [a, b].map(row => row.children[column]);
  if (column === 0) return sign * cells[0].textContent.localeCompare(cells[1].textContent);
  const [x, y] = cells.map(numberIn);
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);   // what has no number stands last, either way
  return sign * (x - y);
}

function sort(button) {
  const head = button.closest("th");
  const column = [...head.parentNode.children].indexOf(head);
  const table = head.closest("table");
  const rows = table.tBodies[0];
  if (!table.original) table.original = [...rows.rows].map(row => [row, row.className]);
  const next = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort") || "none"];
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  for (const [row, className] of table.original) row.className = next === "none" ? className : "";
  let order = table.original.map(([row]) => row);
  if (next !== "none") {
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    order = [...order].sort((a, b) => compare(a, b, column, sign));
  }
  rows.append(...order);
}

for (const head of document.querySelectorAll("main thead th")) {
  const button = element("button", undefined, "sort");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
}

document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) {
    if (event.target === panel) panel.close();
  } else if (button.matches(".cell, section .all")) {
    open(button);
  } else if (button.matches(".sort")) {
    sort(button);
  }
});
