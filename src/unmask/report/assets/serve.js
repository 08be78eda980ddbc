// The page of `unmask serve`: an image, its hidden patches, and what the model makes of it.
const [rows, columns] = DATA.grid, CAN = new Set(DATA.can), PATCHES = rows * columns;
const state = { file: null, answered: null, ratio: DATA.maskRatio ?? 0.75, seed: 0, hidden: null, patch: null, block: DATA.depth - 1, latest: 0 };
const main = document.getElementById("main");
document.getElementById("title").textContent = `${DATA.name} (${DATA.objective}, ${DATA.engine})`;

async function ask(want, parameters = {}) {
  const query = new URLSearchParams({ want, ...parameters });
  const response = await fetch(`api/look?${query}`, { method: "POST", headers: { "content-type": "application/octet-stream" }, body: state.file });
  const found = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  const error = found.error ?? found.images?.[0]?.error;
  if (error) throw new Error(error);
  return found.images[0];
}

// --- the image ---
const input = el("input", { type: "file", accept: "image/*,.tif,.tiff,.dcm,.npy", "aria-label": "Choose an image", onchange: () => input.files.length && open(input.files[0]) });
const drop = el("div", { cls: "card drop" }, el("p", {}, "Drop an image here, paste one, or choose a file."), input);
const status = el("p", { cls: "soft", role: "status" });
const seen = el("img", { alt: "The image as the model gets it" });
const answers = el("div", { cls: "hidden" });
for (const name of ["dragover", "dragenter"]) addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const name of ["dragleave", "drop"]) addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
addEventListener("drop", (event) => event.dataTransfer.files.length && open(event.dataTransfer.files[0]));
addEventListener("paste", (event) => event.clipboardData?.files.length && open(event.clipboardData.files[0]));

async function open(file) {
  if (file.size > DATA.limits.bytes) { say(file, new Error(`the file has more than ${Math.floor(DATA.limits.bytes / 2 ** 20)} MB`)); return; }
  Object.assign(state, { file, hidden: null, patch: null });
  await refresh(true);
}
// What was answered about another image is no answer about this one.
function say(file, error) {
  status.textContent = `${file.name || "the image"}: ${error.message}`; status.className = "note";
  if (file !== state.answered) answers.classList.add("hidden");
}

async function refresh(all) {
  if (!state.file) return;
  const mine = ++state.latest, began = performance.now();
  try {
    const want = [all && "crop", CAN.has("reconstruction") && "reconstruction", all && CAN.has("predictions") && "predictions", all && CAN.has("neighbours") && "neighbours", (all || state.patch !== null) && CAN.has("attention") && "attention"].filter(Boolean);
    const parameters = { top: 12, block: state.block };
    if (state.hidden) parameters.hidden = [...state.hidden].join(",");
    else Object.assign(parameters, { mask_ratio: state.ratio, seed: state.seed });
    if (state.patch !== null) parameters.patch = state.patch;
    const found = await ask(want.join(","), parameters);
    if (mine !== state.latest) return;
    if (found.reconstruction) showPainting(found.reconstruction);
    if (found.crop) { seen.src = found.crop; look.show(found.crop); }
    if (found.predictions) showPredictions(found.predictions);
    if (found.neighbours) showNeighbours(found.neighbours);
    if (found.attention) look.heat(found.attention.patches);
    state.answered = state.file;
    answers.classList.remove("hidden");
    status.className = "soft";
    status.textContent = `${state.file.name || "the image"}: answered in ${Math.round(performance.now() - began)} ms`;
  } catch (error) {
    if (mine === state.latest) say(state.file, error);
  }
}
let timer;
const soon = () => { clearTimeout(timer); timer = setTimeout(() => refresh(false), 60); };

// A picture with its patches: by pointer or arrow keys one is chosen.
class Patches {
  constructor(label, choose, paints) {
    this.image = el("img", { alt: "" });
    this.over = el("canvas", { tabindex: 0, role: "application", "aria-label": label });
    this.element = el("div", { cls: "patches" }, this.image, this.over);
    Object.assign(this, { choose, at: null, values: null });
    const pick = (event) => { const box = this.over.getBoundingClientRect(); return Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows))) * columns + Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns))); };
    let last = null;
    this.over.addEventListener("pointerdown", (event) => { this.over.setPointerCapture(event.pointerId); last = pick(event); this.choose(last, true); this.mark(last); });
    this.over.addEventListener("pointermove", (event) => { if (!event.buttons || !paints) return; const patch = pick(event); if (patch !== last) { last = patch; this.choose(patch, false); this.mark(patch); } });
    this.over.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      if (step) { event.preventDefault(); this.mark(Math.min(PATCHES - 1, Math.max(0, (this.at ?? 0) + step))); }
      if (event.key === " " || event.key === "Enter") { event.preventDefault(); this.choose(this.at ?? 0, true); }
    });
    onRedraw(this.element, () => this.draw());
  }
  show(url) { this.image.src = url; this.element.classList.remove("hidden"); this.draw(); }
  mark(patch) { this.at = patch; this.draw(); }
  heat(values) { this.values = values; this.draw(); }
  draw() {
    const width = this.over.clientWidth, height = this.over.clientHeight, context = this.over.getContext("2d");
    this.over.width = width; this.over.height = height;
    const w = width / columns, h = height / rows;
    if (this.values) {
      const most = Math.max(...this.values);
      this.values.forEach((value, i) => { context.fillStyle = `rgb(0 0 0 / ${(0.78 * (1 - value / most)).toFixed(3)})`; context.fillRect((i % columns) * w, Math.floor(i / columns) * h, w + 0.5, h + 0.5); });
    }
    if (this.at !== null) { context.strokeStyle = "#fff"; context.lineWidth = 3; context.strokeRect((this.at % columns) * w, Math.floor(this.at / columns) * h, w, h); context.strokeStyle = "#000"; context.lineWidth = 1; context.strokeRect((this.at % columns) * w, Math.floor(this.at / columns) * h, w, h); }
  }
}

