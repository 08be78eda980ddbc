// What all pages share: elements, numbers as text, embedded pictures, the enlarged view.
const DATA = JSON.parse(document.getElementById("data").textContent || "{}");
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;

// An element; texts become text nodes, so that no name is ever read as markup.
function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) made.style.setProperty(key, v);
    else made.setAttribute(name === "cls" ? "class" : name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, props = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) if (value !== null && value !== undefined) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(digits)));
}
const percent = (value, digits = 1) => (value === null || value === undefined || Number.isNaN(value) ? "–" : `${(100 * value).toFixed(digits)} %`);

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (index) => `var(--c${index % COLOURS})`;

function bytes(name) {
  const text = atob(document.getElementById(name).textContent);
  const found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
  return found;
}
const floats = (name) => new Float32Array(bytes(name).buffer);
const integers = (name) => new Int32Array(bytes(name).buffer);

const pictureUrls = new Map();
function pictureUrl(name) {
  if (!pictureUrls.has(name)) {
    const kind = document.getElementById(name).dataset.kind;
    pictureUrls.set(name, URL.createObjectURL(new Blob([bytes(name)], { type: kind })));
  }
  return pictureUrls.get(name);
}

// A picture that is decoded once it comes near the screen, or is printed: the browser knows when.
function picture(name, alt) {
  const made = el("img", { alt, loading: "lazy", decoding: "async", width: 1, height: 1 });
  made.addEventListener("load", () => made.naturalWidth < 100 && made.classList.add("small"));
  made.src = pictureUrl(name);
  return made;
}

// Pictures that open enlarged: `items` are {url(), caption}, and arrow keys go from one to the next.
function enlarge(items, index) {
  const box = document.getElementById("lightbox");
  const show = (next) => {
    index = (next + items.length) % items.length;
    const { url, caption } = items[index];
    const image = el("img", { src: url(), alt: caption });
    image.addEventListener("load", () => image.naturalWidth < 100 && image.classList.add("small"));
    box.replaceChildren(
      image,
      el("p", {}, caption),
      el("div", { cls: "tools" },
        items.length > 1 ? el("button", { onclick: () => show(index - 1), "aria-label": "Previous" }, "←") : null,
        el("span", { cls: "soft" }, `${index + 1} of ${items.length}`),
        items.length > 1 ? el("button", { onclick: () => show(index + 1), "aria-label": "Next" }, "→") : null,
        el("button", { onclick: () => box.close() }, "Close")));
  };
  box.onkeydown = (event) => {
    if (event.key === "ArrowLeft") show(index - 1);
    if (event.key === "ArrowRight") show(index + 1);
  };
  box.onclick = (event) => event.target === box && box.close();
  show(index);
  if (!box.open) box.showModal();
}

function gallery(items, cls = "pictures") {
  const shown = items.map(({ blob, caption }) => ({ url: () => pictureUrl(blob), caption: caption.join(" · ") }));
  return el("div", { cls }, items.map(({ blob, caption }, index) =>
    el("figure", {},
      el("button", { cls: "picture", onclick: () => enlarge(shown, index), "aria-label": `Enlarge ${caption[0]}` }, picture(blob, caption[0])),
      el("figcaption", {}, caption.filter(Boolean).map((line, at) => el("div", { cls: at ? "soft" : null }, line))))));
}

function section(id, title, ...children) {
  return el("section", { id }, el("h2", {}, title), ...children);
}

// Draw again when the width or the colours change.
const redraws = new Set();
function onRedraw(element, draw) {
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(element);
  redraws.add(() => element.isConnected && draw());
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((draw) => draw()));
