/** The small pieces that every page is made of. */
import { absolute, ago, clock, exact, many, relative, shown, zoneName } from "./text.mjs";
import { choices, createStore } from "./store.mjs";
import { html, useEffect, useState, useStore } from "./ui.mjs";

const RETELL_EVERY_MS = 5_000;

/** The statuses of jobs, in the order in which they are looked at. An owner's table may have others. */
export const STATUSES = ["failed", "running", "pending", "completed"];

const SHAPES = {
  failed: html`<path d="M5.2 1.5h5.6l3.7 3.7v5.6l-3.7 3.7H5.2L1.5 10.8V5.2z" /><path d="m5.9 5.9 4.2 4.2m0-4.2-4.2 4.2" />`,
  running: html`<path d="M13.5 8A5.5 5.5 0 1 1 8 2.5" />`,
  pending: html`<circle cx="8" cy="8" r="6" stroke-dasharray="2.6 2.1" />`,
  completed: html`<path d="m2.5 8.5 3.8 3.8 7.2-8" />`,
  other: html`<rect x="3" y="3" width="10" height="10" rx="2" />`,
};
const OF_RETRIES = { queued: "pending", applied: "completed", rejected: "failed", dead_lettered: "failed", cancelled: "other" };

/** A status by shape, word and colour. */
export function Status({ of, word }) {
  const kind = Object.hasOwn(SHAPES, of) ? of : Object.hasOwn(OF_RETRIES, of) ? OF_RETRIES[of] : "other";
  return html`<span class=${`status ${kind}`}>
    <svg viewBox="0 0 16 16" aria-hidden="true">${SHAPES[kind]}</svg>${shown(word ?? of)}
  </span>`;
}

/** Set when times may read otherwise: some seconds have gone by, or a person chose how they are written. */
const retold = createStore(0);
const retell = () => retold.set(retold.get() + 1);
choices.subscribe(retell);
setInterval(() => document.visibilityState !== "hidden" && retell(), RETELL_EVERY_MS);

/** A time, which no screen reader is told of as it goes on: relative to look at, absolute to point at; `whole` shows both, to find it in a log; `precise` does, without the date if it is of today. */
export function Time({ at, none = "–", whole = false, precise = false }) {
  useStore(retold);
  if (!at) return html`<span class="muted">${none}</span>`;
  if (!whole && !precise) return html`<time datetime=${at} title=${absolute(at)} aria-live="off">${relative(at)}</time>`;
  return html`<time datetime=${at} title=${absolute(at)}>${whole ? absolute(at) : exact(at)}</time>${choices.get().times === "relative" && html` <span class="muted" aria-live="off">${ago(at)}</span>`}`;
}

/** When the numbers are of; with an answer that is old because the API is away, how old. */
export function AsOf({ reading, at }) {
  useStore(retold);
  const ms = at ? Date.parse(at) : reading.at;
  if (!ms) return null;
  const stale = reading.problem && Date.now() - reading.at > 5_000;
  return html`<p class=${stale ? "as-of stale" : "as-of"}>
    as of ${clock(ms)} ${zoneName()}${stale ? `, ${relative(new Date(reading.at).toISOString())}` : ""}
  </p>`;
}

/** Put text on the clipboard; absent where the browser has none (plain http). */
export function Copy({ text, what }) {
  const [done, setDone] = useState(false);
  if (!navigator.clipboard) return null;
  const copy = () =>
    navigator.clipboard.writeText(text).then(() => setDone(true), () => setDone(false));
  return html`<button type="button" class="small" onClick=${copy} aria-label=${`Copy ${what}`}>${done ? "copied" : "copy"}</button>`;
}

/** Why a call was refused: in words, with its code and request id, and when it is tried again. */
export function Refusal({ problem, retry }) {
  const [left, setLeft] = useState(problem.retryAfterS ?? 0);
  useEffect(() => {
    const until = Date.now() + (problem.retryAfterS ?? 0) * 1_000;
    const timer = setInterval(() => setLeft(Math.max(0, Math.ceil((until - Date.now()) / 1_000))), 500);
    setLeft(problem.retryAfterS ?? 0);
    return () => clearInterval(timer);
  }, [problem]);
  return html`<div class=${problem.passing ? "refusal passing" : "refusal"} role="alert">
    <p>${problem.words}${left > 0 && html`<span aria-live="off"> Try again in ${left} s.</span>`}</p>
    ${problem.faults.length > 0 && html`<ul>${problem.faults.map((fault) => html`<li><code>${shown(fault.pointer)}</code> ${shown(fault.detail)}</li>`)}</ul>`}
    <p class="facts">
      <code>${problem.code}</code>${problem.status > 0 && html` <span>${problem.status}</span>`}
      ${problem.parameter && html` <span>filter <code>${shown(problem.parameter)}</code></span>`}
      ${problem.requestId && html` <span>request <code>${problem.requestId}</code></span> <${Copy} text=${problem.requestId} what="the request id" />`}
      ${retry && html` <button type="button" class="small" disabled=${left > 0} onClick=${retry}>try again</button>`}
    </p>
  </div>`;
}

/** What a page shows of a reading besides its data: that it is on its way, or why it is not here. */
export function Standing({ reading, what }) {
  if (reading.problem) return html`<${Refusal} problem=${reading.problem} retry=${reading.reload} />`;
  if (reading.loading) return html`<p class="loading" aria-busy="true">Reading ${what}…</p>`;
  return null;
}

/** In place of the state of a row that no longer belongs to its list. */
export const MovedOn = () => html`<span class="muted">moved on</span>`;

/** Says that what is shown beside it is old, as it could not be read again, and why. */
export const Old = ({ reading }) =>
  reading.body && reading.problem && html`<p class="note" role="status">As of ${clock(reading.at)} ${zoneName()}. ${reading.problem.words}</p>`;

/** A sentence where a list would be. */
export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

/** A heading with what belongs beside it. It takes the focus when its page is opened. */
export const Title = ({ text, children }) => html`<div class="title"><h1 tabindex="-1"><span class="clamp" title=${text}>${text}</span></h1>${children}</div>`;

/** An error as it came, at most `lines` lines of it until it is unfolded. */
export function ErrorText({ text, lines = 12, truncated = false }) {
  const [open, setOpen] = useState(false);
  const all = shown(text).split("\n");
  const folded = all.length > lines || text.length > 1_200;
  return html`<div class="error-text">
    <pre class=${folded && !open ? "folded" : ""} tabindex=${open ? "0" : undefined}>${folded && !open ? all.slice(0, lines).join("\n").slice(0, 1_200) : all.join("\n")}</pre>
    <p class="tools">
      <${Copy} text=${text} what="the error" />
      ${folded && html`<button type="button" class="small" aria-expanded=${open} onClick=${() => setOpen(!open)}>
        ${open ? "fold" : `unfold it all, ${many(all.length, "line")}`}
      </button>`}
      ${truncated && html`<span class="muted">The API shows no more of it.</span>`}
    </p>
  </div>`;
}
