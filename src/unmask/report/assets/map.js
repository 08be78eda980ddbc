// Thumbnails from the atlas, and the map of all images.
function thumbUrl(run, index) {
  const { atlas } = run.images, perSheet = atlas.columns ** 2;
  return { url: pictureUrl(atlas.sheets[Math.floor(index / perSheet)]), place: index % perSheet };
}

function thumb(run, index, size) {
  const { atlas } = run.images, { url, place } = thumbUrl(run, index), scale = size / atlas.side;
  const row = Math.floor(place / atlas.columns), column = place % atlas.columns;
  return el("span", { cls: "thumb", role: "img", "aria-label": run.images.names[index], style: {
    width: `${size}px`, height: `${size}px`, "background-image": `url(${url})`,
    "background-size": `${atlas.columns * size}px auto`, "background-position": `${-column * atlas.side * scale}px ${-row * atlas.side * scale}px` } });
}

// What is known of an image, line by line.
function captionOf(run, index) {
  const { images } = run, data = mapData(run), lines = [images.names[index]];
  if (data.labels) lines.push(`class ${images.classes[data.labels[index]]}`);
  if (data.predicted) lines.push(`taken for ${images.classes[data.predicted[index]]} (${percent(data.confidence[index], 0)})`);
  return lines;
}

function thumbButton(run, index, more = null) {
  const choose = () => { document.getElementById("map")?.choose?.(index); };
  return el("button", { onclick: choose, title: captionOf(run, index).join("\n") }, thumb(run, index, 72), more ?? el("span", {}, run.images.names[index].split("/").pop()));
}

function mapData(run) {
  if (run.mapData) return run.mapData;
  const { images } = run;
  const data = { maps: Object.fromEntries(Object.entries(images.maps).map(([name, blob]) => [name, floats(blob)])) };
  if (images.labels) data.labels = integers(images.labels);
  if (images.predicted) { data.predicted = integers(images.predicted); data.confidence = floats(images.confidence); }
  return (run.mapData = data);
}

const METHODS = { tsne: "t-SNE: neighbours together", pca: "PCA: first two components" };
const SHAPES = 3;

