// A slider with two ends over an axis of round steps. An end at its place of rest is no limit, and its value null.

import { make } from "./dom.js";

/** Places of a slider: for whole numbers the edges between them, so that a thumb stands where the histogram is cut. */
export class Scale {
  constructor(axis, isWhole) {
    this.axis = axis;
    this.isWhole = isWhole;
    this.num = isWhole ? axis.width * axis.num_bins : Math.round((axis.high - axis.low) / axis.step);
    this.digits = Math.max(0, Math.round(-Math.log10(axis.step)));
  }

  valueAt(place, end) {
    if (place <= 0 && end === "low") return null;
    if (place >= this.num && end === "high") return null;
    const value = this.axis.low + place * this.axis.step - (this.isWhole && end === "high" ? 1 : 0);
    return Number(value.toFixed(this.digits));
  }

  placeOf(value, end) {
    if (value === null) return end === "low" ? 0 : this.num;
    const place = (value - this.axis.low) / this.axis.step + (this.isWhole && end === "high" ? 1 : 0);
    return Math.min(this.num, Math.max(0, place));
  }

  /** A value's place as a part of the width. */
  part(value, end) {
    return this.placeOf(value, end) / this.num;
  }
}

export class Slider {
  /** change(end): called while an end moves. Its new value is in `low` or `high`. */
  constructor(name, scale, change) {
    this.scale = scale;
    this.low = null;
    this.high = null;
    this.inputs = {};
    this.fields = {};
    for (const [end, word] of [["low", "at least"], ["high", "at most"]]) {
      const input = make("input", { type: "range", min: 0, max: scale.num, step: 1, "aria-label": `${name} ${word}` });
      input.addEventListener("input", () => {
        this.set(end, scale.valueAt(this.held(end), end));
        change(end);
      });
      const field = make("input", { type: "number", step: "any", placeholder: "no limit", "aria-label": `${name} ${word}, exactly` });
      field.addEventListener("input", () => {
        if (!field.validity.valid) return;
        this.set(end, field.value === "" ? null : Number(field.value), false);
        change(end);
      });
      this.inputs[end] = input;
      this.fields[end] = field;
    }
    this.element = make("div", { className: "slider" }, this.inputs.low, this.inputs.high);
    this.boxes = make("div", { className: "boxes" }, this.fields.low, make("span", {}, "to"), this.fields.high);
    this.set("low", null);
    this.set("high", null);
  }

  /** Where an end stands, kept from passing the other. */
  held(end) {
    const place = Number(this.inputs[end].value);
    const apart = this.scale.isWhole ? 1 : 0;
    if (end === "low") return Math.min(place, Math.floor(this.scale.placeOf(this.high, "high")) - apart);
    return Math.max(place, Math.ceil(this.scale.placeOf(this.low, "low")) + apart);
  }

  set(end, value, writeField = true) {
    this[end] = value;
    this.inputs[end].value = this.scale.placeOf(value, end);
    this.inputs[end].setAttribute("aria-valuetext", value === null ? "no limit" : String(value));
    if (writeField) this.fields[end].value = value === null ? "" : value;
  }
}
