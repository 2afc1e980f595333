// What the page is made of: elements, text made visible, tables, bars, numbers.

// Characters that would not be seen, or that make a line read otherwise than it was written: controls,
// and what Unicode has a reader ignore (tags, fillers, directions), but for what joins letters and emoji.
const HIDDEN =
  /(?![\u200c\u200d\ufe0e\ufe0f])[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\ufff9-\ufffb\p{Default_Ignorable_Code_Point}]/gu;

/** An element with its class, its text or children; text is never taken for markup. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Text with what would not be seen made visible. */
export function visible(text) {
  return text.replace(HIDDEN, (one) => {
    const code = one.codePointAt(0).toString(16);
    return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
  });
}

/** A token on one line, its blanks made visible. */
export function worded(text) {
  return visible(text).replace(/\n/g, "↵").replace(/\t/g, "⇥");
}

/** The same as elements: a blank is a faint dot. */
export function wordParts(text) {
  const pieces = worded(text).split(/( +|↵|⇥)/);
  return pieces
    .filter(Boolean)
    .map((piece) =>
      /[ ↵⇥]/.test(piece) ? make("span", "blank", piece.replace(/ /g, "·")) : piece,
    );
}

export function tableOf(heads, ...rows) {
  return make("table", "", make("tr", "", ...heads.map((head) => make("th", "", head))), ...rows);
}

/** A heading's words, after the colour of the bars that it stands for. */
export function swatched(className, words) {
  return make("span", "", make("i", className), words);
}

/** A table of the first rows; the others can be unfolded. */
export function shortened(heads, rows, length) {
  if (rows.length <= length + 1) return [tableOf(heads, ...rows)];
  const more = make("summary", "", `${rows.length - length} more`);
  return [
    tableOf(heads, ...rows.slice(0, length)),
    make("details", "", more, tableOf(heads, ...rows.slice(length))),
  ];
}

export function cell(className, content) {
  return make("td", className, content);
}

export function wordCell(text) {
  const shown = make("td", "word", ...wordParts(text));
  shown.title = visible(text);
  return shown;
}

export function barsOf(...bars) {
  return make("div", "bars", ...bars);
}

export function bar(className, share) {
  const shown = make("i", className);
  shown.style.width = `${Math.min(100, Math.max(0, share * 100))}%`;
  return shown;
}

export function duration(ns) {
  if (ns >= 1e9) return `${(ns / 1e9).toFixed(2)} s`;
  return ns >= 1e6 ? `${(ns / 1e6).toFixed(1)} ms` : `${Math.round(ns / 1e3)} µs`;
}

/** Of a log probability in nats; null stands for minus infinity. */
export function probability(logprob) {
  return Math.exp(logprob ?? -Infinity);
}

export function percent(share) {
  if (!(share > 0)) return share === 0 ? "0%" : "";
  if (share < 0.0005) return share < 0.00005 ? "<0.01%" : `${(share * 100).toFixed(2)}%`;
  return `${(share * 100).toFixed(share >= 0.9995 ? 0 : 1)}%`;
}

/** A number for people: two decimals below ten, whole from there on. */
export function rounded(number) {
  if (!Number.isFinite(number)) return "infinitely many";
  return number < 10
    ? number.toFixed(2).replace(/0$/, "")
    : Math.round(number).toLocaleString("en");
}