function mapSection(run) {
  const { images } = run;
  if (!images) return null;
  const data = mapData(run), count = images.count;
  const state = { method: Object.keys(data.maps)[0], by: data.labels ? "labels" : data.predicted ? "predicted" : "none", only: null, zoom: 1, x: 0, y: 0, hover: -1, chosen: -1 };
  const canvas = el("canvas", { tabindex: 0, role: "application", "aria-label": `Map of ${count} images by their features. Arrow keys go to the next image, plus and minus zoom, Enter shows the neighbours.` });
  const tip = el("div", { cls: "tip hidden" }), side = el("div", { "aria-live": "polite" }), legend = el("div", { cls: "classes" });
  const plane = new Plane(canvas, state, data, count);
  const values = () => (state.by === "none" ? null : state.by === "right" ? data.right : data[state.by]);
  if (data.labels && data.predicted) data.right = data.labels.map((label, i) => (label === data.predicted[i] ? 0 : 1));
  const names = () => (state.by === "right" ? ["right", "wrong"] : images.classes);

  const relegend = () => {
    const found = values(), counts = new Map();
    found?.forEach((value) => counts.set(value, (counts.get(value) || 0) + 1));
    legend.replaceChildren(...[...counts.keys()].sort((a, b) => a - b).map((value) => el("button", {
      "aria-pressed": String(state.only === value),
      onclick: () => { state.only = state.only === value ? null : value; relegend(); plane.draw(); },
    }, mark(value), `${names()[value]} `, el("span", { cls: "soft" }, String(counts.get(value))))));
  };
  const mark = (value) => {
    const shape = Math.floor(value / COLOURS) % SHAPES, made = svg("svg", { width: 12, height: 12 });
    made.append(shape === 0 ? svg("circle", { cx: 6, cy: 6, r: 5, fill: colour(value) }) : shape === 1 ? svg("rect", { x: 1, y: 1, width: 10, height: 10, fill: colour(value) }) : svg("path", { d: "M6 0L12 11H0Z", fill: colour(value) }));
    return made;
  };
  const choose = (index) => {
    state.chosen = index;
    plane.draw();
    if (index < 0) { side.replaceChildren(el("p", { cls: "soft" }, "Choose an image to see the images that are nearest to it in the features.")); return; }
    const near = neighboursOf(run, index);
    side.replaceChildren(
      el("div", { style: { display: "flex", gap: ".6rem" } }, thumb(run, index, 128), el("div", { cls: "caption" }, captionOf(run, index).map((line, at) => el("div", { cls: at ? "soft" : null, style: { "overflow-wrap": "anywhere", "font-size": ".85rem" } }, line)))),
      near.length ? el("h3", { style: { margin: ".6rem 0 .3rem" } }, "Nearest") : null,
      el("div", { cls: "near" }, near.map(([other, likeness]) => thumbButton(run, other, el("span", {}, `${likeness.toFixed(2)} ${data.labels ? images.classes[data.labels[other]] : ""}`)))));
  };
  const hover = (index, x, y) => {
    state.hover = index;
    plane.draw();
    tip.classList.toggle("hidden", index < 0);
    if (index < 0) return;
    tip.replaceChildren(thumb(run, index, Math.min(128, images.atlas.side * 2)), ...captionOf(run, index).map((line) => el("div", {}, line)));
    const box = canvas.getBoundingClientRect();
    tip.style.left = x > box.width / 2 ? "auto" : `${x + 14}px`;
    tip.style.right = x > box.width / 2 ? `${box.width - x + 14}px` : "auto";
    tip.style.top = `${Math.max(0, Math.min(y + 10, box.height - tip.offsetHeight - 4))}px`;
  };
  plane.onHover = hover;
  plane.onChoose = choose;
  plane.values = values;
  const select = (label, options, pick) => el("label", {}, label, el("select", { onchange: (event) => pick(event.target.value) }, options.map(([value, text]) => el("option", { value }, text))));
  const kinds = [data.labels ? ["labels", "class"] : null, data.predicted ? ["predicted", "predicted class"] : null, data.right ? ["right", "right or wrong"] : null, ["none", "nothing"]].filter(Boolean);
  const methods = Object.keys(data.maps);
  const made = section("map", "Map of the images",
    el("p", { cls: "soft" }, `${count} images of ${images.key}${images.total > count ? `, spread over its ${images.total}` : ""}, by the features of the network. ${methods.includes("tsne") ? "" : "pip install 'unmask[report]' adds a map by t-SNE."}`),
    el("div", { cls: "tools" },
      methods.length > 1 ? select("by", methods.map((name) => [name, METHODS[name]]), (value) => { state.method = value; plane.place(); plane.resize(); }) : null,
      select("colour", kinds, (value) => { state.by = value; state.only = null; relegend(); plane.draw(); }),
      el("button", { onclick: () => plane.reset() }, "Whole map")),
    legend,
    el("div", { cls: "map", style: { "margin-top": ".5rem" } }, el("div", { cls: "plane" }, canvas, tip), side));
  made.choose = (index) => { choose(index); plane.show(index); };
  made.plane = plane;
  relegend();
  choose(-1);
  onRedraw(canvas.parentElement ?? canvas, () => plane.resize());
  return made;
}

function neighboursOf(run, index) {
  const { neighbours } = run.images;
  if (!neighbours) return [];
  run.near ??= { index: integers(neighbours.index), similarity: floats(neighbours.similarity) };
  const from = index * neighbours.k;
  return Array.from({ length: neighbours.k }, (_, i) => [run.near.index[from + i], run.near.similarity[from + i]]);
}

