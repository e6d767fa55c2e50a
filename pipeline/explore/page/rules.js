// A card for each rule: where the column is cut, and what that costs.

import { Histogram } from "./chart.js";
import { Scale, Slider } from "./slider.js";
import { about, count, make, value } from "./dom.js";

const FIRST_SHARE = 0.3;

/** The parts all cards share. `changed(card)` is called with every change, `act(card, what)` for up, down and remove. */
class Card {
  constructor(at, column, changed, act) {
    this.at = at; // of the column
    this.column = column;
    this.changed = changed;
    this.facts = make("p", { className: "facts" });
    const button = (text, title, what) => {
      const element = make("button", { type: "button", className: "plain", title, "aria-label": `${title}: ${column.path}` }, text);
      element.addEventListener("click", () => act(this, what));
      return element;
    };
    this.choices = make("div", { className: "choices" });
    this.body = make("div", { className: "body" });
    this.element = make(
      "li", { className: "rule" },
      make("div", { className: "heading" }, make("h3", { title: column.description }, column.path), this.choices,
        button("↑", "ask earlier", "up"), button("↓", "ask later", "down"), button("×", "remove", "remove")),
      make("p", { className: "soft description" }, column.description),
      this.body, this.facts,
    );
  }

  choice(name, words, chosen, act) {
    const group = make("div", { className: "switch small", role: "group", "aria-label": `${name}: ${this.column.path}` });
    for (const [word, text, title] of words) {
      const button = make("button", { type: "button", title, "aria-pressed": String(word === chosen) }, text);
      button.addEventListener("click", () => {
        for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
        act(word);
        this.changed(this);
      });
      group.append(button);
    }
    return group;
  }

  /** What the server said of the rule; null: it asks for nothing yet. */
  tell(counts) {
    this.counts = counts;
    this.say();
  }

  weigh(effects) {
    this.effects = effects;
    this.say();
  }

  say() {
    if (!this.counts) {
      this.facts.replaceChildren(make("span", { className: "soft" }, "no cut yet"));
      return;
    }
    const parts = [["drops", this.counts.dropped, "rows that it is the first rule to drop"]];
    if (this.counts.missing) parts.push(["of them missing", this.counts.missing, "rows without a value"]);
    const isAlone = this.effects?.fails === this.counts.dropped && this.effects.only === this.counts.dropped;
    if (this.effects && !isAlone) {
      parts.push(["alone", this.effects.fails, "rows that it would drop if it were the only rule"]);
      parts.push(["others keep", this.effects.only, "of its rows, those that all other rules keep"]);
    }
    this.facts.replaceChildren(...parts.map(([word, number, title]) =>
      make("span", { title }, `${word} `, make("b", {}, count(number)))));
  }
}

class NumberCard extends Card {
  constructor(...words) {
    super(...words);
    const { column } = this;
    this.kind = "range";
    this.edge = "low";
    this.fraction = FIRST_SHARE;
    this.of = "survivors";
    this.scale = new Scale(column.axis, column.kind === "whole");
    this.histogram = new Histogram(column.bins);
    this.slider = new Slider(column.path, this.scale, (end) => {
      this.edge = end;
      this.draw();
      this.changed(this);
    });
    this.makeShare();
    const ends = make("div", { className: "ends soft" }, make("span", {}, value(column.axis.low)), make("span", {}, value(column.axis.high)));
    this.body.append(make("div", { className: "drawing" }, this.histogram.element, this.slider.element, ends, this.shareInput), this.slider.boxes, this.share);
    this.kinds = [["range", "cut", "keep what lies between two values"], ["top", "top share", "keep a share of the rows: those with the highest values"]];
    this.choose("range");
  }

  makeShare() {
    const name = this.column.path;
    this.shareInput = make("input", { type: "range", min: 1, max: 1000, step: 1, className: "share", "aria-label": `${name}: share kept, in tenths of a per cent` });
    this.shareField = make("input", { type: "number", min: 0.001, max: 100, step: "any", "aria-label": `${name}: share kept, per cent` });
    this.threshold = make("span", { className: "soft" });
    const of = make("select", { title: "survivors: the rows that earlier rules keep", "aria-label": `${name}: share of` },
      make("option", { value: "survivors" }, "of survivors"), make("option", { value: "all" }, "of all"));
    this.ofField = of;
    this.share = make("div", { className: "boxes" }, this.shareField, make("span", {}, "%"), of, this.threshold);
    const moved = (fraction) => {
      this.fraction = fraction;
      this.draw();
      this.changed(this);
    };
    this.shareInput.addEventListener("input", () => {
      this.shareField.value = this.shareInput.value / 10;
      moved(Number((this.shareInput.value / 1000).toFixed(3)));
    });
    this.shareField.addEventListener("input", () => {
      if (!this.shareField.validity.valid || this.shareField.value === "") return;
      this.shareInput.value = Math.round(this.shareField.value * 10);
      moved(Number((this.shareField.value / 100).toPrecision(12)));
    });
    of.addEventListener("change", () => {
      this.of = of.value;
      this.changed(this);
    });
  }

