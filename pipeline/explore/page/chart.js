// Histograms: all rows in grey; over them those that all other rules keep, in two colours that the cut divides.

import { draw } from "./dom.js";

const WIDTH = 640;
const HEIGHT = 100;
let serial = 0;
let isLog = false;

export const setLog = (on) => (isLog = on);
const tall = (number) => (isLog ? Math.log1p(number) : number);

function bars(bins, highest, height) {
  const wide = WIDTH / bins.length;
  const gap = Math.min(2, wide / 6);
  return bins
    .map((number, at) => {
      if (!number) return "";
      const y = height - Math.max(1.5, (tall(number) / tall(highest)) * height);
      return `M${at * wide + gap / 2},${height}V${y}h${wide - gap}V${height}z`;
    })
    .join("");
}

/** A small picture of a column, for the list. */
export function sparkline(bins) {
  const shown = bins.slice(0, 64);
  const path = draw("path", { d: bars(shown, Math.max(...shown, 1), HEIGHT), class: "all" });
  return draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "sparkline" }, path);
}

/** A histogram with a cut. `lie(bins)` sets the coloured bars; `cut(from, to)` what is kept, in parts of the width. */
export class Histogram {
  constructor(bins) {
    const id = `cut-${(serial += 1)}`;
    this.bins = bins;
    this.others = bins;
    this.all = draw("path", { class: "all" });
    this.dropped = draw("path", { class: "dropped" });
    this.kept = draw("path", { class: "kept", "clip-path": `url(#${id})` });
    this.window = draw("rect", { x: 0, y: 0, width: WIDTH, height: HEIGHT });
    this.edges = [draw("line", { class: "edge" }), draw("line", { class: "edge" })];
    this.element = draw(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "histogram", "aria-hidden": "true" },
      draw("clipPath", { id }, this.window), this.all, this.dropped, this.kept, ...this.edges,
    );
    this.redraw();
  }

  lie(bins) {
    this.others = bins;
    this.redraw();
  }

  redraw() {
    const highest = Math.max(...this.bins, 1);
    this.all.setAttribute("d", bars(this.bins, highest, HEIGHT));
    const others = bars(this.others, highest, HEIGHT);
    this.dropped.setAttribute("d", others);
    this.kept.setAttribute("d", others);
  }

  cut(from, to) {
    const [start, end] = [Math.max(0, from) * WIDTH, Math.min(1, to) * WIDTH];
    this.window.setAttribute("x", start);
    this.window.setAttribute("width", Math.max(0, end - start));
    for (const [edge, at, isOpen] of [[this.edges[0], start, from <= 0], [this.edges[1], end, to >= 1]]) {
      edge.setAttribute("visibility", isOpen ? "hidden" : "visible");
      for (const [name, value] of [["x1", at], ["x2", at], ["y1", -6], ["y2", HEIGHT + 8]]) edge.setAttribute(name, value);
    }
  }
}