// Points on a canvas, written as pixels: a hundred thousand of them are drawn in some milliseconds.
class Plane {
  constructor(canvas, state, data, count) {
    Object.assign(this, { canvas, state, data, count });
    this.context = canvas.getContext("2d");
    this.place();
    let down = null;
    const pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
      down = { x: event.offsetX, y: event.offsetY, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      const { offsetX: x, offsetY: y } = event, before = pointers.get(event.pointerId);
      if (before && pointers.size === 1) {
        if (Math.hypot(x - down.x, y - down.y) > 4) down.moved = true;
        if (down.moved) this.pan(x - before[0], y - before[1]);
      } else if (before && pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
        const was = Math.hypot(before[0] - other[0], before[1] - other[1]), is = Math.hypot(x - other[0], y - other[1]);
        down.moved = true;
        if (was > 0) this.zoomAt(is / was, (x + other[0]) / 2, (y + other[1]) / 2);
      } else this.onHover(this.nearest(x, y), x, y);
      if (before) pointers.set(event.pointerId, [x, y]);
    });
    const up = (event) => {
      if (pointers.has(event.pointerId) && down && !down.moved && event.type === "pointerup") {
        const found = this.nearest(event.offsetX, event.offsetY, 14);
        if (found >= 0) this.onChoose(found);
      }
      pointers.delete(event.pointerId);
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => this.onHover(-1, 0, 0));
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoomAt(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY); }, { passive: false });
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("keydown", (event) => this.key(event));
  }
  // A grid over the places, by which the one under the pointer is found.
  place() {
    this.xy = this.data.maps[this.state.method];
    const extent = [0, 1].map((axis) => { let most = 1e-6; for (let i = axis; i < this.xy.length; i += 2) most = Math.max(most, Math.abs(this.xy[i])); return most; });
    this.extent = extent;
    this.side = Math.max(4, Math.ceil(Math.sqrt(this.count / 4)));
    this.cells = new Map();
    for (let i = 0; i < this.count; i++) {
      const key = this.cell(this.xy[2 * i]) * this.side + this.cell(this.xy[2 * i + 1]);
      if (!this.cells.has(key)) this.cells.set(key, []);
      this.cells.get(key).push(i);
    }
  }
  cell(v) { return Math.max(0, Math.min(this.side - 1, Math.floor(((v + 1) / 2) * this.side))); }
  resize() {
    const width = this.canvas.parentElement.clientWidth, height = Math.round(Math.max(280, Math.min((width - 28) * this.extent[1] / this.extent[0] + 28, innerHeight * 0.75)));
    this.ratio = Math.min(2, devicePixelRatio || 1);
    this.width = width; this.height = height;
    this.canvas.width = Math.round(width * this.ratio); this.canvas.height = Math.round(height * this.ratio);
    this.canvas.style.height = `${height}px`;
    this.draw();
  }
  get scale() { return Math.min((this.width / 2 - 14) / this.extent[0], (this.height / 2 - 14) / this.extent[1]) * this.state.zoom; }
  toScreen(i) { return [this.width / 2 + (this.xy[2 * i] - this.state.x) * this.scale, this.height / 2 - (this.xy[2 * i + 1] - this.state.y) * this.scale]; }
  toMap(x, y) { return [this.state.x + (x - this.width / 2) / this.scale, this.state.y - (y - this.height / 2) / this.scale]; }
  nearest(x, y, within = 10) {
    const [mx, my] = this.toMap(x, y), reach = within / this.scale;
    let best = -1, least = reach * reach;
    for (let cx = this.cell(mx - reach); cx <= this.cell(mx + reach); cx++)
      for (let cy = this.cell(my - reach); cy <= this.cell(my + reach); cy++)
        for (const i of this.cells.get(cx * this.side + cy) || []) {
          const distance = (this.xy[2 * i] - mx) ** 2 + (this.xy[2 * i + 1] - my) ** 2;
          if (distance < least && this.isShown(i)) { least = distance; best = i; }
        }
    return best;
  }
  isShown(i) { return this.state.only === null || this.values()[i] === this.state.only; }
  pan(dx, dy) { this.state.x -= dx / this.scale; this.state.y += dy / this.scale; this.draw(); }
  zoomAt(factor, x, y) {
    const [mx, my] = this.toMap(x, y);
    this.state.zoom = Math.max(0.8, Math.min(400, this.state.zoom * factor));
    const [nx, ny] = this.toMap(x, y);
    this.state.x += mx - nx; this.state.y += my - ny;
    this.draw();
  }
  reset() { Object.assign(this.state, { zoom: 1, x: 0, y: 0 }); this.draw(); }
  show(i) {
    const [x, y] = this.toScreen(i);
    if (x < 0 || y < 0 || x > this.width || y > this.height) { this.state.x = this.xy[2 * i]; this.state.y = this.xy[2 * i + 1]; this.draw(); }
    this.canvas.closest("section").scrollIntoView({ block: "nearest" });
  }
  key(event) {
    const towards = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "+" || event.key === "=") this.zoomAt(1.4, this.width / 2, this.height / 2);
    if (event.key === "-") this.zoomAt(1 / 1.4, this.width / 2, this.height / 2);
    if (event.key === "Enter" && this.state.hover >= 0) this.onChoose(this.state.hover);
    if (!towards) return;
    event.preventDefault();
    const from = this.state.hover >= 0 ? this.state.hover : this.state.chosen;
    let best = -1, least = Infinity;
    const [x, y] = from < 0 ? [this.state.x, this.state.y] : [this.xy[2 * from], this.xy[2 * from + 1]];
    for (let i = 0; i < this.count; i++) {
      if (i === from || !this.isShown(i)) continue;
      const dx = this.xy[2 * i] - x, dy = this.xy[2 * i + 1] - y, ahead = dx * towards[0] + dy * towards[1], distance = Math.hypot(dx, dy);
      if (from >= 0 && ahead < distance * 0.5) continue;
      if (distance < least && (distance > 0 || from < 0)) { least = distance; best = i; }
    }
    if (best >= 0) { this.show(best); this.onHover(best, ...this.toScreen(best)); }
  }
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }
  paint() {
    const { canvas, context, state } = this, began = performance.now();
    if (!canvas.width || !this.width) return;
    const w = canvas.width, h = canvas.height, image = context.createImageData(w, h), pixels = new Uint32Array(image.data.buffer);
    const values = this.values(), radius = Math.max(1.5, Math.min(6, (this.count < 2000 ? 4 : this.count < 20000 ? 2.2 : 1.4) * Math.min(2.5, state.zoom ** 0.35))) * this.ratio;
    const shapes = [0, 1, 2].map((kind) => offsets(kind, radius, w)), reach = Math.ceil(radius) + 1;
    const paints = Array.from({ length: COLOURS }, (_, i) => packed(css(`--c${i}`))), faint = packed(css("--line"));
    const scale = this.scale * this.ratio, cx = w / 2 - state.x * scale, cy = h / 2 + state.y * scale, xy = this.xy;
    const pass = (faded) => {
      for (let i = 0; i < this.count; i++) {
        const value = values ? values[i] : 0;
        if ((state.only !== null && value !== state.only) !== faded) continue;
        const x = (cx + xy[2 * i] * scale) | 0, y = (cy - xy[2 * i + 1] * scale) | 0;
        if (x < reach || y < reach || x >= w - reach || y >= h - reach) continue;
        const paint = faded ? faint : paints[value % COLOURS], shape = shapes[Math.floor(value / COLOURS) % SHAPES], at = y * w + x;
        for (let k = 0; k < shape.length; k++) pixels[at + shape[k]] = paint;
      }
    };
    if (state.only !== null) pass(true);
    pass(false);
    context.putImageData(image, 0, 0);
    for (const [index, width] of [[state.hover, 2], [state.chosen, 3.5]]) {
      if (index < 0) continue;
      const [x, y] = this.toScreen(index).map((v) => v * this.ratio);
      context.strokeStyle = css("--ink"); context.lineWidth = width * this.ratio;
      context.beginPath(); context.arc(x, y, radius + 4 * this.ratio, 0, 7); context.stroke();
    }
    this.milliseconds = performance.now() - began;
  }
}

// Where, from its middle, the pixels of a mark are: a disc, a square, a triangle.
function offsets(kind, radius, width) {
  const found = [], reach = Math.ceil(radius);
  for (let y = -reach; y <= reach; y++)
    for (let x = -reach; x <= reach; x++) {
      const inside = kind === 0 ? x * x + y * y <= radius * radius : kind === 1 ? Math.max(Math.abs(x), Math.abs(y)) <= radius * 0.85 : y <= radius * 0.8 && Math.abs(x) <= (y + radius) * 0.6;
      if (inside) found.push(y * width + x);
    }
  return Int32Array.from(found);
}

function packed(hex) {
  const value = parseInt(hex.slice(1), 16);
  return (0xff000000 | ((value & 0xff) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}
