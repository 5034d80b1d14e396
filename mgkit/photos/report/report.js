"use strict";
// Search by name, keys, and the map. Without this script the page shows everything but these.

const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const dataOf = (id) => (byId(id) ? JSON.parse(byId(id).textContent) : null);

const { names, groups } = dataOf("names-data");
const map = dataOf("map-data");
const MOST_HITS = 30; // in the list below the field
let hits = null; // positions of the pictures that the search found; null: nothing is searched

function element(tag, text = "", properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text) made.textContent = text; // never as HTML: names may hold anything
  return made;
}

// --- Search

// Small letters without accents.
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const plainNames = names.map(plain);
const onPage = all(".picture, #left-out tr").filter((each) => each.querySelector("bdi"))
  .map((each) => ({ each, name: plain(each.querySelector("bdi").textContent) }));

function hasAll(words) {
  return (name) => words.every((word) => name.includes(word));
}

function search() {
  const words = plain(byId("field").value).split(/\s+/).filter(Boolean);
  const found = hasAll(words);
  hits = words.length ? new Set(plainNames.flatMap((name, n) => (found(name) ? [n] : []))) : null;
  for (const { each, name } of onPage) each.classList.toggle("hit", hits !== null && found(name));
  document.body.classList.toggle("searching", hits !== null);
  for (const row of all(".group")) row.hidden = hits !== null && !row.querySelector(".hit");
  for (const part of all("section.pictures")) {
    part.classList.toggle("empty", hits !== null && !part.querySelector(".hit"));
  }
  listHits();
  if (map) plane.changed();
}

function listHits() {
  const list = [...(hits || [])].slice(0, MOST_HITS);
  const more = hits && hits.size > MOST_HITS ? `, the first ${MOST_HITS} below` : "";
  byId("count").textContent = hits
    ? `${hits.size.toLocaleString("en")} of ${names.length.toLocaleString("en")} pictures${more}` : "";
  byId("hits").replaceChildren(...list.map(hitItem));
}

function hitItem(n) {
  const item = element("li");
  item.append(element("bdi", names[n]), ...groupLinks(n));
  if (map) {
    const button = element("button", "on the map", { type: "button" });
    button.addEventListener("click", () => plane.show(n));
    item.append(" ", button);
  }
  return item;
}

const groupsOf = new Map(); // position of a picture -> numbers of its groups
groups.forEach((members, g) => {
  for (const n of members) groupsOf.set(n, [...(groupsOf.get(n) || []), g + 1]);
});

function groupLinks(n) {
  return (groupsOf.get(n) || []).flatMap((number) => {
    const shown = byId(`group-${number}`);
    if (!shown) return [` group ${number} of near_duplicates.csv`];
    const link = element("a", `group ${number}`, { href: `#group-${number}` });
    link.addEventListener("click", () => { shown.hidden = false; });
    return [" ", link];
  });
}

function clearSearch() {
  byId("field").value = "";
  search();
}

// --- Keys

const typing = (target) => target.matches("input, textarea, select");

function pageKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !typing(event.target)) {
    byId("field").focus();
    event.preventDefault();
  } else if (event.key === "Escape") {
    clearSearch();
  } else if (event.target.closest(".look")) {
    moveAmongPictures(event);
  }
}

// Left and right within a row, up and down between rows.
function moveAmongPictures(event) {
  const row = event.target.closest(".group");
  const inRow = all(".look", row);
  const place = inRow.indexOf(event.target);
  const rows = all(".group:not([hidden])");
  const neighbour = (step) => all(".look", rows[rows.indexOf(row) + step] || row);
  const steps = {
    ArrowRight: () => inRow[place + 1],
    ArrowLeft: () => inRow[place - 1],
    Home: () => inRow[0],
    End: () => inRow[inRow.length - 1],
    ArrowDown: () => sameOrLast(neighbour(1), place),
    ArrowUp: () => sameOrLast(neighbour(-1), place),
  };
  if (!(event.key in steps) || event.shiftKey) return;
  event.preventDefault();
  const next = steps[event.key]();
  if (next) next.focus();
}

const sameOrLast = (list, place) => list[Math.min(place, list.length - 1)];

// --- The map

const CELL = 44; // side of a thumbnail on the whole map, px
const GROWTH = 0.75; // by which power of 2 thumbnails are larger where the map is zoomed
const MARGIN = 36, MOST_SCALE = 64, REACH = 10, DOT = 2.5; // px, times, px, px