// --- painting ---
let hiding = true;
const masked = new Patches("Hidden patches. Drag to hide or show; arrow keys and space do the same.", (patch, first) => {
  state.hidden ??= new Set(state.now);
  if (first) hiding = !state.hidden.has(patch);
  if (hiding) state.hidden.add(patch); else state.hidden.delete(patch);
  if (state.hidden.size === 0 || state.hidden.size === PATCHES) { (hiding ? state.hidden.delete(patch) : state.hidden.add(patch)); return; }
  report(); soon();
}, true);
const painted = el("img", { alt: "What the model paints" }), pasted = el("img", { alt: "With the visible patches" });
const ratio = el("input", { id: "ratio", type: "range", min: 0.01, max: 0.99, step: 0.01, value: state.ratio, oninput: () => { state.ratio = Number(ratio.value); state.hidden = null; report(); soon(); } });
const share = el("output", { for: "ratio" });
function report() { share.textContent = percent(state.hidden ? state.hidden.size / PATCHES : state.ratio, 0); }
function showPainting(found) {
  state.now = found.hidden;
  masked.show(found.masked); painted.src = found.reconstruction; pasted.src = found.pasted;
}
const painting = !CAN.has("reconstruction") ? null : section("reconstruction", "Hide and paint",
  el("div", { cls: "tools" }, el("label", {}, "hidden", ratio, share),
    el("button", { onclick: () => { state.seed++; state.hidden = null; report(); refresh(false); } }, "Other patches"),
    el("button", { onclick: () => { state.hidden = new Set(Array.from({ length: PATCHES }, (_, i) => i).filter((i) => i !== 0 && (Math.floor(i / columns) + (i % columns)) % 2)); report(); refresh(false); } }, "Chessboard")),
  el("div", { cls: "three" },
    el("figure", {}, masked.element, el("figcaption", {}, "what the model sees: drag to hide and show patches")),
    el("figure", {}, painted, el("figcaption", {}, "what it paints")),
    el("figure", {}, pasted, el("figcaption", {}, "with the visible patches"))));

// --- classes, neighbours, attention ---
const classes = el("div");
function showPredictions(found) {
  classes.replaceChildren(el("table", {}, el("tbody", {}, found.map((one) => el("tr", {}, el("th", { scope: "row" }, one.class), el("td", { cls: "number" }, percent(one.probability)), el("td", {}, el("span", { cls: "bar", style: { width: `${100 * one.probability}%` } })))))));
}
const near = el("div", { cls: "pictures" });
function showNeighbours(found) {
  near.replaceChildren(...found.map((one) => {
    const url = `api/images/${one.image}`;
    return el("figure", {}, el("button", { cls: "picture", onclick: () => enlarge([{ url: () => url, caption: one.name }], 0), "aria-label": `Enlarge ${one.name}` }, el("img", { src: url, alt: one.name, loading: "lazy" })),
      el("figcaption", {}, el("div", {}, one.name.split("/").pop()), el("div", { cls: "soft" }, `${one.class ?? ""} ${one.similarity.toFixed(3)}`)));
  }));
}
const look = new Patches("Patches of the image. Choose one to see what it looks at.", (patch) => { state.patch = patch; refresh(false); }, false);
const block = el("select", { onchange: () => { state.block = Number(block.value); refreshAttention(); } }, Array.from({ length: DATA.depth }, (_, i) => el("option", { value: i, selected: i === DATA.depth - 1 }, String(i))));
const refreshAttention = () => refresh(state.patch === null);
const attention = !CAN.has("attention") ? null : section("attention", "Attention",
  el("p", { cls: "soft" }, "Choose a patch: the bright ones are what it attends to, mean over the heads. Before that it is the class token."),
  el("div", { cls: "tools" }, el("label", {}, "block", block), el("button", { onclick: () => { state.patch = null; look.mark(null); refresh(true); } }, "Class token")),
  el("div", { cls: "three" }, el("figure", {}, look.element)));

answers.append(el("figure", { cls: "seen" }, seen), ...[
  CAN.has("predictions") ? section("predictions", "Class", classes) : null, painting,
  CAN.has("neighbours") ? section("neighbours", `Nearest of ${DATA.images} images`, near) : null, attention,
].filter(Boolean));
main.append(section("image", "Image", drop, status), answers);
report();
