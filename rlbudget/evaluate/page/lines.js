const evaluation = report.evaluation;
const svgSpace = "http://www.w3.org/2000/svg";
const styles = report.styles, dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => styles[name][dark.matches ? "dark" : "colour"];
const dash = (name, width = 1.5) => styles[name].dash.map((d) => d * width).join(" ") || "none";

const percent = (x, digits = 1) => x == null ? "–" : minus((100 * x).toFixed(digits)) + "%";
const number = (x, digits = 1) => x == null ? "–" : x.toLocaleString("en", {
  minimumFractionDigits: digits, maximumFractionDigits: digits });
const tokens = (x) => number(x, x < 1000 ? 1 : 0);
const minus = (text) => text.replace("-", "−");
const share = (x) => x == null ? "–" : minus((Math.round(100 * x) / 100 + 0).toFixed(2));
const signed = (x, digits = 1) => x == null ? "–" : (Number(x.toFixed(digits)) > 0 ? "+" : "") +
  minus((Number(x.toFixed(digits)) + 0).toFixed(digits));
const between = (ends, show) => ends && ends[0] != null ?
  `${show(ends[0])} to ${show(ends[1])}` : null;

function make(parent, name, attributes = {}, text = null) {
  const svg = name === "svg" || parent.namespaceURI === svgSpace;
  const node = svg ? document.createElementNS(svgSpace, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

// What a thing is, beside the pointer or below what has the keyboard's focus.
const tip = document.getElementById("tip");
function showTip(text, left, top, above) {
  tip.textContent = text;
  tip.hidden = false;
  const fits = top + tip.offsetHeight < innerHeight;
  tip.style.left = Math.max(8, Math.min(left, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (fits ? top : Math.max(8, above - tip.offsetHeight)) + "px";
}
function hideTip() { tip.hidden = true; }
function hover(node, text) {
  node.addEventListener("pointermove", (event) =>
    showTip(text, event.clientX + 14, event.clientY + 18, event.clientY - 10));
  node.addEventListener("pointerleave", hideTip);
}
function explain(node, text) {
  if (!text) return;
  hover(node, text);
  node.addEventListener("focus", () => {
    follow = () => {
      const box = node.getBoundingClientRect();
      showTip(text, box.left, box.bottom + 6, box.top - 6);
    };
    follow();
    node.setAttribute("aria-describedby", "tip");
  });
  node.addEventListener("blur", () => {
    hideTip();
    follow = hideTip;
    node.removeAttribute("aria-describedby");
  });
}
// The focus scrolls the page to where it goes: the tip goes with it.
let follow = hideTip;
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { follow = hideTip; hideTip(); }
});
document.addEventListener("scroll", () => follow(), true);

function ticks(low, high, count) {
  const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * size).find((s) => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9; v += step) found.push(v);
  return found;
}
// A drawing is as wide as the page lets it be: its text keeps its size.
function sheet(svg, height) {
  const width = Math.max(280, svg.clientWidth || svg.parentNode.clientWidth);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return width;
}
function axes(svg, box, x, y, xLabel, yLabel, formatX, formatY) {
  const place = { x: (v) => box.left + (v - x[0]) / (x[1] - x[0]) * (box.right - box.left),
    y: (v) => box.bottom - (v - y[0]) / (y[1] - y[0]) * (box.bottom - box.top) };
  for (const v of ticks(x[0], x[1], Math.max(3, (box.right - box.left) / 110))) {
    make(svg, "text", { x: place.x(v), y: box.bottom + 18, "text-anchor": "middle" }, formatX(v));
  }
  for (const v of ticks(y[0], y[1], 6)) {
    make(svg, "line", { x1: box.left, x2: box.right, y1: place.y(v), y2: place.y(v),
      class: "grid" });
    make(svg, "text", { x: box.left - 8, y: place.y(v) + 4, "text-anchor": "end" }, formatY(v));
  }
  make(svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 38,
    "text-anchor": "middle" }, xLabel);
  make(svg, "text", { x: 4, y: box.top - 14 }, yLabel);
  return place;
}
const parameters = (p) => Object.entries(p).map(([k, v]) => k.replaceAll("_", " ") + " " +
  (typeof v === "number" ? Number(v.toPrecision(3)) : JSON.stringify(v))).join(", ");