class Plane {
  // The canvas with what is seen of it: `scale` times as large as the canvas, and moved by left and top.
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.sheets = map.sheets.map((uri) => Object.assign(new Image(), { src: uri }));
    for (const sheet of this.sheets) sheet.addEventListener("load", () => this.draw());
    this.tileOf = new Map(map.tiles.map((n, tile) => [n, tile]));
    this.scale = 1;
    this.left = this.top = 0;
    this.selected = null;
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = this.width * ratio;
    this.canvas.height = this.height * ratio;
    this.ratio = ratio;
    this.move(0, 0);
    this.changed();
  }

  // Which pictures are shown, or how, has changed.
  changed() {
    this.cells = null;
    this.draw();
  }

  // Place of a picture on the unmoved map, px.
  place(n) {
    const x = map.x[n] / map.cells, y = map.y[n] / map.cells;
    return [MARGIN + x * (this.width - 2 * MARGIN), MARGIN + y * (this.height - 2 * MARGIN)];
  }

  onScreen([x, y]) {
    return [x * this.scale - this.left, y * this.scale - this.top];
  }

  offScreen([x, y]) {
    return [(x + this.left) / this.scale, (y + this.top) / this.scale];
  }

  // Side of a cell on the unmoved map: it changes in steps, so that thumbnails stay in their cells between.
  cellSide() {
    const level = Math.floor(Math.log2(this.scale));
    return CELL / 2 ** (level - Math.min(level / 2, GROWTH));
  }

  // {cell: picture}: of the thumbnails in a cell the one that was searched for, then the most central one.
  tiles() {
    const side = this.cellSide();
    if (this.cells && this.side === side) return this.cells;
    this.side = side;
    const best = new Map();
    for (const n of map.tiles) {
      const [x, y] = this.place(n).map((value) => value / side);
      const cell = this.cellOf(n);
      const wanted = n === this.selected || (hits && hits.has(n)) ? 0 : 1;
      const rank = wanted + Math.hypot((x % 1) - 0.5, (y % 1) - 0.5);
      if (!best.has(cell) || rank < best.get(cell).rank) best.set(cell, { n, rank });
    }
    this.cells = new Map([...best].map(([cell, { n }]) => [cell, n]));
    this.arrangeDots();
    return this.cells;
  }

  cellOf(n) {
    return this.place(n).map((value) => Math.floor(value / this.side)).join();
  }

  // Dots are the pictures beside the thumbnails; what was searched for is seen on them, too.
  arrangeDots() {
    const others = names.map((_, n) => n).filter((n) => this.cells.get(this.cellOf(n)) !== n);
    this.dots = others.filter((n) => (hits ? hits.has(n) : !this.cells.has(this.cellOf(n))));
  }

  // Left, top and side of a cell on the screen.
  square(cell) {
    const [column, row] = cell.split(",").map(Number);
    return [...this.onScreen([column * this.side, row * this.side]), this.side * this.scale];
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.drawNow();
    });
  }

  drawNow() {
    const { context, ratio } = this;
    const style = getComputedStyle(this.canvas);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    for (const [cell, n] of this.tiles()) this.drawTile(n, ...this.square(cell));
    this.drawDots(style.getPropertyValue(hits ? "--accent" : "--dim"), hits ? 2 * DOT : DOT);
    this.drawSelected(style.getPropertyValue("--accent"));
  }

  drawDots(colour, radius) {
    const { context } = this;
    context.fillStyle = colour;
    context.globalAlpha = hits ? 1 : 0.5;
    for (const n of this.dots) {
      const [x, y] = this.onScreen(this.place(n));
      if (!this.sees(x, y, radius)) continue;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
  }

  sees(x, y, side) {
    return x > -side && y > -side && x < this.width + side && y < this.height + side;
  }

  drawTile(n, x, y, side) {
    if (!this.sees(x, y, side)) return;
    this.context.globalAlpha = hits && !hits.has(n) ? 0.25 : 1;
    copyTile(this.context, this, n, x + 1, y + 1, side - 2);
    this.context.globalAlpha = 1;
  }

  drawSelected(colour) {
    if (this.selected === null) return;
    const { context } = this;
    const square = this.squareOf(this.selected);
    context.strokeStyle = colour;
    context.lineWidth = 4;
    context.beginPath();
    if (square) context.rect(square[0], square[1], square[2], square[2]);
    else context.arc(...this.onScreen(this.place(this.selected)), 8, 0, 2 * Math.PI);
    context.stroke();
  }

  squareOf(n) {
    for (const [cell, other] of this.tiles()) if (other === n) return this.square(cell);
    return null;
  }

  // The middle of a picture on the screen, as it is drawn.
  middle(n) {
    const square = this.squareOf(n);
    return square ? [square[0] + square[2] / 2, square[1] + square[2] / 2] : this.onScreen(this.place(n));
  }

  // The picture at a point of the screen, or null.
  at(x, y) {
    const [column, row] = this.offScreen([x, y]).map((value) => Math.floor(value / this.cellSide()));
    const tile = this.tiles().get(`${column},${row}`);
    if (tile !== undefined) return tile;
    let best = null, least = REACH;
    for (let n = 0; n < names.length; n += 1) {
      const [left, top] = this.onScreen(this.place(n));
      const distance = Math.hypot(left - x, top - y);
      if (distance < least) [best, least] = [n, distance];
    }
    return best;
  }

  move(x, y) {
    const most = (side) => side * (this.scale - 1);
    this.left = Math.min(Math.max(this.left + x, 0), most(this.width));
    this.top = Math.min(Math.max(this.top + y, 0), most(this.height));
    this.draw();
  }

  // Zoom by a factor; what is at (x, y) of the screen stays there.
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const [worldX, worldY] = this.offScreen([x, y]);
    this.scale = Math.min(Math.max(this.scale * factor, 1), MOST_SCALE);
    this.left = worldX * this.scale - x;
    this.top = worldY * this.scale - y;
    this.move(0, 0);
  }

  centre(n) {
    const [x, y] = this.middle(n);
    this.move(x - this.width / 2, y - this.height / 2);
  }

  keepInSight(n) {
    const [x, y] = this.middle(n);
    if (x < MARGIN || y < MARGIN || x > this.width - MARGIN || y > this.height - MARGIN) this.centre(n);
  }

  select(n) {
    this.selected = n;
    this.changed();
    showDetails(n);
    if (n !== null) this.keepInSight(n);
  }

  // From elsewhere on the page: bring a picture into view.
  show(n) {
    this.scale = Math.max(this.scale, 8);
    this.select(n);
    this.centre(n);
    byId("map").scrollIntoView({ block: "start" });
    this.canvas.focus({ preventScroll: true });
  }

  // Select the nearest thumbnail in a direction.
  step(right, down) {
    const [x, y] = this.selected === null ? [this.width / 2, this.height / 2] : this.middle(this.selected);
    let best = null, least = Infinity;
    for (const [cell, n] of this.tiles()) {
      const [left, top, side] = this.square(cell);
      const dx = left + side / 2 - x, dy = top + side / 2 - y;
      const along = dx * right + dy * down, across = Math.abs(dx * down + dy * right);
      const ahead = this.selected === null || (along > 1 && across <= along);
      const distance = Math.hypot(dx, dy) + across;
      if (n !== this.selected && ahead && distance < least) [best, least] = [n, distance];
    }
    if (best !== null) this.select(best);
  }
}

