"use strict";
const runs = JSON.parse(document.getElementById("runs").textContent);
const panel = document.getElementById("panel");
const body = document.getElementById("panel-body");
const SHOWN = 60;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function describe(id) {
  const run = runs[id];
  const box = element("div", undefined, "run");
  const head = element("p");
  head.append(element("span", run ? run.state : "no longer listed", "state " + (run ? run.state : "")));
  head.append(run ? ` · seed ${run.seed} · run ${id}` : ` · run ${id}`);
  box.append(head);
  if (!run) return box;
  if (run.test) box.append(element("p", "Test: " + run.test));
  if (run.difference.length) {
    box.append(element("p", "Unlike most runs of its table: " + run.difference.join(", ")));
  }
  if (run.proof) box.append(element("p", "Init proof: " + run.proof));
  if (run.commit) {
    box.append(element("p", `Commit ${run.commit}${run.dirty ? " with uncommitted changes" : ""}, ${run.seconds} s`));
  }
  box.append(element("code", run.command));
  return box;
}

function more(ids, from) {
  for (const id of ids.slice(from, from + SHOWN)) body.append(describe(id));
  const left = ids.length - from - SHOWN;
  if (left <= 0) return;
  const button = element("button", `Show ${Math.min(left, SHOWN)} more of ${left}`, "all");
  button.type = "button";
  button.addEventListener("click", () => { button.remove(); more(ids, from + SHOWN); });
  body.append(button);
}

function open(button) {
  const ids = button.dataset.runs.split(" ");
  const states = {};
  for (const id of ids) {
    const state = runs[id] ? runs[id].state : "no longer listed";
    states[state] = (states[state] || 0) + 1;
  }
  const counts = Object.entries(states).map(([state, count]) => `${count} ${state}`).join(", ");
  document.getElementById("panel-title").textContent = `${button.dataset.label}: ${counts}`;
  body.replaceChildren();
  more(ids, 0);
  panel.showModal();
  panel.scrollTop = 0;
}

function compare(a, b, column) {
  const cells = [a, b].map(row => row.children[column]);
  const [x, y] = cells.map(cell => cell.dataset.n === undefined ? cell.textContent : cell.dataset.n);
  if (cells[0].dataset.n === undefined) return x.localeCompare(y);
  if (x === "" || y === "") return (x === "") - (y === "");   // what has no number stands last, either way
  return Number(x) - Number(y);
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
    const empty = row => row.children[column].dataset.n === "";
    order = [...order].sort((a, b) => {
      const difference = compare(a, b, column);
      return empty(a) !== empty(b) ? difference : sign * difference;
    });
  }
  rows.append(...order);
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