const hidden = new Set(Object.keys(styles).filter((name) => !styles[name].shown));
let strongest = null;
function drawFrontier() {
  const svg = document.getElementById("frontier");
  const height = 440, width = sheet(svg, height);
  const full = evaluation.full;
  const lines = evaluation.frontier.filter((line) => !hidden.has(line.method));
  const points = lines.flatMap((line) => line.points);
  const spent = points.map((p) => p.tokens).concat(full.tokens.total);
  const matches = points.map((p) => p.exact_match).concat(full.exact_match);
  const least = Math.min(...matches), most = Math.max(...matches);
  const room = Math.max(0.02, (most - least) * 0.06);
  // At least six points, so that the numbers beside the lines differ.
  const low = Math.max(0, Math.min(least - room, 0.94));
  const high = Math.min(1, Math.max(most + room, low + 0.06));
  const place = axes(svg, { left: 48, right: width - 20, top: 30, bottom: height - 46 },
    [0, Math.max(...spent) * 1.04], [low, high],
    "tokens a question", "exact match", (v) => number(v, 0), (v) => percent(v, 0));
  // The learned lines last, so that they lie on top.
  lines.sort((a, b) => (a.kind === "learned" ? 1 : 0) - (b.kind === "learned" ? 1 : 0));
  for (const line of lines) {
    const path = line.points.map((p, i) =>
      (i ? "L" : "M") + place.x(p.tokens).toFixed(1) + " " + place.y(p.exact_match).toFixed(1));
    const strong = line.kind === "learned" || line.method === strongest;
    const thick = strong ? 2.6 : 1.5;
    const faint = strongest && line.method !== strongest ? 0.25 : strong ? 1 : 0.85;
    make(svg, "path", { d: path.join(""), fill: "none", stroke: colour(line.method),
      "stroke-width": thick, "stroke-dasharray": dash(line.method, thick), opacity: faint });
    for (const p of line.points) {
      const dot = make(svg, "circle", { cx: place.x(p.tokens), cy: place.y(p.exact_match),
        r: strong ? 4.5 : 3, fill: colour(line.method), opacity: faint,
        "data-method": line.method });
      hover(dot, line.method + "\n" + parameters(p.parameters) + "\nexact match " +
        percent(p.exact_match) + "\n" + number(p.tokens) + " tokens, " +
        percent(1 - p.tokens / full.tokens.total) + " saved");
    }
  }
  const x = place.x(full.tokens.total), y = place.y(full.exact_match);
  const star = make(svg, "rect", { x: x - 5, y: y - 5, width: 10, height: 10,
    fill: "var(--ink)", transform: `rotate(45 ${x} ${y})`, "data-method": "full" });
  hover(star, "full decode\nexact match " + percent(full.exact_match) + "\n" +
    tokens(full.tokens.total) + " tokens");
  make(svg, "text", { x: x + 4, y: y - 12, "text-anchor": "end", class: "over" }, "full decode");
}
function drawLegend() {
  const legend = document.getElementById("legend");
  legend.replaceChildren();
  // The best first, what is hidden at the start last.
  const order = Object.keys(styles).sort((a, b) => styles[b].shown - styles[a].shown);
  const lines = evaluation.frontier.slice().sort((a, b) =>
    order.indexOf(a.method) - order.indexOf(b.method));
  const first = lines.find(({ method }) => !styles[method].shown);
  for (const { method, kind } of lines) {
    if (first && first.method === method) make(legend, "small", {}, "hidden:");
    const button = make(legend, "button", { type: "button", "aria-pressed": !hidden.has(method) });
    const sample = make(button, "svg", { viewBox: "0 0 30 12", "aria-hidden": "true" });
    const thick = kind === "learned" ? 2.6 : 1.5;
    make(sample, "line", { x1: 1, x2: 29, y1: 6, y2: 6, stroke: colour(method),
      "stroke-width": thick, "stroke-dasharray": dash(method, thick) });
    make(button, "span", {}, method);
    explain(button, evaluation.about[method]);
    const stand = (name) => { strongest = name; drawFrontier(); };
    button.addEventListener("pointerenter", () => { if (!hidden.has(method)) stand(method); });
    button.addEventListener("pointerleave", () => stand(null));
    button.addEventListener("click", () => {
      if (!hidden.delete(method)) hidden.add(method);
      button.setAttribute("aria-pressed", !hidden.has(method));
      stand(null);
    });
  }
}
const reference = evaluation.summary.map((row) => row.method).find((name) =>
  name !== "full" && evaluation.summary.some((row) => name in row.versus)) || "full";
