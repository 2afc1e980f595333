// Line charts as plain SVG, each with its numbers as a table and as a download.

import { make } from "./parts.js";
import { visible } from "./elements.js";

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 640;
const HEIGHT = 220;
const LEFT = 62;
const BOTTOM = 28;
const TOP = 10;
const RIGHT = 12;
const MOST_ROWS = 500;
// Lines differ by dashes too, as colours alone tell some people nothing.
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"];

/** A chart of series {name, points: [[x, y], ...]}; `log` for a logarithmic axis. */
export function lineChart({ title, x, y, series, log = false }) {
  const figure = make("figure", "chart");
  const usable = series
    .map((each) => ({ ...each, points: each.points.filter((point) => isDrawn(point, log)) }))
    .filter(({ points }) => points.length);
  const caption = make("figcaption", "", make("b", "", visible(title)), make("span", "soft", ` ${visible(y)} by ${visible(x)}`));
  figure.append(caption);
  if (!usable.length) {
    figure.append(make("p", "soft", "No numbers are on record."));
    return figure;
  }
  figure.append(draw(usable, title, log));
  if (usable.length > 1) figure.append(legendOf(usable));
  figure.append(numbersOf(title, x, series));
  return figure;
}

function isDrawn([x, y], log) {
  return Number.isFinite(x) && Number.isFinite(y) && (!log || y > 0);
}

function draw(series, title, log) {
  const points = series.flatMap((each) => each.points);
  const xs = rangeOf(points.map(([x]) => x));
  const ys = rangeOf(points.map(([, y]) => (log ? Math.log10(y) : y)));
  const placeX = (x) => LEFT + ((x - xs.low) / xs.span) * (WIDTH - LEFT - RIGHT);
  const placeY = (y) =>
    HEIGHT - BOTTOM - (((log ? Math.log10(y) : y) - ys.low) / ys.span) * (HEIGHT - BOTTOM - TOP);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": visible(title) });
  for (const at of ticksOf(ys)) {
    const value = log ? 10 ** at : at;
    const height = placeY(value);
    svg.append(
      shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: height, y2: height, class: "grid" }),
      shape("text", { x: LEFT - 6, y: height + 4, "text-anchor": "end" }, short(value)),
    );
  }
  for (const at of ticksOf(xs))
    svg.append(shape("text", { x: placeX(at), y: HEIGHT - 8, "text-anchor": "middle" }, short(at)));
  series.forEach(({ points: own }, i) => {
    const path = own.map(([x, y]) => `${placeX(x).toFixed(1)},${placeY(y).toFixed(1)}`);
    const style = { class: `line c${i % 6}`, "stroke-dasharray": DASHES[i % 6] };
    if (own.length > 1) svg.append(shape("polyline", { points: path.join(" "), ...style }));
    else svg.append(shape("circle", { cx: placeX(own[0][0]), cy: placeY(own[0][1]), r: 3, class: `dot c${i % 6}` }));
  });
  return svg;
}

function rangeOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low < high) return { low, high, span: high - low };
  const room = Math.abs(low) / 2 || 0.5;
  return { low: low - room, high: low + room, span: 2 * room };
}

/** About four round values within a range. */
function ticksOf({ low, high, span }) {
  const rough = 10 ** Math.floor(Math.log10(span / 4));
  const step = [1, 2, 5, 10].map((each) => each * rough).find((each) => span / each <= 5);
  const ticks = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) ticks.push(at);
  return ticks;
}

export function short(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
  return Number(value.toPrecision(4)).toLocaleString("en");
}

function shape(tag, attributes, text = "") {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== "") made.setAttribute(name, value);
  made.append(text);
  return made;
}

function legendOf(series) {
  const list = make("ul", "chart-legend");
  series.forEach(({ name }, i) => {
    const sample = shape("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" });
    sample.append(shape("line", { x1: 0, x2: 24, y1: 4, y2: 4, class: `line c${i % 6}`, "stroke-dasharray": DASHES[i % 6] }));
    list.append(make("li", "", sample, visible(name)));
  });
  return list;
}

/** The numbers of a chart: unfolded as a table, or all of them as a file. */
function numbersOf(title, x, series) {
  const rows = new Map();
  series.forEach(({ points }, i) => {
    for (const [at, value] of points) {
      if (!rows.has(at)) rows.set(at, Array.from(series, () => ""));
      rows.get(at)[i] = value;
    }
  });
  const heads = [x, ...series.map(({ name }) => name)];
  const sorted = [...rows].sort(([a], [b]) => a - b).map(([at, values]) => [at, ...values]);
  const save = make("a", "", "Download as CSV");
  save.href = "#";
  save.setAttribute("download", `${title.replace(/[^\w-]+/g, "-")}.csv`);
  save.addEventListener("click", () => {
    const lines = [heads.map(quote), ...sorted].map((row) => row.join(","));
    save.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
    setTimeout(() => URL.revokeObjectURL(save.href), 10_000);
  });
  const folded = make("details", "", make("summary", "", "Numbers"), save);
  folded.addEventListener("toggle", () => {
    if (folded.querySelector("table")) return;
    const table = make("table", "", headRow(heads));
    for (const row of sorted.slice(0, MOST_ROWS))
      table.append(make("tr", "", ...row.map((each) => make("td", "", each === "" ? "" : short(Number(each))))));
    const scroll = make("div", "scrolling", table);
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", `Numbers of ${visible(title)}`);
    folded.append(scroll);
    if (sorted.length > MOST_ROWS)
      folded.append(make("p", "soft", `The file has all ${sorted.length.toLocaleString("en")} rows.`));
  });
  return folded;
}

export function headRow(heads) {
  const cells = heads.map((head) => {
    const made = make("th", "", visible(head));
    made.scope = "col";
    return made;
  });
  return make("tr", "", ...cells);
}

/** A field of CSV (RFC 4180); one that a spreadsheet would take for a formula begins with '. */
function quote(text) {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}
