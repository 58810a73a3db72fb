/** One timeline of a job and its retries: a strip to look at, and the same as a list. */
import { html } from "./ui.mjs";
import { outcomeWords, shown, span } from "./text.mjs";
import { Time } from "./parts.mjs";

const between = (from, to) => (from && to ? span(Date.parse(to) - Date.parse(from)) : null);

/** One run: how long it waited and ran, and how it ended. */
function runOf(waitedSince, startedAt, endedAt, end, error) {
  const steps = [];
  const waited = between(waitedSince, startedAt);
  if (waited) steps.push({ kind: "pending", word: `waited ${waited}`, at: startedAt });
  const ran = between(startedAt, endedAt);
  if (ran) steps.push({ kind: "running", word: `ran ${ran}`, at: endedAt });
  steps.push({ kind: end, word: end, at: endedAt ?? startedAt ?? waitedSince, more: error });
  return steps;
}

/**
 * What happened to a job, oldest first.
 * @param {any} job
 * @param {any[]} retries newest first, as the API has them
 */
export function stepsOf(job, retries) {
  const steps = [{ kind: "created", word: "created", at: job.created_at }];
  const afterwards = []; // asked for after the last run, and not applied
  const runAt = Date.parse(job.completed_at ?? job.started_at);
  let since = job.created_at;
  for (const retry of [...retries].reverse()) {
    if (retry.state === "applied") {
      steps.push(...runOf(since, retry.started_at_before, retry.completed_at_before, "failed", retry.error_before));
      since = retry.processed_at;
    }
    const why = retry.reason ? `“${shown(retry.reason)}”` : "no reason given";
    const late = retry.state !== "applied" && Date.parse(retry.requested_at) >= runAt;
    (late ? afterwards : steps).push({ kind: "retry", word: retry.state === "applied" ? `retried by ${shown(retry.actor)}` : `retry ${retry.state.replace("_", " ")}`, at: retry.requested_at, more: `${why}; ${retry.state === "applied" ? "" : `asked by ${shown(retry.actor)}; `}${outcomeWords(retry)}` });
  }
  const ended = job.status === "failed" || job.status === "completed";
  if (job.status === "running") {
    steps.push(...runOf(since, job.started_at, null, "running", null));
  } else if (ended) {
    // An attempt before this one may have begun without a retry of ours, so the wait is left out where it cannot be known.
    steps.push(...runOf(retries.length > 0 || job.attempts <= 1 ? since : null, job.started_at, job.completed_at, job.status, null));
  } else steps.push({ kind: job.status === "pending" ? "pending" : "other", word: shown(job.status), at: job.scheduled_at ?? since, due: job.status === "pending" });
  return [...steps, ...afterwards];
}

/** @param {{job: any, retries: any[], more: boolean}} props */
export function Timeline({ job, retries, more }) {
  const steps = stepsOf(job, retries);
  return html`<div class="card pad timeline">
    <p class="strip" aria-hidden="true">${steps.map((step, i) => html`<span key=${i} class=${`step ${step.kind}`}>${step.word}</span>`)}</p>
    ${more && html`<p class="muted">Older retries are left out.</p>`}
    <ol class="plain">
      ${[...steps].reverse().filter((step) => step.at).map((step, i) => html`<li key=${i} class=${step.kind}>
        <span class="at"><${Time} at=${step.at} precise=${true} /></span>
        <span><strong>${step.due ? "due" : step.word}</strong>${step.more && html` <span class="muted clamp">${shown(step.more)}</span>`}</span>
      </li>`)}
    </ol>
  </div>`;
}
