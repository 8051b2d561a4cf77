function start() {
  (evaluation.recommendation || []).forEach((said, i) => make(
    document.getElementById("recommendation"), "p", i ? {} : { class: "lead" }, said));
  const full = evaluation.full;
  document.getElementById("lead").textContent =
    `${number(evaluation.held_out_questions, 0)} held-out questions, none of them seen in ` +
    `training${evaluation.folds > 1 ? `, over ${evaluation.folds} folds` : ""}. Decoded to the ` +
    `natural end, the model is right on ${percent(full.exact_match)} of them in ` +
    `${tokens(full.tokens.total)} tokens a question.`;
  for (const [value, text] of report.tiles) {
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
  const lacking = evaluation.not_applicable.map((entry) =>
    `${entry.method} (${entry.needs.join(", ")})`);
  const notes = lacking.length ? [`Not measured, as the traces lack what they need: ` +
    `${lacking.join(", ")}.`] : [];
  for (const note of notes.concat(evaluation.notes || [])) {
    make(document.getElementById("notes"), "p", {}, note);
  }
}
start();
