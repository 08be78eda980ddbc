// Tables and the confusion matrix.

// A table whose columns sort by a click; `columns` are {title, number, cell(row)}, where a cell is a value or [value, node].
function sortable(columns, rows, start = null) {
  const body = el("tbody"), heads = [];
  let by = start?.column ?? -1, down = start?.down ?? false;
  const valueOf = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const draw = () => {
    const order = [...rows];
    if (by >= 0)
      order.sort((a, b) => {
        const [x, y] = [a, b].map((row) => valueOf(columns[by].cell(row)));
        const missing = (v) => v === null || v === undefined || Number.isNaN(v);
        if (missing(x) || missing(y)) return missing(x) - missing(y);
        const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
        return down ? -order : order;
      });
    body.replaceChildren(...order.map((row) => el("tr", {}, columns.map((column) => {
      const cell = column.cell(row);
      return el("td", { cls: column.number ? "number" : null }, Array.isArray(cell) ? cell[1] : cell === null || cell === undefined ? "–" : column.show ? column.show(cell) : String(cell));
    }))));
    heads.forEach((head, index) => {
      head.setAttribute("aria-sort", index === by ? (down ? "descending" : "ascending") : "none");
      head.querySelector("span").textContent = index === by ? (down ? " ▾" : " ▴") : "";
    });
  };
  columns.forEach((column, index) => heads.push(el("th", { scope: "col", cls: column.number ? "number" : null }, el("button", {
    onclick: () => { down = by === index ? !down : Boolean(column.number); by = index; draw(); },
  }, column.title, el("span")))));
  draw();
  return el("table", {}, el("thead", {}, el("tr", {}, heads)), body);
}

function configSection(runs, rows) {
  const body = el("tbody"), many = runs.length > 1;
  let only = many ? "differs" : "set", word = "";
  const differs = (row) => row.values.some((value) => value !== row.values[0]);
  const draw = () => {
    const shown = rows.filter((row) => (only === "all" || (only === "set" ? row.set : differs(row))) && `${row.key} ${row.values.join(" ")}`.toLowerCase().includes(word));
    body.replaceChildren(...shown.map((row) => el("tr", { cls: many && differs(row) ? "differs" : null }, el("th", { scope: "row" }, row.key), row.values.map((value) => el("td", {}, value || "–")))));
    if (!shown.length) body.append(el("tr", {}, el("td", { colspan: 1 + runs.length, cls: "soft" }, only === "differs" ? "All runs have the same configuration." : "No key has this text.")));
  };
  const choice = el("select", { "aria-label": "Which keys", onchange: (event) => { only = event.target.value; draw(); } },
    many ? el("option", { value: "differs" }, "what differs") : null,
    el("option", { value: "set" }, "other than the default"), el("option", { value: "all" }, "every key"));
  draw();
  return section("config", "Configuration",
    el("div", { cls: "tools" }, choice, el("label", {}, "find", el("input", { type: "search", oninput: (event) => { word = event.target.value.toLowerCase(); draw(); } }))),
    el("div", { cls: "card wide tall", tabindex: 0, role: "region", "aria-label": "Configuration" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "key"), runs.map((run) => el("th", {}, run.name)))), body)));
}

function balance(run) {
  const parts = [];
  if (run.classCounts) parts.push(["training", run.classCounts]);
  const { images } = run;
  if (images?.labels) {
    const counts = new Array(images.classes.length).fill(0);
    for (const label of integers(images.labels)) counts[label]++;
    if (images.key !== "data.train") parts.push([`${images.key}${images.total > images.count ? `, ${images.count} of ${images.total}` : ""}`, { classes: images.classes, counts }]);
  }
  if (!parts.length) return null;
  const names = [...new Set(parts.flatMap(([, part]) => part.classes))];
  const rows = names.map((name) => ({ name, counts: parts.map(([, part]) => part.counts[part.classes.indexOf(name)] ?? 0) }));
  const most = parts.map(([, part]) => Math.max(1, ...part.counts));
  const columns = [{ title: "class", cell: (row) => row.name }];
  parts.forEach(([title], index) => {
    columns.push({ title: `${title} images`, number: true, cell: (row) => row.counts[index] });
    columns.push({ title: "", cell: (row) => [row.counts[index], el("span", { cls: index ? "bar second" : "bar", style: { width: `${(100 * row.counts[index]) / most[index]}%` } })] });
  });
  const counts = parts[0][1].counts.filter(Boolean);
  const ratio = Math.max(...counts) / Math.min(...counts);
  return el("div", {}, el("h3", {}, "Class balance"),
    el("p", { cls: "soft" }, `${names.length} classes; the largest has ${number(ratio, 2)} times the images of the smallest (${parts[0][0]}).`),
    el("div", { cls: "card wide tall", tabindex: 0, role: "region", "aria-label": "Class balance" }, sortable(columns, rows)));
}