function copyTile(context, { sheets, tileOf }, n, x, y, side) {
  const tile = tileOf.get(n), each = map.across ** 2;
  const sheet = sheets[Math.floor(tile / each)];
  if (!sheet.complete) return;
  const row = Math.floor((tile % each) / map.across), column = tile % map.across;
  context.drawImage(sheet, column * map.side, row * map.side, map.side, map.side, x, y, side, side);
}

const plane = map && new Plane(byId("plane"));

function classesOf(n) {
  if (!map.classes.length) return "";
  const likely = map.labels[n].map((label, k) => [map.classes[label], map.percents[n][k]]);
  const shown = likely.filter(([, percent]) => percent > 0);
  return shown.map(([name, percent]) => `${name} ${percent} %`).join(", ");
}

// --- What is known of the selected picture

function showDetails(n) {
  byId("details").hidden = n === null;
  byId("details-none").hidden = n !== null;
  if (n === null) return;
  byId("details-name").replaceChildren(element("bdi", names[n]));
  byId("details-text").replaceChildren(classesOf(n), element("br"), ...groupLinks(n));
  byId("details-picture").replaceChildren(...largest(n));
  byId("details-near").replaceChildren(...map.near[n].map(nearButton));
}

// The thumbnail of the page, which is the whole picture, or that of the map.
function largest(n) {
  const image = document.querySelector(`[data-picture="${n}"] img`);
  if (image) return [element("img", "", { src: image.src, alt: names[n] })];
  return plane.tileOf.has(n) ? [tileCanvas(n, map.side)] : [element("p", "no thumbnail in this file")];
}

