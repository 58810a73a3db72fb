/** `#/jobs/{id}`: one job, live: its error, its timeline, its facts, and the way back. */
import { AsOf, Copy, ErrorText, Refusal, Standing, Status, Time, Title } from "./parts.mjs";
import { call, pathOf } from "./api.mjs";
import { href } from "./router.mjs";
import { html, useEffect, useState } from "./ui.mjs";
import { indented } from "./raw_json.mjs";
import { refusalOf, session } from "./session.mjs";
import { RetryPanel } from "./retry_panel.mjs";
import { shown } from "./text.mjs";
import { Timeline } from "./timeline.mjs";
import { useQuery, useWatched } from "./query.mjs";

/** The payload, read only when it is asked for, and shown as the bytes that came. */
function Payload({ id }) {
  const [state, setState] = useState({ text: null, busy: false, problem: null });
  const refusal = refusalOf(session.get().me, "jobs:payload");
  if (refusal !== null) return html`<p class="muted">${refusal}</p>`;
  async function show() {
    setState({ text: null, busy: true, problem: null });
    try {
      const { text } = await call("GET", `jobs/${encodeURIComponent(id)}?include=payload`);
      setState({ text: indented(text, "payload") ?? "", busy: false, problem: null });
    } catch (problem) {
      setState({ text: null, busy: false, problem });
    }
  }
  if (state.text !== null) {
    return html`<div class="error-text"><pre class="payload" tabindex="0">${shown(state.text)}</pre>
      <p class="tools"><${Copy} text=${state.text} what="the payload" /><button type="button" class="small" onClick=${() => setState({ ...state, text: null })}>hide</button></p></div>`;
  }
  return html`<p><button type="button" disabled=${state.busy} onClick=${show}>${state.busy ? "Reading…" : "Show the payload"}</button></p>
    ${state.problem && html`<${Refusal} problem=${state.problem} retry=${show} />`}`;
}

function Facts({ job }) {
  return html`<dl class="facts">
    <dt>attempts</dt><dd>${job.attempts} of ${job.max_attempts}</dd>
    <dt>created</dt><dd><${Time} at=${job.created_at} whole=${true} /></dd>
    <dt>scheduled</dt><dd><${Time} at=${job.scheduled_at} whole=${true} /></dd>
    <dt>started</dt><dd><${Time} at=${job.started_at} whole=${true} /></dd>
    <dt>ended</dt><dd><${Time} at=${job.completed_at} whole=${true} /></dd>
    <dt>id</dt><dd class="id"><code>${job.id}</code> <${Copy} text=${job.id} what="the id" /></dd>
    <dt>on a page</dt><dd><a href=${`element.html#job=${encodeURIComponent(job.id)}`}>show it on a page of yours</a></dd>
  </dl>`;
}

/** The page. */
export function JobPage({ id }) {
  const reading = useWatched(`jobs/${encodeURIComponent(id)}`);
  const retries = useQuery(pathOf(`jobs/${encodeURIComponent(id)}/retries`, { limit: 50 }));
  const job = reading.body?.data;
  useEffect(() => {
    if (reading.etag !== null && retries.at !== null) retries.reload(); // what became of its retries has changed with it
  }, [reading.etag]);
  return html`
    <p class="crumb"><a href="#/jobs">Jobs</a></p>
    <${Title} text=${job ? shown(job.type) || "(no type)" : "Job"}>
      ${job && html`<${Status} of=${job.status} />`}<${AsOf} reading=${reading} />
    </${Title}>
    ${(reading.problem || !job) && html`<${Standing} reading=${reading} what="the job" />`}
    ${job && html`<div class="two job">
      ${job.last_error !== null && html`<section><h2>The error</h2><div class="card pad"><${ErrorText} text=${job.last_error} truncated=${job.last_error_truncated} />
        ${job.status === "failed" && html`<p><a href=${href("failures", { type: job.type })}>all failures of this type</a></p>`}</div></section>`}
      <div class="side">
        <section><h2>The way back</h2><div class="card pad" aria-live="polite"><${RetryPanel} job=${job} etag=${reading.etag} changed=${reading.reload} /></div></section>
        <section class="facts"><h2>Facts</h2><div class="card pad"><${Facts} job=${job} /></div></section>
      </div>
      <section><h2>What happened</h2>
        ${retries.body
          ? html`<${Timeline} job=${job} retries=${retries.body.data} more=${retries.body.next_cursor !== null} />`
          : html`<div class="card pad"><${Standing} reading=${retries} what="its retries" /></div>`}
      </section>
      <section><h2>Payload</h2><div class="card pad"><${Payload} id=${id} /></div></section>
    </div>`}`;
}
