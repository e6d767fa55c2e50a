// The page: rules of the left column, counts above, rows on either side of the cut at the right.

import { channel, overview } from "./asking.js";
import { setLog, sparkline } from "./chart.js";
import { about, byId, count, make, settled, share } from "./dom.js";
import { Closer, Pane } from "./gallery.js";
import { makeCard } from "./rules.js";

const SETTLED_MS = 180;

history.replaceState(null, "", location.pathname + location.hash); // the token is in the cookie now
const facts = await overview().catch((error) => {
  fail(error);
  throw error;
});
const { columns } = facts;
const cards = [];
let seed = 0;
let isNear = true;
let counted = { total: facts.num_rows, kept: facts.num_rows, rules: [] };

const asked = () => cards.map((card) => card.asked);
const panes = ["Kept", "Dropped"].map((title) =>
  new Pane(title.toLowerCase(), title, columns, facts.has_images, askRows, (pane, at) => closer.open(pane, at)));
const closer = new Closer(columns, facts.has_images, (at) => cards[at]?.column.path ?? "");

const sendCount = channel("/count", showCounts, fail);
const sendEffects = channel("/effects", (effects, { rules }) => {
  if (isCurrent(rules)) cards.forEach((card, at) => card.weigh(effects[at]));
}, fail);
const sendRows = Object.fromEntries(panes.map((pane) => [pane.side, channel("/rows", (answer, { rules }) => {
  if (isCurrent(rules)) pane.show(answer, cards.map((card) => card.at));
}, fail)]));
const rest = settled(() => {
  sendEffects({ rules: asked() });
  panes.forEach(askRows);
  byId("spoken").textContent = `${byId("kept").textContent} ${byId("kept-of").textContent}`;
  remember();
}, SETTLED_MS);

/** Are these still the rules on the page? An answer to others is too late. */
const isCurrent = (rules) => JSON.stringify(rules) === JSON.stringify(asked());

function changed(card) {
  sendCount({ rules: asked() });
  listCuts(card);
  for (const pane of panes) {
    pane.page = 0;
    pane.element.classList.add("waiting");
  }
  rest();
}

function showCounts(answer, { rules: of }) {
  if (of.length !== cards.length || of.some((rule, at) => rule.column !== cards[at].at)) return; // a rule has come or gone
  counted = answer;
  byId("fault").textContent = "";
  const { total, kept, rules } = answer;
  byId("kept").textContent = count(kept);
  const estimate = facts.num_seen > total ? `, about ${about((kept / Math.max(1, total)) * facts.num_seen)} of all` : "";
  byId("kept-of").textContent = `of ${count(total)} kept · ${share(kept, total)}${estimate}`;
  const parts = [["kept", kept, "kept"], ...rules.map((rule, at) => ["fell", rule?.dropped ?? 0, cards[at]?.column.path])];
  byId("fates").replaceChildren(...parts.filter((part) => part[1] > 0).map(([kind, number, name]) => {
    const element = make("i", { className: kind, title: `${name}: ${count(number)} · ${share(number, total)}` });
    element.style.flexGrow = number;
    return element;
  }));
  rules.forEach((rule, at) => cards[at]?.tell(rule));
  byId("recipe").textContent = answer.recipe || "# no rule cuts anything yet";
  byId("copy").disabled = !answer.recipe;
  listReasons();
}

function askRows(pane) {
  const [near, edge] = isNear && byId("cut").value ? byId("cut").value.split(" ") : [null, "low"];
  const [reason, kind] = pane.reason.value && near === null ? pane.reason.value.split(" ") : [null, ""];
  const number = (text) => (text === null ? null : Number(text));
  const view = { side: pane.side, near: number(near), edge, reason: number(reason), is_missing: kind === "missing", seed, page: pane.page };
  pane.element.classList.add("waiting");
  sendRows[pane.side]({ rules: asked(), view });
}

/** The cuts to choose from; the one that has just been moved is chosen. */
function listCuts(moved) {
  const select = byId("cut");
  const before = select.value;
  const options = cards.flatMap((card, at) => card.cuts.map(([edge, words]) => [`${at} ${edge}`, words, card, edge]));
  select.replaceChildren(...options.map(([value, words]) => make("option", { value }, words)));
  const own = options.filter(([, , card]) => card === moved);
  const chosen = own.find(([, , card, edge]) => edge === card.edge) ?? own[0] ?? options.find(([value]) => value === before) ?? options[0];
  if (chosen) select.value = chosen[0];
  describe();
}

/** Says which rows the panes show, and offers what can be chosen of them. */
function describe() {
  const { value } = byId("cut");
  const hasCut = isNear && value !== "";
  const isOrdered = hasCut && columns[cards[Number(value.split(" ")[0])].at].axis !== null;
  byId("cut-of").hidden = !hasCut;
  byId("shuffle").hidden = isOrdered;
  panes[1].reason.hidden = hasCut || !cards.some((card) => card.cuts.length);
  for (const pane of panes) pane.note.textContent = isOrdered ? "nearest to the cut first" : "a random choice";
}

function listReasons() {
  const { reason } = panes[1];
  const before = reason.value;
  const options = [["", "by any rule"]];
  counted.rules.forEach((rule, at) => {
    if (!rule) return;
    options.push([`${at} fell`, `by ${at + 1}, ${cards[at].column.path}: ${about(rule.dropped - rule.missing)}`]);
    if (rule.missing) options.push([`${at} missing`, `no ${cards[at].column.path}: ${about(rule.missing)}`]);
  });
  reason.replaceChildren(...options.map(([value, words]) => make("option", { value }, words)));
  if (options.some(([value]) => value === before)) reason.value = before;
}

