// The report: sections of all runs, then those of the chosen one.
const RUNS = DATA.runs;
const main = document.getElementById("main");

function summarySection() {
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.last)))].filter((name) => RUNS.some((run) => run.last[name] !== null)).filter((name) => name !== "val top5" && name !== "val knn_top5");
  const head = el("tr", {}, el("th", {}, "run"), ["task", "images", "steps"].map((name) => el("th", { cls: name === "task" ? null : "number" }, name)), names.map((name) => el("th", { cls: "number" }, name)));
  const rows = RUNS.map((run, index) => el("tr", {}, el("th", { scope: "row" }, el("span", { cls: "swatch", style: { background: colour(index) } }), " ", run.name),
    el("td", {}, `${run.task} (${run.objective}), ${run.engine}`), el("td", { cls: "number" }, String(run.trainImages)), el("td", { cls: "number" }, String(run.steps)),
    names.map((name) => el("td", { cls: "number" }, /top1|accuracy/.test(name) ? percent(run.last[name]) : number(run.last[name])))));
  return section("summary", RUNS.length > 1 ? `${RUNS.length} runs` : RUNS[0].name,
    el("div", { cls: "card wide" }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows))),
    RUNS.flatMap((run) => run.notes.map((note) => el("p", { cls: "note" }, RUNS.length > 1 ? `${run.name}: ${note}` : note))));
}

function reconstructionSection(run) {
  const found = run.images?.reconstructions;
  if (!found) return null;
  const titles = ["original", "what the network sees", "what it paints", "with the visible patches"];
  return section("reconstructions", "Reconstructions",
    el("p", { cls: "soft" }, `${percent(found.maskRatio, 0)} of the patches are hidden. ${found.normPix ? "Brightness and contrast of hidden patches are estimated from the visible ones around. " : ""}The third picture shows every patch as painted; the loss asks for the hidden ones alone, so the visible ones come out rough.`),
    el("div", { cls: "grid" }, found.rows.map((blobs, row) => {
      const items = blobs.map((blob, index) => ({ url: () => pictureUrl(blob), caption: `${found.names[row]}: ${titles[index]}` }));
      return el("figure", { cls: "card" }, el("div", { cls: "four" }, blobs.map((blob, index) => el("button", { cls: "picture", title: titles[index], onclick: () => enlarge(items, index), "aria-label": items[index].caption }, picture(blob, items[index].caption)))),
        el("figcaption", { cls: "soft" }, found.names[row]));
    })));
}

function worstSection(run) {
  const { images } = run;
  if (!images?.worst) return null;
  const items = images.worst.map((one) => ({ blob: one.picture, caption: [images.names[one.image], `is ${images.classes[one.true]}`, `taken for ${images.classes[one.predicted]} (${percent(one.confidence, 0)})`, `loss ${number(one.loss, 3)}`] }));
  return section("mistakes", "Worst mistakes",
    el("p", { cls: "soft" }, items.length ? "Highest loss first, as the network sees them. A wrong label is often among them." : "None: every image was recognised."), gallery(items));
}

function batchSection(run) {
  if (!run.batches) return null;
  const told = (targets) => targets.filter(([, share]) => share > 0.001).map(([name, share]) => `${name} ${percent(share, 0)}`).join(", ");
  const items = run.batches.rows.flatMap((row) => row.pictures.map((blob, view) => ({ blob, caption: [row.name, run.batches.kinds[view], told(row.targets)].filter(Boolean) })));
  return section("batches", "What training shows the network",
    el("p", { cls: "soft" }, "The first images of the first batch: cropped, flipped and augmented, before masks. Where images are mixed, the shares of their classes stand below."), gallery(items));
}

function versionSection() {
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.versions)))];
  return section("versions", "Versions",
    RUNS.map((run) => el("div", {}, el("h3", {}, run.name), el("p", { cls: "soft" }, `${run.folder}${run.commit ? `, commit ${run.commit}` : ""}`), el("pre", {}, run.command))),
    el("div", { cls: "card wide" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "package"), RUNS.map((run) => el("th", {}, run.name)))), el("tbody", {}, names.map((name) => el("tr", {}, el("th", { scope: "row" }, name), RUNS.map((run) => el("td", {}, run.versions[name] || "–"))))))));
}

const perRun = el("div");
const nav = document.getElementById("sections");
function show(index) {
  const run = RUNS[index];
  perRun.replaceChildren(...[reconstructionSection, classSection, worstSection, mapSection, batchSection].map((make) => make(run)).filter(Boolean));
  const links = [...main.querySelectorAll("section")].map((part) => el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent));
  const choice = RUNS.length > 1 ? el("label", {}, "pictures of", el("select", { id: "run", onchange: (event) => show(Number(event.target.value)) }, RUNS.map((one, at) => el("option", { value: at, selected: at === index }, one.name)))) : null;
  nav.replaceChildren(...[choice, ...links].filter(Boolean));
}

document.title = `${RUNS.map((run) => run.name).join(", ")}: unmask report`;
document.getElementById("title").textContent = RUNS.length > 3 ? `${RUNS.length} runs` : RUNS.map((run) => run.name).join(" · ");
main.append(summarySection(), curveSection(RUNS), perRun, configSection(RUNS, DATA.config), versionSection());
show(Math.max(0, RUNS.findIndex((run) => run.images)));
document.getElementById("footer").textContent = `Written by unmask ${DATA.version}, ${DATA.made}.`;