  choose(kind) {
    this.kind = kind;
    this.choices.replaceChildren(this.choice("how", this.kinds, kind, (word) => this.choose(word)));
    const isShare = kind === "top";
    for (const part of [this.slider.element, this.slider.boxes]) part.hidden = isShare;
    for (const part of [this.shareInput, this.share]) part.hidden = !isShare;
    this.shareField.value = Number((this.fraction * 100).toPrecision(6));
    this.shareInput.value = Math.round(this.fraction * 1000);
    this.ofField.value = this.of;
    this.draw();
  }

  draw() {
    if (this.kind === "range") {
      this.histogram.cut(this.scale.part(this.slider.low, "low"), this.scale.part(this.slider.high, "high"));
      return;
    }
    const threshold = this.counts?.threshold ?? null;
    this.threshold.textContent = threshold === null ? "" : `≥ ${value(threshold)}`;
    this.histogram.cut(threshold === null ? 0 : this.scale.part(threshold, "low"), 1);
  }

  tell(counts) {
    super.tell(counts);
    this.draw();
  }

  weigh(effects) {
    super.weigh(effects);
    this.histogram.lie(effects ? effects.bins : this.column.bins);
  }

  get asked() {
    if (this.kind === "top") return { kind: "top", column: this.at, fraction: this.fraction, of: this.of };
    return { kind: "range", column: this.at, low: this.slider.low, high: this.slider.high };
  }

  /** The cuts to look at: [edge, words]. */
  get cuts() {
    const { path } = this.column;
    if (this.kind === "top") return [["low", `${path}, top ${Number((this.fraction * 100).toPrecision(4))} %`]];
    const cuts = [];
    if (this.slider.low !== null) cuts.push(["low", `${path} ≥ ${this.slider.low}`]);
    if (this.slider.high !== null) cuts.push(["high", `${path} ≤ ${this.slider.high}`]);
    return cuts;
  }

  get state() {
    const { low, high } = this.slider;
    return this.kind === "top" ? { kind: "top", fraction: this.fraction, of: this.of } : { kind: "range", low, high };
  }

  set state(state) {
    if (Number.isFinite(state.low)) this.slider.set("low", state.low);
    if (Number.isFinite(state.high)) this.slider.set("high", state.high);
    if (state.fraction > 0 && state.fraction <= 1) this.fraction = state.fraction;
    if (state.of === "all") this.of = "all";
    this.choose(state.kind === "top" ? "top" : "range");
  }
}

class ValuesCard extends Card {
  constructor(...words) {
    super(...words);
    this.drop = false;
    this.chosen = new Set();
    this.boxes = this.column.values.map((text, code) => {
      const box = make("input", { type: "checkbox" });
      box.addEventListener("change", () => {
        if (box.checked) this.chosen.add(code);
        else this.chosen.delete(code);
        this.changed(this);
      });
      return box;
    });
    this.numbers = this.column.bins.map(() => make("span", { className: "number" }));
    this.meters = this.column.bins.map(() => make("i"));
    const lines = this.column.values.map((text, code) =>
      make("li", {}, make("label", { title: text }, this.boxes[code], make("span", { className: "text" }, text),
        make("span", { className: "track" }, this.meters[code]), this.numbers[code])));
    this.body.append(make("ul", { className: "values" }, ...lines));
    this.choose(false);
    this.lie(this.column.bins);
  }

  choose(drop) {
    this.drop = drop;
    const words = [["keep", "keep", "keep these values alone"], ["drop", "drop", "drop these values"]];
    this.choices.replaceChildren(this.choice("how", words, drop ? "drop" : "keep", (word) => this.choose(word === "drop")));
  }

  lie(bins) {
    const highest = Math.max(...this.column.bins, 1);
    bins.forEach((number, code) => {
      this.numbers[code].textContent = about(number);
      this.numbers[code].title = `${count(number)} of ${count(this.column.bins[code])}`;
      this.meters[code].style.width = `${(100 * number) / highest}%`;
    });
  }

  weigh(effects) {
    super.weigh(effects);
    this.lie(effects ? effects.bins : this.column.bins);
  }

  get asked() {
    return { kind: "values", column: this.at, values: [...this.chosen].sort((a, b) => a - b), drop: this.drop };
  }

  get cuts() {
    return this.chosen.size ? [["low", this.column.path]] : [];
  }

  get state() {
    return { kind: "values", values: [...this.chosen].map((code) => this.column.values[code]), drop: this.drop };
  }

  set state(state) {
    this.chosen = new Set((state.values ?? []).map((text) => this.column.values.indexOf(text)).filter((code) => code >= 0));
    this.boxes.forEach((box, code) => (box.checked = this.chosen.has(code)));
    this.choose(state.drop === true);
  }
}

export function makeCard(at, column, changed, act) {
  const Kind = column.axis ? NumberCard : ValuesCard;
  return new Kind(at, column, changed, act);
}
