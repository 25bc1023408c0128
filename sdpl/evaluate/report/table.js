// Sorts and filters the table of categories, and counts precision, recall and F1 again at another threshold.
"use strict";
const table = document.getElementById("categories");
const body = table.tBodies[0], rows = [...body.rows];
const heads = [...table.tHead.querySelectorAll("button")].map(button => button.parentElement); // in the columns' order
const value = cell => (cell.dataset.value === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.value));
const sort = () => {
  const head = heads.find(one => one.hasAttribute("aria-sort")), column = heads.indexOf(head);
  if (!head) return;
  const turn = head.getAttribute("aria-sort") === "descending" ? -1 : 1;
  body.append(...[...body.rows].sort((a, b) => {
    const x = value(a.cells[column]), y = value(b.cells[column]);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return (x < y ? -1 : x > y ? 1 : 0) * turn;
  }));
};
table.tHead.addEventListener("click", event => {
  const head = event.target.closest("button")?.parentElement;
  if (!head) return;
  const first = heads.indexOf(head) ? "descending" : "ascending", before = head.getAttribute("aria-sort");
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", before !== first ? first : first === "ascending" ? "descending" : "ascending");
  sort();
});
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  document.getElementById("found").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
});
const slider = document.getElementById("threshold");
if (slider) {
  const counts = JSON.parse(document.getElementById("counts").textContent);
  const own = rows.map(row => [...row.cells].map(cell => [cell.textContent, cell.dataset.value]));
  const chosen = document.getElementById("chosen"), effect = document.getElementById("effect");
  const say = text => {
    chosen.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };
  // As the page's other numbers, which Python rounds: of two equally near, the even one.
  const percent = x => (Number.isNaN(x) ? "–" : 0 < x && x < 0.05 ? "<0.1" : x % 1 === 0.25 ? `${Math.trunc(x)}.2` : x.toFixed(1));
  const show = (cell, number, text) => {
    cell.textContent = text;
    cell.dataset.value = number;
  };
  slider.addEventListener("input", () => {
    const at = Number(slider.value);
    say((at / 100).toFixed(2));
    const sums = [[0, 0], [0, 0], [0, 0]]; // of precision, recall and F1 where they are defined, and how many are
    rows.forEach((row, i) => {
      const [positive, negative] = counts[i];
      const hits = positive[at], claims = hits + negative[at], all = positive[0];
      show(row.cells[6], at / 100, (at / 100).toFixed(2));
      const found = [claims ? 100 * hits / claims : NaN, all ? 100 * hits / all : NaN, all + claims ? 200 * hits / (all + claims) : NaN];
      found.forEach((number, c) => {
        show(row.cells[7 + c], number, percent(number));
        if (!Number.isNaN(number)) sums[c] = [sums[c][0] + number, sums[c][1] + 1];
      });
    });
    const [precision, recall, f1] = sums.map(([sum, count]) => percent(count ? sum / count : NaN));
    effect.textContent = `mean of the categories: precision ${precision}, recall ${recall}, F1 ${f1}`;
  });
  slider.addEventListener("change", sort);
  document.getElementById("reset").addEventListener("click", () => {
    say("the model's own");
    effect.textContent = "";
    rows.forEach((row, i) => own[i].slice(6).forEach(([text, number], c) => show(row.cells[6 + c], number, text)));
    sort();
  });
  say("the model's own");
}
