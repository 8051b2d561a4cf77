// Amounts below a unit keep two digits that count: $0.016, not $0.02.
function money(amount) {
  const { currency } = evaluation.money, size = Math.abs(amount);
  const digits = size >= 1 || !size ? 2 : Math.min(8, 1 - Math.floor(Math.log10(size)));
  const shown = number(size, digits);
  const letters = /^[A-Za-z]{2,}$/.test(currency);
  return (amount < 0 ? "−" : "") + (letters ? shown + " " + currency : currency + shown);
}
function seconds(s) {
  if (Math.abs(s) >= 120) return number(s / 60) + "\u00a0min";
  return number(s, Math.abs(s) < 0.095 ? 3 : Math.abs(s) < 9.95 ? 2 : 1) + "\u00a0s";
}
const interval = (ends, show) => {
  const found = between(ends, show);
  return found ? ` (95%: ${found})` : "";
};
function tiles() {
  const { headline, full, money: paid, time } = evaluation;
  if (headline.method === "full") {
    const found = [[percent(full.exact_match), "exact match of the full decode"],
      [number(full.tokens.total), "tokens of the full decode"]];
    if (paid) found.push([money(paid.full), `for ${number(paid.questions, 0)} questions ` +
      "decoded in full; nothing is saved"]);
    if (time) found.push([seconds(time.full.median), "an answer in full, median; 95% take at " +
      `most ${seconds(time.full.p95)}; nothing is saved`]);
    return found;
  }
  const few = headline.savings < 0;
  const found = [[percent(Math.abs(headline.savings), 0), `${few ? "more" : "fewer"} tokens with ` +
    `${headline.how}: ${number(full.tokens.total)} → ${number(headline.tokens)} a question` +
    interval(headline.savings_ci95, (v) => percent(few ? -v : v, 0))],
  [signed(100 * headline.exact_match_change) + " pt", "exact match: " +
    `${percent(full.exact_match)} → ${percent(full.exact_match + headline.exact_match_change)}` +
    interval(headline.exact_match_change_ci95, (v) => signed(100 * v))]];
  if (paid) found.push([money(Math.abs(paid.saved)), `${paid.saved < 0 ? "more" : "saved"} on ` +
    `${number(paid.questions, 0)} questions: ${money(paid.full)} → ` +
    money(paid.full - paid.saved) + interval(paid.saved_ci95, money)]);
  if (time) found.push([seconds(Math.abs(time.saved)), `${time.saved < 0 ? "later" : "sooner"} ` +
    `with an answer, in the mean${interval(time.saved_ci95, seconds)}; median ` +
    `${seconds(time.full.median)} → ${seconds(time.served.median)}, 95th percentile ` +
    `${seconds(time.full.p95)} → ${seconds(time.served.p95)}`]);
  const gap = evaluation.summary.find((row) => row.method === headline.method);
  if (gap && gap.mean_oracle_gap_closed != null) {
    found.push([share(gap.mean_oracle_gap_closed), `of the way from the best fixed budget to the ` +
      `oracle, by ${headline.method}, mean over all prices` +
      interval(gap.mean_oracle_gap_closed_ci95, share)]);
  }
  return found;
}
function start() {
  (evaluation.recommendation || []).forEach((said, i) => make(
    document.getElementById("recommendation"), "p", i ? {} : { class: "lead" }, said));
  const full = evaluation.full;
  document.getElementById("lead").textContent =
    `${number(evaluation.held_out_questions, 0)} held-out questions, none of them seen in ` +
    `training${evaluation.folds > 1 ? `, over ${evaluation.folds} folds` : ""}. Decoded to the ` +
    `natural end, the model is right on ${percent(full.exact_match)} of them in ` +
    `${number(full.tokens.total)} tokens a question.`;
  for (const [value, text] of tiles()) {
    const box = make(document.getElementById("figures"), "div", { class: "figure" });
    make(box, "b", {}, value);
    make(box, "span", {}, text);
  }
  document.getElementById("tuned").textContent = "Tuned to ≤1 pt: the setting that saves most " +
    "while it loses at most one point on the training questions, and how exact match changes on " +
    "the held-out ones." + (evaluation.headline.effort ? " An effort is more careful: it allows " +
    "for doubt in what the training questions say, so it saves less." : "");
  const select = document.getElementById("price");
  const prices = [...new Set(evaluation.results.map((row) => row.relative_price))];
  for (const price of prices) make(select, "option", { value: price }, String(price));
  select.value = String(report.relative_price);
  const table = () => drawTable(Number(select.value));
  select.addEventListener("change", table);
  drawPolicies();
  const draw = () => { drawFrontier(); table(); for (const again of drawn) again(); };
  drawLegend();
  draw();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  dark.addEventListener("change", () => { drawLegend(); draw(); });
  const notes = evaluation.not_applicable.map((entry) =>
    `${entry.method}: not applicable, needs ${entry.needs.join(" and ")}.`);
  document.getElementById("notes").textContent = notes.concat(evaluation.notes || []).join(" ");
}
start();