function tileCanvas(n, side) {
  const canvas = element("canvas", "", { width: side, height: side });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", names[n]);
  copyTile(canvas.getContext("2d"), plane, n, 0, 0, side);
  return canvas;
}

function nearButton(tile) {
  const n = map.tiles[tile];
  const button = element("button", "", { type: "button", title: names[n] });
  button.append(tileCanvas(n, 64));
  button.addEventListener("click", () => {
    plane.select(n);
    byId("details-near").querySelector("button").focus();
  });
  return button;
}

// --- Mouse, touch and keys on the map

const fingers = new Map(); // {pointer: [x, y]} of those that are down
let moved = 0; // px since the first went down

const point = (event) => [event.offsetX, event.offsetY];

function pointerDown(event) {
  if (!fingers.size) moved = 0;
  fingers.set(event.pointerId, point(event));
  event.target.setPointerCapture(event.pointerId);
  hideTip();
}

function pointerMove(event) {
  const before = fingers.get(event.pointerId);
  const [x, y] = point(event);
  if (!before) {
    showTip(x, y);
    return;
  }
  moved += Math.hypot(x - before[0], y - before[1]);
  const other = [...fingers].find(([id]) => id !== event.pointerId);
  if (other) pinch(before, [x, y], other[1]);
  else plane.move(before[0] - x, before[1] - y);
  fingers.set(event.pointerId, [x, y]);
}

function pinch(before, after, other) {
  const apart = (one) => Math.max(Math.hypot(one[0] - other[0], one[1] - other[1]), 1);
  plane.zoom(apart(after) / apart(before), (after[0] + other[0]) / 2, (after[1] + other[1]) / 2);
}

function pointerUp(event) {
  if (!fingers.delete(event.pointerId) || fingers.size || moved > REACH) return;
  plane.select(plane.at(...point(event)));
  if (plane.selected !== null) byId("details").scrollIntoView({ block: "nearest" });
}

// The wheel zooms once the map has been clicked, or with Ctrl; else it scrolls the page.
function wheel(event) {
  if (!event.ctrlKey && document.activeElement !== plane.canvas) return;
  event.preventDefault();
  plane.zoom(2 ** (-event.deltaY / 300), ...point(event));
}

const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

function mapKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const direction = DIRECTIONS[event.key];
  const at = plane.selected === null ? [] : plane.middle(plane.selected);
  if (direction && event.shiftKey) plane.move(80 * direction[0], 80 * direction[1]);
  else if (direction) plane.step(...direction);
  else if (event.key === "+" || event.key === "=") plane.zoom(2, ...at);
  else if (event.key === "-") plane.zoom(0.5, ...at);
  else if (event.key === "0") plane.zoom(0);
  else if (event.key === "Escape" && plane.selected !== null) plane.select(null);
  else if (event.key === "Enter") openGroup();
  else return;
  event.preventDefault();
}

function openGroup() {
  const link = byId("details-text").querySelector("a");
  if (plane.selected !== null && link) link.click();
}

function showTip(x, y) {
  const n = plane.at(x, y), tip = byId("tip");
  tip.hidden = n === null;
  if (n === null) return;
  tip.replaceChildren(element("bdi", names[n]), element("br"), classesOf(n));
  tip.style.left = `${Math.max(0, Math.min(x + 14, plane.width - tip.offsetWidth))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > plane.height ? y - 10 - tip.offsetHeight : y + 18}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

// --- Start

function startMap() {
  const { canvas } = plane;
  canvas.addEventListener("pointerdown", pointerDown);
  canvas.addEventListener("pointermove", pointerMove);
  canvas.addEventListener("pointerup", pointerUp);
  canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("wheel", wheel, { passive: false });
  canvas.addEventListener("keydown", mapKey);
  byId("zoom-in").addEventListener("click", () => plane.zoom(2));
  byId("zoom-out").addEventListener("click", () => plane.zoom(0.5));
  byId("zoom-whole").addEventListener("click", () => plane.zoom(0));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plane.draw());
  for (const button of all("button.look")) {
    button.addEventListener("click", () => plane.show(Number(button.dataset.picture)));
  }
}

// What is jumped to must not lie below the search, which stays at the top.
function keepClear() {
  document.documentElement.style.scrollPaddingTop = `${byId("search").offsetHeight - 1}px`;
}

for (const each of all(".scripted")) each.hidden = false;
new ResizeObserver(keepClear).observe(byId("search"));
byId("field").addEventListener("input", () => {
  search();
  byId("main").scrollIntoView(); // to the first hits
});
document.addEventListener("keydown", pageKey);
if (map) startMap();
search();
