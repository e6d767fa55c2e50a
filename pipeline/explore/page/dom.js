// Elements and numbers. Texts come from strangers: they enter the page as text nodes, never as HTML.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const count = (number) => whole.format(number);
export const about = (number) => short.format(number);

/** A share as per cent: a little is never shown as nothing, nor almost all as all. */
export function share(part, all) {
  const percent = all ? (100 * part) / all : 0;
  if (percent > 0 && percent < 0.1) return "< 0.1 %";
  if (percent > 99.9 && percent < 100) return "> 99.9 %";
  return `${percent.toFixed(percent > 0 && percent < 100 ? 1 : 0)} %`;
}

/** A score as people read it. */
export function value(number) {
  if (number === null) return "missing";
  if (typeof number !== "number") return String(number);
  if (Number.isInteger(number)) return whole.format(number);
  return Math.abs(number) < 0.001 ? number.toExponential(1) : String(Number(number.toPrecision(4)));
}

/** Calls `act` once, `wait` milliseconds after the last call. */
export function settled(act, wait) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, wait);
  };
}
