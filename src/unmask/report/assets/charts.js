// Curves of several runs: colour tells the run, the line's kind tells what it is.
const PANELS = [
  { title: "Loss", names: ["loss"], loss: true },
  { title: "Accuracy (%)", names: ["top1", "knn_top1", "probe_top1"], scale: 100 },
  { title: "Learning rate", names: ["lr"] },
  { title: "Gradient norm", names: ["grad_norm"], loss: true },
  { title: "Images per second", names: ["images_per_s"], from: "speed" },
  { title: "Effective rank of the features", names: ["effective_rank"] },
];
const NAMES = { top1: "top-1", knn_top1: "k-NN", probe_top1: "linear probe", loss: "", lr: "", grad_norm: "", images_per_s: "", effective_rank: "" };
const QUIET = new Set(["skipped", "top5", "knn_top5", "count", "data_wait_s"]);
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
const HEIGHT = 230, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 24;

function panelsOf(runs) {
  const found = PANELS.map((panel) => ({ ...panel }));
  const known = new Set(found.flatMap((panel) => panel.names));
  for (const run of runs)
    for (const split of ["train", "val"])
      for (const name of Object.keys(run.curves[split]))
        if (!known.has(name) && !QUIET.has(name)) {
          known.add(name);
          found.push({ title: name.replaceAll("_", " "), names: [name] });
        }
  for (const panel of found) {
    panel.series = [];
    runs.forEach((run, index) => {
      for (const split of panel.from ? [panel.from] : ["train", "val"])
        panel.names.forEach((name, kind) => {
          const curve = run.curves[split][name];
          if (!curve || !curve.x.length) return;
          const what = [NAMES[name] ?? "", split === "val" && !NAMES[name] ? "validation" : "", split === "train" && run.curves.val[name] ? "train" : ""];
          panel.series.push({
            ...curve, run: index, label: [runs.length > 1 ? run.name : "", ...what].filter(Boolean).join(" ") || panel.title,
            marks: split === "val", dash: DASHES[(split === "val" && panel.names.length === 1 ? 1 : kind) % DASHES.length],
            smooth: split === "train" && panel.loss, perEpoch: run.stepsPerEpoch || 1,
          });
        });
    });
  }
  return found.filter((panel) => panel.series.length);
}

function smoothed(values, weight) {
  if (!weight) return values;
  let sum = 0, norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + value * (1 - weight);
    norm = norm * weight + (1 - weight);
    return sum / norm;
  });
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999) || 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
const logTicks = (low, high) => {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const f of high / low > 300 ? [1] : [1, 2, 5]) if (f * 10 ** power >= low && f * 10 ** power <= high) found.push(f * 10 ** power);
  return found.length > 1 ? found : ticks(low, high, 4);
};

function curveSection(runs) {
  const state = { epochs: false, log: false, whole: false, smooth: 0.8, range: null, cursor: null, shown: runs.map(() => true) };
  const panels = panelsOf(runs);
  const charts = panels.map((panel) => new LineChart(panel, state, () => charts.forEach((chart) => chart.draw()), () => charts.forEach((chart) => chart.point())));
  const redraw = () => charts.forEach((chart) => chart.draw());
  const toggle = (key, text, title) => el("label", { title }, el("input", { type: "checkbox", onchange: (event) => { state[key] = event.target.checked; if (key === "epochs") state.range = state.cursor = null; redraw(); } }), text);
  const choose = runs.length < 2 ? [] : runs.map((run, index) =>
    el("label", {}, el("input", { type: "checkbox", checked: true, onchange: (event) => { state.shown[index] = event.target.checked; redraw(); } }),
      el("span", { cls: "swatch", style: { background: colour(index) } }), run.name));
  const slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: state.smooth, oninput: (event) => { state.smooth = Number(event.target.value); redraw(); } });
  return section("curves", "Curves",
    el("div", { cls: "tools" }, choose, toggle("epochs", "epochs", "Epochs instead of steps"), toggle("log", "log scale"), toggle("whole", "whole range", "Also the first steps, which are far above the rest"),
      el("label", {}, "smoothing", slider),
      el("button", { onclick: () => { state.range = null; redraw(); } }, "Reset zoom")),
    el("p", { cls: "soft" }, "Drag across a chart to zoom all of them; arrow keys move the cursor of the one in focus."),
    el("div", { cls: "grid" }, charts.map((chart) => chart.element)));
}