function classSection(run) {
  const { images } = run, balanced = balance(run);
  if (!images?.metrics) return balanced ? section("classes", "Classes", balanced) : null;
  const { metrics, classes } = images;
  const rows = images.perClass.map(([support, precision, recall, f1], index) => ({ name: classes[index], support, precision, recall, f1 }));
  const share = (title, key) => ({ title, number: true, cell: (row) => row[key], show: percent });
  const facts = [["accuracy", metrics.top1], ...(classes.length > 5 ? [["among the likeliest 5", metrics.top5]] : []), ["balanced accuracy", metrics.balanced_accuracy], ["macro F1", metrics.macro_f1], ["calibration error", metrics.calibration_error]];
  return section("classes", "Classes",
    el("p", { cls: "soft" }, `${metrics.count} images of ${images.key}${images.total > images.count ? `, spread over its ${images.total}` : ""}.`),
    el("div", { cls: "facts" }, facts.map(([name, value]) => el("div", {}, el("b", {}, percent(value)), el("span", { cls: "soft" }, name)))),
    el("div", { cls: "two" },
      el("div", {}, el("h3", {}, "Confusion"), confusion(run)),
      el("div", {}, el("h3", {}, "Reliability"), el("p", { cls: "soft" }, "How often it is right when it is this sure. On the dashed line it is as right as it claims; above blue, orange is how much surer it is than right, light blue how much more right than sure."), reliability(images.bins))),
    el("h3", {}, "Class by class"),
    el("div", { cls: "card wide tall", tabindex: 0, role: "region", "aria-label": "Class by class" }, sortable([
      { title: "class", cell: (row) => row.name }, { title: "images", number: true, cell: (row) => row.support },
      share("precision", "precision"), share("recall", "recall"), share("F1", "f1"),
      { title: "", cell: (row) => [row.f1, el("span", { cls: "bar", style: { width: `${100 * (row.f1 || 0)}%` } })] }], rows, { column: 4, down: false })),
    el("div", { style: { "margin-top": "1rem" } }, balanced));
}

