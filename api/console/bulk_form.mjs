/** The bulk dialog's two halves: what would happen, and what is asked for. */
import { href } from "./router.mjs";
import { html } from "./ui.mjs";
import { blockWords, many, number, short } from "./text.mjs";
import { refusalOf, session } from "./session.mjs";

/** How many can go back and how many cannot, with the reasons, and a sample. */
export function Forecast({ forecast, stale, tooMany, list, close }) {
  if (forecast === null) return html`<p class="loading forecast" aria-busy="true">Counting what can go back…</p>`;
  const left = Object.entries(forecast.skipped).filter(([, count]) => count > 0);
  const cannot = forecast.matched - forecast.retryable;
  return html`<div class=${stale ? "forecast old" : "forecast"} aria-live="polite">
    <p class="verdict"><strong>${number(forecast.retryable)} can go back</strong>${cannot > 0 && html`, ${number(cannot)} cannot`}.</p>
    ${left.length > 0 && html`<ul>${left.map(([code, count]) => html`<li key=${code}>${number(count)}: ${blockWords(code)}${code === "attempts_exhausted" ? "; extra attempts would let them" : ""}</li>`)}</ul>`}
    ${forecast.truncated && html`<p class="note">${tooMany
      ? `More than ${number(forecast.matched)} match, and so many do not go back at once. Choose fewer: one error, or a shorter time.`
      : "There are more than were looked at. What is retried is at most what is counted here."}</p>`}
    ${forecast.sample.length > 0 && html`<p class="muted">Such as ${forecast.sample.slice(0, 4).map((id) => html`<a key=${id} href=${href(`jobs/${id}`)} onClick=${close}><code>${short(id)}</code></a> `)}
      ${list && html`<a href=${list} onClick=${close}>see them all</a>`}</p>`}
  </div>`;
}

const FEW = 5;
const FIRST = [[0, "all of them"], [FEW, `${FEW} first, to see how they fare`]];
const SPANS = [[0, "at once"], [60, "over a minute"], [300, "over 5 minutes"], [900, "over 15 minutes"], [3_600, "over an hour"]];
const DELAYS = [[0, "now"], [60, "in a minute"], [300, "in 5 minutes"], [1_800, "in 30 minutes"], [3_600, "in an hour"], [21_600, "in 6 hours"], [86_400, "in a day"]];

const choice = (label, value, options, put) => html`<label>${label}
  <select value=${String(value)} onChange=${(event) => put(Number(event.target.value))}>
    ${options.map(([key, words]) => html`<option key=${key} value=${String(key)}>${words}</option>`)}
  </select>
</label>`;

/** Spread, delay and extra attempts. A token that may not extend is told so in the field's place. */
export function Shape({ form, put, spread = true, children }) {
  const refusal = refusalOf(session.get().me, "jobs:retry:extend");
  const counts = [[0, "none"], ...Array.from({ length: 10 }, (_, i) => [i + 1, String(i + 1)])];
  return html`<div class="shape">
    ${children}
    ${spread && choice("spread", form.spread, SPANS, (value) => put({ spread: value }))}
    ${choice("begin", form.delay, DELAYS, (value) => put({ delay: value }))}
    ${refusal === null
      ? choice("extra attempts", form.extra, counts, (value) => put({ extra: value }))
      : html`<p class="muted">No extra attempts: ${refusal}</p>`}
  </div>`;
}

function hintOf(forecast, stale, missing) {
  if (forecast === null || stale) return "";
  if (forecast.retryable === 0) return "None of them can go back as they are.";
  return missing ? "A reason is needed: it stands in the audit trail." : "";
}

/** What is asked for. The button says the verb and the number. */
export function BulkForm({ form, put, forecast, stale, tooMany, busy, needsReason, act, close }) {
  const missing = needsReason && form.reason.trim() === "";
  const hint = hintOf(forecast, stale, missing);
  const ready = forecast !== null && !stale && forecast.retryable > 0 && !(tooMany && form.first === 0) && !missing && !busy;
  const submit = (event) => {
    event.preventDefault();
    if (ready) act();
  };
  return html`<form onSubmit=${submit}>
    <label class="reason">reason${needsReason ? "" : " (optional)"}
      <textarea rows="2" maxlength="500" value=${form.reason} placeholder="why these may go back now"
        onInput=${(event) => put({ reason: event.target.value })}
        onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)}></textarea>
    </label>
    <${Shape} form=${form} put=${put}>${forecast?.retryable > FEW && choice("retry", form.first, FIRST, (first) => put({ first }))}</${Shape}>
    <p class="actions">
      <span class="muted hint">${hint}</span>
      <button type="button" onClick=${close}>Cancel</button>
      <button type="submit" class="act" disabled=${!ready}>${busy ? "Asking…" : forecast ? `Retry ${form.first > 0 ? "the first " : ""}${many(form.first || forecast.retryable, "job")}` : "Retry"}</button>
    </p>
  </form>`;
}
