// Two panes of rows, the kept and the dropped; and one row looked at closely.

import { byId, make, value } from "./dom.js";

export class Pane {
  /** ask(pane): wants its rows. columns: the overview's. look(pane, at): a row was opened. */
  constructor(side, title, columns, hasImages, ask, look) {
    this.side = side;
    this.columns = columns;
    this.hasImages = hasImages;
    this.look = look;
    this.page = 0;
    this.items = [];
    this.note = make("span", { className: "soft" });
    this.reason = make("select", { "aria-label": "dropped by", hidden: true });
    this.reason.addEventListener("change", () => this.turn(-this.page, true));
    this.earlier = make("button", { type: "button", title: "earlier rows  ( , )", "aria-label": `${title}: earlier rows` }, "‹");
    this.later = make("button", { type: "button", title: "further rows  ( . )", "aria-label": `${title}: further rows` }, "›");
    this.earlier.addEventListener("click", () => this.turn(-1));
    this.later.addEventListener("click", () => this.turn(1));
    this.number = make("span", { className: "soft number" });
    this.grid = make("div", { className: "grid" });
    this.ask = ask;
    this.element = byId(`pane-${side}`);
    this.element.append(
      make("div", { className: "heading" }, make("h2", { className: side }, title), this.note, this.reason,
        make("span", { className: "turn" }, this.earlier, this.number, this.later)),
      this.grid,
    );
  }

  turn(by, always = false) {
    const page = Math.max(0, this.page + by);
    if (page === this.page && !always) return;
    if (by > 0 && this.later.disabled) return;
    this.page = page;
    this.ask(this);
  }

  show(answer, ruleColumns) {
    this.items = answer.items;
    this.earlier.disabled = this.page === 0;
    this.later.disabled = !answer.has_more;
    this.number.textContent = answer.items.length || this.page ? this.page + 1 : "";
    const tiles = answer.items.map((item, at) => this.tile(item, at, ruleColumns));
    this.grid.replaceChildren(...tiles);
    if (!tiles.length) this.grid.append(make("p", { className: "soft nothing" }, this.page ? "No further rows." : "No rows here."));
    this.element.classList.remove("waiting");
  }

  tile(item, at, ruleColumns) {
    const frame = make("button", { type: "button", className: "frame" });
    frame.append(this.hasImages ? picture(item) : make("span", { className: "soft" }, "not downloaded"));
    if (item.is_doubtful) frame.classList.add("doubtful");
    frame.addEventListener("click", () => {
      if (frame.classList.contains("doubtful")) frame.classList.replace("doubtful", "uncovered");
      else this.look(this, at);
    });
    const scores = ruleColumns.map((column) => {
      const isReason = item.rule !== null && ruleColumns[item.rule] === column;
      const shown = make("span", { className: isReason ? "score reason" : "score", title: this.columns[column].path });
      shown.append(`${this.columns[column].name} `, make("b", {}, value(item.values[column])));
      return shown;
    });
    return make("figure", {}, frame, make("figcaption", {},
      make("p", { className: "caption", title: item.caption, dir: "auto" }, item.caption || "(no caption)"),
      make("p", { className: "scores" }, ...scores), make("p", { className: "address" }, anchor(item.url, item.host))));
  }
}

/** A stored image; what cannot be shown says so. */
export function picture(item) {
  const image = make("img", { alt: "", decoding: "async", loading: "lazy", draggable: false });
  image.addEventListener("error", () => image.replaceWith(make("span", { className: "soft" }, "cannot be shown")));
  image.src = `/image/${item.row}`;
  return image;
}

function anchor(url, text) {
  if (!url) return "";
  return make("a", { href: url, rel: "noopener noreferrer", target: "_blank", title: url }, text || url);
}

/** One row in full, with all its values; the arrow keys go on to its neighbours. */
export class Closer {
  constructor(columns, hasImages, ruleName) {
    this.columns = columns;
    this.hasImages = hasImages;
    this.ruleName = ruleName;
    this.dialog = byId("closer");
    [this.place, this.facts] = this.dialog.children;
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by || !this.pane.items[this.at + by]) return;
      event.preventDefault();
      this.open(this.pane, this.at + by);
    });
  }

  open(pane, at) {
    [this.pane, this.at] = [pane, at];
    const item = pane.items[at];
    const shown = this.hasImages ? picture(item) : make("span", { className: "soft" }, "not downloaded");
    const cover = make(item.is_doubtful ? "button" : "div", { className: item.is_doubtful ? "frame doubtful" : "frame" }, shown);
    cover.addEventListener("click", () => cover.classList.remove("doubtful"));
    this.place.replaceChildren(cover);
    const verdict = item.rule === null ? "kept"
      : `dropped by rule ${item.rule + 1}, ${this.ruleName(item.rule)}${item.is_missing ? ": no value" : ""}`;
    const close = make("button", { type: "button", className: "plain close", autofocus: true, "aria-label": "close" }, "×");
    close.addEventListener("click", () => this.dialog.close());
    const lines = this.columns.map((column, number) =>
      make("tr", {}, make("th", { scope: "row", title: column.description }, column.path), make("td", { className: "number" }, value(item.values[number]))));
    this.facts.replaceChildren(
      close, make("p", { className: item.rule === null ? "kept verdict" : "dropped verdict" }, verdict),
      make("p", { className: "caption", dir: "auto" }, item.caption || "(no caption)"),
      make("p", { className: "soft" }, item.source === "web" ? "" : `caption of ${item.source}`),
      make("p", { className: "address" }, anchor(item.url, "image address"), " ", anchor(item.page_url, "page")),
      make("table", {}, make("tbody", {}, ...lines)), make("p", { className: "soft uid" }, item.uid),
    );
    if (!this.dialog.open) this.dialog.showModal();
  }
}