// Rows are true classes, columns predicted ones; a cell's images are listed below when it is chosen.
function confusion(run) {
  const { images } = run, names = images.classes;
  const occurring = [...new Set(images.confusion.flatMap(([row, column]) => [row, column]))].sort((a, b) => a - b);
  const place = new Map(occurring.map((label, index) => [label, index])), n = occurring.length;
  const counts = new Map(images.confusion.map(([row, column, count]) => [place.get(row) * n + place.get(column), count]));
  const sums = new Array(n).fill(0);
  for (const [row, , count] of images.confusion) sums[place.get(row)] += count;
  const canvas = el("canvas", { tabindex: 0, role: "img", "aria-label": `Confusion matrix of ${n} classes. Arrow keys choose a cell, Enter shows its images.` });
  const readout = el("p", { "aria-live": "polite", cls: "soft" }, "Point at a cell, or choose one with the arrow keys; a click shows its images.");
  const list = el("div");
  let geometry, at = null;
  const labels = integers(images.labels), predicted = integers(images.predicted);
  const draw = () => {
    const scale = devicePixelRatio || 1, width = canvas.parentElement.clientWidth || 300, context = canvas.getContext("2d");
    const room = Math.min(110, width * 0.28), cell = Math.max(1, Math.min(46, (width - room - 4) / n)), size = room + cell * n + 2;
    canvas.width = size * scale; canvas.height = size * scale;
    canvas.style.width = canvas.style.height = `${size}px`;
    context.scale(scale, scale);
    geometry = { room, cell };
    const ink = css("--ink"), soft = css("--soft"), right = css("--c0"), wrong = css("--c1"), line = css("--line");
    context.strokeStyle = line; context.strokeRect(room - 0.5, room - 0.5, cell * n + 1, cell * n + 1);
    for (const [key, count] of counts) {
      const row = Math.floor(key / n), column = key % n, share = count / sums[row];
      context.globalAlpha = 0.12 + 0.88 * share; context.fillStyle = row === column ? right : wrong;
      context.fillRect(room + column * cell, room + row * cell, Math.max(1, cell - (cell > 8 ? 1 : 0)), Math.max(1, cell - (cell > 8 ? 1 : 0)));
      context.globalAlpha = 1;
      if (cell >= 20) {
        context.fillStyle = share > 0.5 ? css("--paper") : ink; context.font = `${Math.min(13, cell * 0.42)}px system-ui, sans-serif`; context.textAlign = "center"; context.textBaseline = "middle";
        context.fillText(count, room + (column + 0.5) * cell, room + (row + 0.5) * cell);
      }
    }
    if (cell >= 9) {
      context.fillStyle = soft; context.font = `${Math.min(12, cell - 1)}px ${getComputedStyle(document.body).fontFamily}`; context.textBaseline = "middle";
      occurring.forEach((label, index) => {
        const name = fitted(context, names[label], room - 8);
        context.textAlign = "right"; context.fillText(name, room - 5, room + (index + 0.5) * cell);
        context.save(); context.translate(room + (index + 0.5) * cell, room - 5); context.rotate(-Math.PI / 2); context.textAlign = "left"; context.fillText(name, 0, 0); context.restore();
      });
    }
    if (at) { context.strokeStyle = ink; context.lineWidth = 2; context.strokeRect(room + at.column * cell, room + at.row * cell, cell, cell); }
  };
  const choose = (row, column) => {
    at = { row: Math.max(0, Math.min(n - 1, row)), column: Math.max(0, Math.min(n - 1, column)) };
    const count = counts.get(at.row * n + at.column) || 0, [truth, guess] = [occurring[at.row], occurring[at.column]];
    readout.textContent = `${names[truth]} ${truth === guess ? "recognised" : `taken for ${names[guess]}`}: ${count} of ${sums[at.row]} (${percent(count / (sums[at.row] || 1))})`;
    draw();
  };
  const open = () => {
    if (!at) return;
    const [truth, guess] = [occurring[at.row], occurring[at.column]], found = [];
    labels.forEach((label, index) => label === truth && predicted[index] === guess && found.push(index));
    list.replaceChildren(el("div", { cls: "near" }, found.slice(0, 48).map((index) => thumbButton(run, index))), found.length > 48 ? el("p", { cls: "soft" }, `and ${found.length - 48} more`) : "");
  };
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect(), { room, cell } = geometry;
    const column = Math.floor((event.clientX - box.left - room) / cell), row = Math.floor((event.clientY - box.top - room) / cell);
    return row >= 0 && column >= 0 && row < n && column < n ? [row, column] : null;
  };
  canvas.addEventListener("pointermove", (event) => { const cell = cellAt(event); if (cell) choose(...cell); });
  canvas.addEventListener("click", (event) => { const cell = cellAt(event); if (cell) { choose(...cell); open(); } });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (move) { event.preventDefault(); choose((at?.row ?? 0) + move[0], (at?.column ?? 0) + move[1]); }
    if (event.key === "Enter") open();
  });
  const held = el("div", {}, canvas);
  onRedraw(held, draw);
  return el("div", {}, el("p", { cls: "soft" }, "Rows: true class. Columns: what it was taken for. The stronger, the larger the share of the row."), held, readout, list);
}

function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const letters = [...text];
  while (letters.length > 1 && context.measureText(letters.join("") + "…").width > width) letters.pop();
  return letters.join("") + "…";
}
