// What a page of bmtpt adds to its charts and tables: values on hover, sorting, filtering. A chart's values are read from
// the table in the same block, so the two cannot differ. Without scripts the page lacks nothing else.
"use strict";

const FEWEST_TO_FILTER = 8; // rows
const REACH = 40; // how far from a mark it is still meant, in CSS pixels

const make = (name, properties, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

// Tables

const NUMBER = /^[-−+]?[\d,]*\.?\d+(e[-−+]?\d+)?/i;
const words = new Intl.Collator("en", { numeric: true });

// "1,234 (0.5 %)" is 1234, "−1.4 [−2, 0]" is −1.4; "–" is nothing.
const number = (text) => {
  const found = NUMBER.exec(text);
  return found ? Number(found[0].replaceAll("−", "-").replaceAll(",", "")) : NaN;
};

const textOf = (row, column) => row.cells[column].textContent.trim();

// Rows without a value stay last, and equal ones in the order of the page.
const ordered = (rows, column, sign) => {
  const texts = new Map(rows.map((row) => [row, textOf(row, column)]));
  const values = new Map(rows.map((row) => [row, number(texts.get(row))]));
  const numeric = 2 * rows.filter((row) => !isNaN(values.get(row))).length > rows.length;
  const missing = (row) => (numeric ? isNaN(values.get(row)) : ["", "–"].includes(texts.get(row)));
  const compare = numeric
    ? (a, b) => values.get(a) - values.get(b)
    : (a, b) => words.compare(texts.get(a), texts.get(b));
  return rows.toSorted((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(a, b)));
};

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

const makeSortable = (table, rows) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => {
      const order = NEXT[head.ariaSort ?? "none"];
      for (const other of heads) other.ariaSort = other === head ? order : "none";
      const sorted = order === "none" ? rows : ordered(rows, column, order === "ascending" ? 1 : -1);
      table.tBodies[0].append(...sorted);
    });
    head.append(button);
    head.ariaSort = "none";
  });
};

const makeFilter = (table, rows) => {
  const input = make("input", { type: "search", placeholder: "words of a row" });
  const count = make("output", {});
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !wanted.every((word) => row.textContent.toLowerCase().includes(word));
    const left = rows.filter((row) => !row.hidden).length;
    count.value = wanted.length ? `${left} of ${rows.length} rows` : "";
  });
  const bar = make("div", { className: "filter" }, make("label", {}, "Filter ", input), count);
  table.parentElement.before(bar);
};

// Charts

const makeReadable = (chart, table, rows) => {
  const svg = chart.querySelector("svg");
  const { width, height } = svg.viewBox.baseVal;
  const marks = chart.dataset.marks.split(" ").map((mark) => mark.split(",").map(Number));
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
  const first = Number(table.dataset.words); // column of numbers
  const tip = make("output", { className: "tip", hidden: true });
  const ring = make("div", { className: "ring", hidden: true });
  chart.append(ring, tip);
  let current = -1;

  const hide = () => {
    rows[marks[current]?.[0]]?.classList.remove("current");
    tip.hidden = ring.hidden = true;
    current = -1;
  };

  const show = (index) => {
    if (index === current) return;
    hide();
    current = index;
    const [at, column, x, y] = marks[index];
    const row = rows[at];
    const columns = column < 0 ? [...heads.keys()].slice(first) : [column];
    const values = columns.map((each) => `${heads[each]}: ${textOf(row, each)}`);
    const names = [...heads.keys()].slice(0, first).map((each) => textOf(row, each));
    tip.replaceChildren(make("b", {}, names.join(", ")), ...values.map((value) => make("span", {}, value)));
    row.classList.add("current");
    tip.hidden = ring.hidden = false;
    const box = svg.getBoundingClientRect();
    const [left, top] = [(x / width) * box.width, (y / height) * box.height];
    Object.assign(ring.style, { left: `${left}px`, top: `${top}px` });
    const room = chart.scrollLeft + chart.clientWidth - tip.offsetWidth - 4;
    const below = top + tip.offsetHeight + 14 <= box.height;
    tip.style.left = `${Math.max(chart.scrollLeft, Math.min(left + 10, room))}px`;
    tip.style.top = `${below ? top + 10 : Math.max(0, top - tip.offsetHeight - 10)}px`;
  };

  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const away = marks.map((mark) => Math.hypot((mark[2] / width) * box.width - x, (mark[3] / height) * box.height - y));
    const nearest = away.indexOf(Math.min(...away));
    if (away[nearest] <= REACH) show(nearest);
    else hide();
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const to = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: marks.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(to, marks.length - 1)));
  });
};

for (const block of document.querySelectorAll(".block")) {
  const table = block.querySelector("table[data-words]");
  const rows = [...table.tBodies[0].rows];
  for (const chart of block.querySelectorAll("[data-marks]")) makeReadable(chart, table, rows);
  if (rows.length > 1) makeSortable(table, rows);
  if (rows.length >= FEWEST_TO_FILTER) makeFilter(table, rows);
}
for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;
