function drawCalibration(svg, cases) {
  const width = sheet(svg, 300);
  const place = axes(svg, { left: 48, right: width - 24, top: 30, bottom: 252 }, [0, 1], [0, 1],
    "chance to stop, as the policy says", "stopping was no worse than the natural end",
    (v) => v.toFixed(1), (v) => percent(v, 0));
  const most = Math.max(...cases.calibration.map((bin) => bin.checkpoints));
  const path = cases.calibration.map((bin, i) =>
    (i ? "L" : "M") + place.x(bin.chance) + " " + place.y(bin.no_worse));
  make(svg, "path", { d: path.join(""), fill: "none", stroke: "var(--accent)",
    "stroke-width": 1.5 });
  for (const bin of cases.calibration) {
    const dot = make(svg, "circle", { cx: place.x(bin.chance), cy: place.y(bin.no_worse),
      r: 3 + 9 * Math.sqrt(bin.checkpoints / most), fill: "var(--accent)", opacity: 0.8 });
    hover(dot, `${number(bin.checkpoints, 0)} checkpoints\nchance to stop ` +
      `${percent(bin.chance)}\nno worse than the natural end: ${percent(bin.no_worse)}\n` +
      `right: ${percent(bin.right)}`);
  }
}
function drawStops(svg, cases) {
  const high = Math.max(0.05, ...cases.stops.map((bin) => bin.share)), width = sheet(svg, 300);
  const place = axes(svg, { left: 48, right: width - 24, top: 30, bottom: 252 }, [0, 1],
    [0, high * 1.08], "place in the full thinking", "share of decodes stopped",
    (v) => percent(v, 0), (v) => percent(v, 0));
  for (const bin of cases.stops) {
    const x = place.x(bin.from) + 2;
    const bar = make(svg, "rect", { x, y: place.y(bin.share), width: place.x(bin.to) - 2 - x,
      height: 252 - place.y(bin.share), fill: "var(--accent)" });
    hover(bar, `${percent(bin.share)} of the decodes stopped between ${percent(bin.from, 0)} and ` +
      `${percent(bin.to, 0)} of their thinking`);
  }
}
function drawCases(parent, title, count, cases) {
  make(parent, "h3", {}, `${title}: ${count}`);
  if (count > cases.length) make(parent, "p", {}, `The first ${cases.length} of them.`);
  for (const shown of cases) {
    const box = make(parent, "details");
    make(box, "summary", {}, shown.excerpt);
    const inner = make(box, "div");
    make(inner, "div", {}, `Target ${shown.target} · full answer ${shown.full_answer || "none"} (` +
      `${shown.full_tokens} tokens) · early answer ${shown.early_answer || "none"} (` +
      `${shown.early_tokens} tokens)`);
    if (shown.excerpt !== shown.question) make(inner, "pre", {}, shown.question);
    if ("before" in shown) {
      const text = make(inner, "pre");
      text.append(shown.before);
      make(text, "span", { class: "cut" }, "stopped here");
      make(text, "span", { class: "unseen" }, shown.after);
    }
  }
}
const groups = {
  length: { low: "short questions", middle: "questions of middle length", high: "long questions" },
  numbers: { low: "few numbers", middle: "some numbers", high: "many numbers" },
  clauses: { low: "few clauses", middle: "some clauses", high: "many clauses" },
};
function drawContexts(parent, contexts) {
  if (contexts.length < 2) return;
  make(parent, "h3", {}, "Where it stops early and where late");
  make(parent, "p", {}, "Thinking tokens. Questions are divided into thirds by their length in " +
    "characters, by how many numbers and by how many clauses they hold.");
  const scroll = make(parent, "div", { class: "scroll", tabindex: "0", role: "region",
    "aria-label": "Where it stops early and where late" });
  const table = make(scroll, "table"), head = make(make(table, "thead"), "tr");
  for (const name of ["questions", "decodes", "full thinking", "stops at", "of full", "EM in full",
    "EM stopped"]) make(head, "th", { scope: "col" }, name);
  const body = make(table, "tbody");
  for (const row of contexts) {
    const line = make(body, "tr"), name = (groups[row.by] || {})[row.group];
    for (const text of [name || `${row.by} ${row.group}`, number(row.traces, 0),
      tokens(row.full_tokens), tokens(row.tokens), percent(row.tokens / row.full_tokens, 0),
      percent(row.full_exact_match), percent(row.exact_match)]) make(line, "td", {}, text);
  }
}
const answers = (n) => n === 1 ? "1 answer is" : `${number(n, 0)} answers are`;
const drawn = [];
function drawPolicies() {
  const parent = document.getElementById("policies");
  for (const [name, cases] of Object.entries(report.cases)) {
    make(parent, "h2", {}, name);
    make(parent, "p", {}, `${evaluation.about[name] || ""} At relative price ` +
      `${report.relative_price} it stops ${percent(1 - cases.natural)} of the decodes; ` +
      `${answers(cases.n_lost)} lost by it and ${cases.n_gained} gained.`);
    const two = make(parent, "div", { class: "two" });
    for (const draw of [drawCalibration, drawStops]) {
      const svg = make(two, "svg", { role: "img", "aria-label": draw === drawStops ?
        "Where decodes are stopped" : "How right the chances to stop are" });
      drawn.push(() => draw(svg, cases));
    }
    drawContexts(parent, cases.contexts);
    drawCases(parent, "Answers lost by stopping", cases.n_lost, cases.lost);
    drawCases(parent, "Answers gained", cases.n_gained, cases.gained);
  }
}