function addRule(at, state) {
  const present = cards.find((card) => card.at === at);
  const card = present ?? makeCard(at, columns[at], changed, act);
  if (state) card.state = state;
  if (!present) {
    cards.push(card);
    byId("rules").append(card.element);
    card.tell(null);
  }
  markChosen();
  return card;
}

function act(card, what) {
  const at = cards.indexOf(card);
  const to = { up: at - 1, down: at + 1 }[what];
  cards.splice(at, 1);
  if (what === "remove") card.element.remove();
  else {
    cards.splice(Math.max(0, to), 0, card);
    byId("rules").replaceChildren(...cards.map((each) => each.element));
    document.activeElement?.blur();
  }
  markChosen();
  changed(what === "remove" ? null : card);
}

function markChosen() {
  for (const line of byId("scores").querySelectorAll("button")) {
    line.setAttribute("aria-pressed", String(cards.some((card) => card.at === Number(line.dataset.at))));
  }
}

function listScores() {
  const wanted = byId("find").value.trim().toLowerCase();
  const tables = [...new Set(columns.map((column) => column.table))];
  byId("scores").replaceChildren(...tables.map((table) => {
    const lines = columns.flatMap((column, at) => {
      if (column.table !== table || !`${table}.${column.name} ${column.description}`.toLowerCase().includes(wanted)) return [];
      const line = make("button", { type: "button", title: column.description, "data-at": at },
        make("span", { className: "name" }, column.name), make("span", { className: "soft description" }, column.description), sparkline(column.bins));
      line.addEventListener("click", () => {
        const card = addRule(at);
        changed(card);
        card.element.scrollIntoView({ block: "nearest" });
        card.element.querySelector("input:not([hidden])")?.focus({ preventScroll: true });
      });
      return [make("li", {}, line)];
    });
    return lines.length ? make("div", {}, make("h3", {}, table), make("ul", { className: "scores-list" }, ...lines)) : "";
  }));
  markChosen();
}

/** The rules stay in the address, so that a reload or a bookmark brings them back. */
function remember() {
  const state = cards.map((card) => ({ column: card.column.path, ...card.state }));
  history.replaceState(null, "", state.length ? `#${encodeURIComponent(JSON.stringify(state))}` : location.pathname);
}

function recall() {
  try {
    for (const { column, ...state } of JSON.parse(decodeURIComponent(location.hash.slice(1)) || "[]")) {
      const at = columns.findIndex((each) => each.path === column);
      if (at >= 0) addRule(at, state);
    }
  } catch {
    // An address that somebody has edited: begin without rules.
  }
}

function copy(button, source) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(source.textContent).catch(() => getSelection().selectAllChildren(source));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1200);
  });
}

function fail(error) {
  byId("fault").textContent = error instanceof TypeError ? "the explorer has ended; start it again" : error.message;
}

function shuffle() {
  seed = (seed + 1) % 1_000_000;
  for (const pane of panes) pane.turn(-pane.page, true);
}

function look(near) {
  isNear = near;
  byId("at-cut").setAttribute("aria-pressed", String(near));
  byId("at-random").setAttribute("aria-pressed", String(!near));
  listCuts(null);
  for (const pane of panes) pane.turn(-pane.page, true);
}

byId("at-cut").addEventListener("click", () => look(true));
byId("at-random").addEventListener("click", () => look(false));
byId("cut").addEventListener("change", () => {
  describe();
  panes.forEach((pane) => pane.turn(-pane.page, true));
});
byId("shuffle").addEventListener("click", shuffle);
byId("find").addEventListener("input", listScores);
byId("size").addEventListener("input", () => document.documentElement.style.setProperty("--tile", `${byId("size").value}px`));
byId("log").addEventListener("change", () => {
  setLog(byId("log").checked);
  listScores();
  for (const card of cards) card.histogram?.redraw();
});
copy(byId("copy"), byId("recipe"));
copy(byId("copy-command"), byId("command"));
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey || closer.dialog.open) return;
  const keys = { "/": () => byId("find").focus(), s: shuffle, ",": () => panes.forEach((pane) => pane.turn(-1)), ".": () => panes.forEach((pane) => pane.turn(1)) };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

document.title = `${facts.name} · explore`;
byId("name").textContent = facts.name;
const isSample = facts.num_seen > facts.num_rows;
const rows = isSample ? `an even sample of ${count(facts.num_rows)} of ${count(facts.num_seen)} rows` : `${count(facts.num_rows)} rows`;
byId("where").textContent = `${rows} · ${facts.url}`;
byId("where").title = `${isSample ? "chosen by a hash of the uid, the same ones each time; " : ""}${count(facts.num_shards)} shards`;
byId("command").textContent = facts.command;
const leftOut = Object.entries(facts.left_out);
byId("left-out").hidden = !leftOut.length;
byId("left-out").firstElementChild.textContent = `${leftOut.length} column${leftOut.length === 1 ? "" : "s"} left out`;
byId("left-out").lastElementChild.append(...leftOut.map(([path, why]) => make("li", {}, `${path}: ${why}`)));
listScores();
recall();
changed(null);
document.documentElement.dataset.ready = "true";
