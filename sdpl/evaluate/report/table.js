// Sorts and filters the table of categories, and counts precision, recall and F1 again at another threshold.
"use strict";
const table = document.getElementById("categories");
const body = table.tBodies[0];
const value = cell => (cell.dataset.value === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.value));
table.tHead.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  const head = button.parentElement;
  const down = head.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a.cells[head.cellIndex]), y = value(b.cells[head.cellIndex]);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
  });
  body.append(...rows);
});
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
});
const slider = document.getElementById("threshold");
if (slider) {
  const counts = JSON.parse(document.getElementById("counts").textContent);
  const own = [...body.rows].map(row => [...row.cells].map(cell => [cell.textContent, cell.dataset.value]));
  const rows = [...body.rows];
  const show = (cell, number, digits) => {
    cell.textContent = Number.isNaN(number) ? "–" : number.toFixed(digits);
    cell.dataset.value = number;
  };
  slider.addEventListener("input", () => {
    const at = Number(slider.value);
    document.getElementById("chosen").textContent = (at / 100).toFixed(2);
    rows.forEach((row, i) => {
      const [positive, negative] = counts[i];
      const hits = positive[at], claims = hits + negative[at], all = positive[0];
      const precision = claims ? 100 * hits / claims : NaN, recall = all ? 100 * hits / all : NaN;
      show(row.cells[6], at / 100, 2);
      show(row.cells[7], precision, 1);
      show(row.cells[8], recall, 1);
      show(row.cells[9], all + claims ? 200 * hits / (all + claims) : NaN, 1);
    });
  });
  document.getElementById("reset").addEventListener("click", () => {
    document.getElementById("chosen").textContent = "the model's own";
    rows.forEach((row, i) => own[i].forEach(([text, data], c) => {
      if (c < 6) return;
      row.cells[c].textContent = text;
      row.cells[c].dataset.value = data;
    }));
  });
}
