/** `#/batches` and `#/batches/{id}`: who asked for many retries, why, and what became of them. */
import { AsOf, Copy, Empty, MovedOn, Refusal, Standing, Time, Title } from "./parts.mjs";
import { BatchProgress, filterWords, Rejected, Share } from "./batch_parts.mjs";
import { call, pathOf } from "./api.mjs";
import { href } from "./router.mjs";
import { html, useState } from "./ui.mjs";
import { JobsOfBatch } from "./jobs_now.mjs";
import { bulkRefusal } from "./session.mjs";
import { More, Newer, usePages } from "./pages.mjs";
import { number, shown } from "./text.mjs";
import { useWatched } from "./query.mjs";

/** The list. */
export function Batches({ query }) {
  const pages = usePages(pathOf("retry-batches", { actor: query.actor, limit: 50 }));
  const { reading, rows } = pages;
  return html`
    <${Title} text="Batches"><${AsOf} reading=${reading} /></${Title}>
    ${(reading.problem || !reading.body) && html`<${Standing} reading=${reading} what="the batches" />`}
    ${reading.body && rows.length === 0 && html`<${Empty}>No bulk retry has been asked for yet. Begin one from a group of failures, or from selected jobs.</${Empty}>`}
    ${rows.length > 0 && html`<div><${Newer} pages=${pages} /><table class="card rows batches">
      <thead><tr><th scope="col">reason</th><th scope="col">who</th><th scope="col">asked</th><th scope="col" class="n">jobs</th><th scope="col" class="n">went back</th><th scope="col" class="n">rejected</th><th scope="col">how far</th></tr></thead>
      <tbody>${rows.map((batch) => html`<tr key=${batch.id} data-row=${batch.id} class=${batch.left ? "left" : ""}>
        <td class="main"><a href=${href(`batches/${batch.id}`)}>${batch.reason ? shown(batch.reason) : "no reason given"}</a><span class="muted second">${filterWords(batch.filter)}</span></td>
        <td data-label="who">${shown(batch.actor)}</td>
        <td data-label="asked"><${Time} at=${batch.requested_at} /></td>
        <td class="n" data-label="jobs">${number(batch.total)}</td>
        <td class="n" data-label="went back">${number(batch.applied)}</td>
        <td class=${batch.rejected > 0 ? "n bad" : "n"} data-label="rejected">${number(batch.rejected)}</td>
        <td class="bar" data-label="how far">${batch.left ? html`<${MovedOn} />` : html`<${Share} batch=${batch} />`}</td>
      </tr>`)}</tbody>
    </table></div>`}
    <${More} pages=${pages} />`;
}

/** What is still queued can be taken back; asked once more before it is. */
function Cancel({ batch, done }) {
  const [state, setState] = useState({ asked: false, busy: false, problem: null });
  if (batch.queued === 0) return null;
  if (bulkRefusal() !== null) return html`<p class="muted">${bulkRefusal()}</p>`;
  async function cancel() {
    setState({ asked: true, busy: true, problem: null });
    try {
      await call("DELETE", `retry-batches/${batch.id}`);
      setState({ asked: false, busy: false, problem: null });
      done();
    } catch (problem) {
      setState({ asked: true, busy: false, problem });
    }
  }
  return html`<div class="actions">
    ${state.asked
      ? html`<span>Jobs that went back stay so.</span>
          <button type="button" onClick=${() => setState({ ...state, asked: false })}>Keep going</button>
          <button type="button" class="act danger" disabled=${state.busy} onClick=${cancel}>Cancel ${number(batch.queued)} queued</button>`
      : html`<button type="button" onClick=${() => setState({ ...state, asked: true })}>Cancel what is still queued…</button>`}
    ${state.problem && html`<${Refusal} problem=${state.problem} />`}
  </div>`;
}

/** One batch, live. */
export function Batch({ id }) {
  const reading = useWatched(`retry-batches/${encodeURIComponent(id)}`);
  const batch = reading.body?.data;
  return html`
    <p class="crumb"><a href="#/batches">Batches</a></p>
    <${Title} text=${batch ? shown(batch.reason ?? "no reason given") : "Batch"}><${AsOf} reading=${reading} /></${Title}>
    ${(reading.problem || !batch) && html`<${Standing} reading=${reading} what="the batch" />`}
    ${batch && html`
      <div class="card pad">
        <${BatchProgress} batch=${batch} />
        <${JobsOfBatch} batch=${batch} />
        <dl class="facts">
          <dt>asked by</dt><dd>${shown(batch.actor)}</dd>
          <dt>asked</dt><dd><${Time} at=${batch.requested_at} whole=${true} /></dd>
          <dt>chosen by</dt><dd>${filterWords(batch.filter)}</dd>
          <dt>id</dt><dd><code>${batch.id}</code> <${Copy} text=${batch.id} what="the id" /></dd>
        </dl>
        <p><a href=${href("retries", { batch_id: batch.id })}>all its retries</a></p>
        <${Cancel} batch=${batch} done=${reading.reload} />
      </div>
      ${["rejected", "dead_lettered"].map((state) => batch[state] > 0 && html`<section key=${state}>
        <h2>${state === "rejected" ? "Rejected" : "Given up"}</h2><div class="card pad"><${Rejected} key=${batch[state]} batchId=${batch.id} count=${batch[state]} state=${state} /></div>
      </section>`)}`}`;
}
