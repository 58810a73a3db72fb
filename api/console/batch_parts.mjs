/** Pieces that show a batch: one line, how far it is, and those of its retries that were rejected. */
import { Refusal, Standing, Time } from "./parts.mjs";
import { href } from "./router.mjs";
import { html } from "./ui.mjs";
import { many, number, outcomeWords, short, shown } from "./text.mjs";
import { pathOf } from "./api.mjs";
import { useQuery } from "./query.mjs";

const ENDS = [["applied", "went back"], ["rejected", "rejected"], ["dead_lettered", "given up"], ["cancelled", "cancelled"], ["queued", "queued"]];

/** What a batch stands for in words: its filter, or that its jobs were picked. */
export function filterWords(filter) {
  if (filter === null) return "picked jobs";
  const words = Object.entries(filter).filter(([, value]) => value !== null).map(([name, value]) => {
    if (name === "fingerprint") return "one error";
    if (name === "retried_fewer_than") return `retried fewer than ${value.times} times in ${value.within_seconds} s`;
    return `${name.replaceAll("_", " ")} ${shown(value)}`;
  });
  return words.length > 0 ? words.join(", ") : "all failed jobs";
}

/** A bar in proportion, drawn with the page's own elements so that it needs no style attribute. */
export function Share({ batch }) {
  const words = ENDS.filter(([name]) => batch[name] > 0).map(([name, word]) => `${batch[name]} ${word}`).join(", ");
  let x = 0;
  return html`<svg class="share" viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label=${words || "empty"}>
    ${ENDS.map(([name]) => {
      const width = batch.total > 0 ? (100 * batch[name]) / batch.total : 0;
      const from = x;
      x += width;
      return width > 0 && html`<rect key=${name} class=${name} x=${from} y="0" width=${width} height="4" />`;
    })}
  </svg>`;
}

/** How far a batch is, in a bar and in words. */
export function BatchProgress({ batch }) {
  const settled = batch.total - batch.queued;
  const ends = ENDS.filter(([name]) => batch[name] > 0).map(([name, word]) => `${number(batch[name])} ${word}`);
  return html`<div class="progress">
    <p class="verdict" aria-live="polite"><strong>${batch.total === 0 ? "Nothing was asked for." : batch.done ? "Done." : `${number(settled)} of ${number(batch.total)} settled:`}</strong> ${ends.join(" · ")}</p>
    <${Share} batch=${batch} />
  </div>`;
}

/** The retries of a batch that were rejected, each with its reason. */
export function Rejected({ batchId, count, state = "rejected" }) {
  const reading = useQuery(pathOf("retries", { batch_id: batchId, state, limit: 50 }));
  if (!reading.body) return html`<${Standing} reading=${reading} what="the rejected ones" />`;
  return html`<div class="scroll rejected" tabindex="0" role="region" aria-label="Rejected retries">
    ${reading.body.data.length < Math.min(count, 50) && html`<p><button type="button" class="small" onClick=${reading.reload}>read all ${number(count)}</button></p>`}
    <ul class="plain">
      ${reading.body.data.map((retry) => html`<li key=${retry.id}><a href=${href(`jobs/${retry.job_id}`)}><code>${short(retry.job_id)}</code></a> ${outcomeWords(retry)}</li>`)}
    </ul>
    ${reading.body.next_cursor && html`<p><a href=${href("retries", { batch_id: batchId, state })}>all of them</a></p>`}
    ${reading.problem && html`<${Refusal} problem=${reading.problem} />`}
  </div>`;
}

/** Batches, one small card a line. */
export function BatchLines({ batches }) {
  return html`<ul class="plain card lines">
    ${batches.map((batch) => html`<li key=${batch.id} data-row=${batch.id}>
      <a href=${href(`batches/${batch.id}`)}>${batch.reason ? shown(batch.reason) : "no reason given"}</a>
      <span class="muted">${many(batch.total, "job")} · ${shown(batch.actor)} · <${Time} at=${batch.requested_at} /></span>
      <${Share} batch=${batch} />
    </li>`)}
  </ul>`;
}