class LineChart {
  constructor(panel, state, drawAll, pointAll) {
    Object.assign(this, { panel, state, drawAll, pointAll });
    this.box = el("div", { cls: "chart", tabindex: 0, role: "img", "aria-label": `${panel.title}: ${panel.series.map((s) => `${s.label} ends at ${number(this.value(s.y[s.y.length - 1]))}`).join(", ")}` });
    this.legend = el("div", { cls: "legend", "aria-live": "off" });
    this.element = el("div", { cls: "card" }, el("h3", {}, panel.title), this.box, this.legend);
    this.box.addEventListener("pointermove", (event) => this.move(event));
    this.box.addEventListener("pointerdown", (event) => { this.from = this.xAt(event); });
    this.box.addEventListener("pointerup", (event) => this.zoom(event));
    this.box.addEventListener("pointerleave", () => { this.from = null; state.cursor = null; pointAll(); });
    this.box.addEventListener("dblclick", () => { state.range = null; drawAll(); });
    this.box.addEventListener("keydown", (event) => this.key(event));
    onRedraw(this.box, () => this.draw());
  }
  value(y) { return y === null ? null : y * (this.panel.scale || 1); }
  xs(series) { return this.state.epochs ? series.x.map((x) => x / series.perEpoch) : series.x; }
  draw() {
    const width = Math.max(220, this.box.clientWidth), { state, panel } = this;
    const shown = panel.series.filter((series) => state.shown[series.run]).map((series) => ({ ...series, x: this.xs(series), line: smoothed(series.y, series.smooth ? state.smooth : 0) }));
    this.shown = shown;
    const ends = shown.flatMap((series) => [series.x[0], series.x[series.x.length - 1]]);
    const [low, high] = state.range || (ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1]);
    this.low = high > low ? low : low - 1; this.high = high > low ? high : low + 1; this.width = width;
    const skip = panel.loss && !state.whole && !state.range ? low + (high - low) * 0.05 : low;
    let bottom = Infinity, top = -Infinity;
    for (const series of shown)
      series.line.forEach((y, i) => {
        const inside = series.x[i] >= (series.x.length > 20 ? skip : low) && series.x[i] <= this.high;
        if (y === null || !inside || (state.log && y <= 0)) return;
        bottom = Math.min(bottom, this.value(y)); top = Math.max(top, this.value(y));
      });
    if (!(top >= bottom)) { bottom = 0; top = 1; }
    if (top === bottom) { top += Math.abs(top) * 0.05 || 1; bottom -= Math.abs(bottom) * 0.05; }
    const log = state.log && bottom > 0;
    const pad = log ? (top / bottom) ** 0.05 : (top - bottom) * 0.06;
    if (log) { bottom /= pad; top *= pad; } else { top += pad; bottom = bottom >= 0 && bottom - pad < 0 ? 0 : bottom - pad; }
    const X = (x) => LEFT + ((x - this.low) / (this.high - this.low)) * (width - LEFT - RIGHT);
    const unit = log ? (y) => Math.log(y / bottom) / Math.log(top / bottom) : (y) => (y - bottom) / (top - bottom);
    const Y = (y) => TOP + (1 - unit(y)) * (HEIGHT - TOP - BOTTOM);
    this.X = X; this.Y = Y;
    const clip = `clip-${Math.random().toString(36).slice(2)}`;
    const made = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    made.append(svg("clipPath", { id: clip }, svg("rect", { x: LEFT - 3, y: TOP - 3, width: width - LEFT - RIGHT + 6, height: HEIGHT - TOP - BOTTOM + 6 })));
    for (const y of log ? logTicks(bottom, top) : ticks(bottom, top, 4)) {
      made.append(svg("line", { cls: "axis", class: "axis", x1: LEFT, x2: width - RIGHT, y1: Y(y), y2: Y(y) }));
      const text = svg("text", { x: LEFT - 6, y: Y(y) + 4, "text-anchor": "end" });
      text.textContent = number(y); made.append(text);
    }
    for (const x of high > low ? ticks(low, high, Math.max(3, width / 75)) : [low]) {
      const text = svg("text", { x: X(x), y: HEIGHT - 6, "text-anchor": "middle" });
      text.textContent = number(x, 6); made.append(text);
    }
    const plot = svg("g", { "clip-path": `url(#${clip})` });
    for (const series of shown) {
      const paint = colour(series.run);
      const path = (values) => {
        let text = "", pen = false;
        values.forEach((y, i) => {
          const v = this.value(y);
          if (v === null || (log && v <= 0)) { pen = false; return; }
          text += `${pen ? "L" : "M"}${X(series.x[i]).toFixed(1)} ${Y(v).toFixed(1)}`;
          pen = true;
        });
        return text;
      };
      const draw = (d, more) => plot.append(svg("path", { d, fill: "none", stroke: paint, "stroke-width": 1.8, "stroke-linejoin": "round", ...more }));
      if (series.smooth && state.smooth) draw(path(series.y), { "stroke-width": 1, opacity: 0.25 });
      if (series.low) { draw(path(series.low), { "stroke-width": 0.7, opacity: 0.25 }); draw(path(series.high), { "stroke-width": 0.7, opacity: 0.25 }); }
      draw(path(series.line), { "stroke-dasharray": series.dash || null });
      if (series.marks && series.x.length <= 60)
        series.line.forEach((y, i) => {
          const v = this.value(y);
          if (v !== null && !(log && v <= 0)) plot.append(svg("circle", { cx: X(series.x[i]), cy: Y(v), r: 2.6, fill: paint }));
        });
    }
    made.append(plot);
    this.cross = svg("line", { stroke: "var(--soft)", y1: TOP, y2: HEIGHT - BOTTOM, "stroke-dasharray": "3 3", visibility: "hidden" });
    this.band = svg("rect", { y: TOP, height: HEIGHT - TOP - BOTTOM, fill: "var(--strong)", opacity: 0.15, visibility: "hidden" });
    made.append(this.cross, this.band);
    this.box.replaceChildren(made);
    this.legend.replaceChildren(...shown.map((series) => {
      const line = svg("svg", { width: 22, height: 12, class: "swatch" }, svg("line", { x1: 0, x2: 22, y1: 6, y2: 6, stroke: colour(series.run), "stroke-width": 2.5, "stroke-dasharray": series.dash || null }));
      if (series.marks) line.append(svg("circle", { cx: 11, cy: 6, r: 3, fill: colour(series.run) }));
      series.readout = el("span", { cls: "value" });
      return el("span", {}, line, " ", series.label, " ", series.readout);
    }));
    this.point();
  }
  // Values at the cursor, or the last ones.
  point() {
    const { cursor } = this.state;
    this.cross?.setAttribute("visibility", cursor === null ? "hidden" : "visible");
    if (cursor !== null) { this.cross.setAttribute("x1", this.X(cursor)); this.cross.setAttribute("x2", this.X(cursor)); }
    for (const series of this.shown || []) {
      let at = series.x.length - 1;
      if (cursor !== null) { at = series.x.findIndex((x) => x >= cursor); if (at < 0) at = series.x.length - 1; if (at > 0 && cursor - series.x[at - 1] < series.x[at] - cursor) at--; }
      series.readout.textContent = number(this.value(series.line[at])) + (cursor === null ? "" : ` at ${number(series.x[at])}`);
    }
  }
  xAt(event) {
    const box = this.box.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (this.width - LEFT - RIGHT);
    return this.low + Math.min(1, Math.max(0, share)) * (this.high - this.low);
  }
  move(event) {
    this.state.cursor = this.xAt(event);
    if (this.from !== null && this.from !== undefined && event.buttons) {
      const [a, b] = [this.X(this.from), this.X(this.state.cursor)].sort((p, q) => p - q);
      for (const [name, value] of Object.entries({ x: a, width: b - a, visibility: "visible" })) this.band.setAttribute(name, value);
    }
    this.pointAll();
  }
  zoom(event) {
    const to = this.xAt(event), from = this.from;
    this.from = null;
    this.band?.setAttribute("visibility", "hidden");
    if (from === null || from === undefined || Math.abs(this.X(to) - this.X(from)) < 8) return;
    this.state.range = [from, to].sort((p, q) => p - q);
    this.drawAll();
  }
  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const stride = (this.high - this.low) / 60;
    this.state.cursor = Math.min(this.high, Math.max(this.low, (this.state.cursor ?? this.high) + step * stride));
    this.pointAll();
  }
}