// Heading, what is sorted by, what is shown, and what stands small behind it.
const columns = [
  ["method", (r) => r.method, (r) => r.method],
  ["EM", (r) => r.exact_match, (r) => percent(r.exact_match), (r) => r.method === "full" ? "" :
    between(r.exact_match_delta_ci95, (v) => signed(100 * v)) + " pt"],
  ["tokens", (r) => r.tokens.total, (r) => tokens(r.tokens.total)],
  ["saved", (r) => 1 - r.token_fraction, (r) => percent(1 - r.token_fraction)],
  ["utility", (r) => r.utility, (r) => minus(r.utility.toFixed(3)), (r) =>
    between(r.utility_ci95, share)],
  ["gap closed", (r) => r.oracle_gap_closed, (r) => share(r.oracle_gap_closed)],
  ["mean gap", (r) => r.summary.mean_oracle_gap_closed,
    (r) => share(r.summary.mean_oracle_gap_closed),
    (r) => between(r.summary.mean_oracle_gap_closed_ci95, share)],
  ["tuned to ≤1 pt", (r) => r.summary.savings_at_em_loss["0.01"], (r) =>
    percent(r.summary.savings_at_em_loss["0.01"]), (r) =>
    signed(-100 * r.summary.held_out_em_loss["0.01"]) + " pt"],
  ["vs " + reference, (r) => (r.summary.versus[reference] || {}).margin,
    (r) => (r.summary.versus[reference] || { verdict: "" }).verdict],
];
let sorted = { column: 6, down: true };
function drawTable(price) {
  const summaries = Object.fromEntries(evaluation.summary.map((row) => [row.method, row]));
  const rows = evaluation.results.filter((row) => row.relative_price === price)
    .map((row) => ({ ...row, summary: summaries[row.method] }));
  const value = columns[sorted.column][1];
  rows.sort((a, b) => {
    const x = value(a), y = value(b), order = x == null ? -1 : y == null ? 1 : x < y ? -1 : 1;
    return sorted.down ? -order : order;
  });
  const table = document.getElementById("table");
  table.replaceChildren();
  const head = make(make(table, "thead"), "tr");
  columns.forEach(([name], i) => {
    const here = i === sorted.column, mark = here ? (sorted.down ? " ↓" : " ↑") : "";
    const cell = make(head, "th", { scope: "col", tabindex: "0", "aria-sort": here ?
      (sorted.down ? "descending" : "ascending") : "none" }, name + mark);
    if (columns[i][3]) make(cell, "small");
    cell.addEventListener("keydown", (event) => { if (event.key === "Enter") cell.click(); });
    cell.addEventListener("click", () => {
      sorted = { column: i, down: i === sorted.column ? !sorted.down : i > 0 };
      drawTable(price);
    });
  });
  const body = make(table, "tbody");
  for (const row of rows) {
    const line = make(body, "tr", { class: row.kind });
    columns.forEach(([, , show, behind], i) => {
      const text = show(row), cell = make(line, "td");
      const inner = make(cell, "span", {}, text);
      if (behind) make(cell, "small", {}, behind(row) || "");
      if (i === 0) {
        inner.className = "term";
        inner.tabIndex = 0;
        explain(inner, evaluation.about[row.method]);
      }
      if (text === "better" || text === "worse") cell.className = text;
    });
  }
  drawLedger(rows);
}
function drawLedger(rows) {
  const svg = document.getElementById("ledger");
  const line = 24, top = 30, left = 104;
  const most = Math.max(...rows.map((row) => row.tokens.total));
  const width = sheet(svg, top + rows.length * line + 8);
  const room = width - left - 16 - 8 * tokens(most).length;
  const kinds = { thinking: "thinking", probe: "trial answers", answer: "answer" };
  let at = Math.min(left, Math.max(0, width - 300));
  for (const [kind, name] of Object.entries(kinds)) {
    make(svg, "rect", { x: at, y: 4, width: 12, height: 12, fill: `var(--${kind})` });
    make(svg, "text", { x: at + 18, y: 14 }, name);
    at += 34 + 7.2 * name.length;
  }
  rows.forEach((row, i) => {
    let x = left;
    const y = top + i * line;
    make(svg, "text", { x: left - 8, y: y + 14, "text-anchor": "end" },
      row.method.length > 15 ? row.method.slice(0, 14) + "…" : row.method);
    for (const [kind, name] of Object.entries(kinds)) {
      const long = row.tokens[kind] / most * room;
      const bar = make(svg, "rect", { x, y, width: long, height: 18, fill: `var(--${kind})` });
      hover(bar, `${row.method}\n${tokens(row.tokens[kind])} tokens: ${name}`);
      x += long;
    }
    make(svg, "text", { x: x + 8, y: y + 14 }, tokens(row.tokens.total));
  });
}