// Accuracy by confidence, with how many images each bar stands on.
function reliability(bins) {
  const box = el("div", { role: "img", "aria-label": `Reliability: ${bins.map(([n, sum, right], i) => (n ? `confidence ${Math.round((100 * sum) / n)} %, right ${Math.round((100 * right) / n)} % of ${n}` : "")).filter(Boolean).join("; ")}` });
  const draw = () => {
    const width = Math.max(220, Math.min(440, box.clientWidth)), plot = Math.min(width - 50, 300), below = 54;
    const made = svg("svg", { width, height: plot + below + 44, viewBox: `0 0 ${width} ${plot + below + 44}` });
    const X = (v) => 42 + v * (width - 64), Y = (v) => 8 + (1 - v) * plot, largest = Math.max(1, ...bins.map(([n]) => n));
    const text = (x, y, content, anchor = "middle") => { const t = svg("text", { x, y, "text-anchor": anchor }); t.textContent = content; made.append(t); };
    for (const v of [0, 0.25, 0.5, 0.75, 1]) {
      made.append(svg("line", { class: "axis", x1: X(0), x2: X(1), y1: Y(v), y2: Y(v) }));
      text(X(0) - 6, Y(v) + 4, `${100 * v} %`, "end");
      text(X(v), plot + below + 24, `${100 * v} %`);
    }
    bins.forEach(([n, sum, right], i) => {
      if (!n) return;
      const x = X(i / bins.length) + 1, w = X(1 / bins.length) - X(0) - 2, accuracy = right / n, confidence = sum / n;
      const least = Math.min(accuracy, confidence), most = Math.max(accuracy, confidence);
      const bar = svg("rect", { x, width: w, y: Y(least), height: Math.max(1, Y(0) - Y(least)), fill: "var(--c0)" });
      const gap = svg("rect", { x, width: w, y: Y(most), height: Y(least) - Y(most), fill: accuracy > confidence ? "var(--c5)" : "var(--c1)", opacity: 0.7 });
      const count = svg("rect", { x, width: w, y: plot + below + 8 - (n / largest) * (below - 12), height: (n / largest) * (below - 12), fill: "var(--soft)" });
      const title = `confidence ${percent(confidence)}, right ${percent(accuracy)}, ${n} images`;
      for (const part of [bar, gap, count]) { const t = svg("title"); t.textContent = title; part.append(t); made.append(part); }
    });
    made.append(svg("line", { x1: X(0), y1: Y(0), x2: X(1), y2: Y(1), stroke: "var(--ink)", "stroke-dasharray": "5 4" }));
    text(X(0.5), plot + below + 40, "confidence; below the bars: how many images");
    box.replaceChildren(made);
  };
  onRedraw(box, draw);
  return box;
}
