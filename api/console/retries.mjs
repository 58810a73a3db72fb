/** `#/retries` and `#/dead`: who asked for what, why, when, and what became of it. */
import { AsOf, Empty, MovedOn, Refusal, Standing, Status, Time, Title } from "./parts.mjs";
import { announcement } from "./store.mjs";
import { call, pathOf } from "./api.mjs";
import { Chip, Tabs, TextFilter } from "./filters.mjs";
import { go, href } from "./router.mjs";
import { html, useState } from "./ui.mjs";
import { Now, TOGETHER, useJobsNow } from "./jobs_now.mjs";
import { More, Newer, usePages } from "./pages.mjs";
import { outcomeWords, short, shown } from "./text.mjs";
import { refusalOf, session } from "./session.mjs";

const STATES = [["", "any"], ["queued", "queued"], ["applied", "applied"], ["rejected", "rejected"], ["cancelled", "cancelled"], ["dead_lettered", "given up"]];
const WORDS = Object.fromEntries(STATES);
const CALM_MS = 2_000; // a second click does not undo what the first one did

/** What can be done with a retry as it stands, and what came of trying. */
function Act({ retry, put, changed }) {
  const [state, setState] = useState({ busy: false, problem: null });
  const [method, path, word] =
    retry.state === "queued" ? ["DELETE", `retries/${retry.id}`, "Take back"]
      : retry.state === "dead_lettered" ? ["POST", `retries/${retry.id}/redrive`, "Redrive"] : [];
  if (!method || refusalOf(session.get().me, "jobs:retry") !== null) return null;
  async function act(event) {
    const row = event.currentTarget.closest("tr");
    setState({ busy: true, problem: null });
    try {
      put((await call(method, path)).body.data);
      announcement.set(`${word === "Redrive" ? "Redriven" : "Taken back"}.`);
      row.querySelector("a")?.focus(); // the button goes, or is another one
      setTimeout(() => setState({ busy: false, problem: null }), CALM_MS);
    } catch (problem) {
      setState({ busy: false, problem });
    }
    changed();
  }
  return html`<button type="button" disabled=${state.busy} onClick=${act} aria-label=${`${word} the retry of job ${short(retry.job_id)}`}>${word}</button>
    ${state.problem && html`<${Refusal} problem=${state.problem} />`}`;
}

function Row({ retry, job, put, changed }) {
  const isUnknown = retry.left && !retry.isOwn;
  const became = [!isUnknown && outcomeWords(retry), retry.redriven_by && `redriven by ${shown(retry.redriven_by)}`].filter(Boolean).join("; ");
  return html`<tr data-row=${retry.id} class=${retry.left ? "left" : ""}>
    <td class="state">${isUnknown ? html`<${MovedOn} />` : html`<${Status} of=${retry.state} word=${WORDS[retry.state]} />`}</td>
    <td class="main"><a href=${href(`jobs/${retry.job_id}`)}><code>${short(retry.job_id)}</code></a>${job && html` <span class="muted">${shown(job.type)}</span>`}
      <span class="muted second">${became}${job && html`${became && "; "}now <${Now} retry=${retry} job=${job} />`}</span></td>
    <td class="why" data-label="who"><span>${shown(retry.actor)}</span><span class="muted second clamp">${retry.reason ? shown(retry.reason) : "no reason given"}</span></td>
    <td data-label="asked"><${Time} at=${retry.requested_at} /></td>
    <td class="error" data-label="error before"><code title=${shown(retry.error_before)}>${shown(retry.error_before).split("\n")[0].slice(0, 300)}</code></td>
    <td class="act">${!retry.left && html`<${Act} retry=${retry} put=${put} changed=${changed} />`}</td>
  </tr>`;
}

/** Rows whose jobs are asked for together. */
function Rows({ retries, put, changed }) {
  const jobs = useJobsNow(retries);
  return html`<tbody>${retries.map((retry) => html`<${Row} key=${retry.id} retry=${retry} job=${jobs.get(retry.job_id)} put=${put} changed=${changed} />`)}</tbody>`;
}

const inParts = (rows) => Array.from({ length: Math.ceil(rows.length / TOGETHER) }, (_, i) => rows.slice(i * TOGETHER, (i + 1) * TOGETHER));

function List({ path, empty, title, children }) {
  const pages = usePages(path);
  const { reading, rows } = pages;
  const refusal = refusalOf(session.get().me, "jobs:retry");
  return html`
    <${Title} text=${title}><${AsOf} reading=${reading} /></${Title}>
    ${children}
    ${(reading.problem || !reading.body) && html`<${Standing} reading=${reading} what="the retries" />`}
    ${refusal && rows.some((retry) => ["queued", "dead_lettered"].includes(retry.state)) && html`<p class="under muted">${refusal}</p>`}
    ${reading.body && rows.length === 0 && html`<${Empty}>${empty}</${Empty}>`}
    ${rows.length > 0 && html`<div><${Newer} pages=${pages} /><table class="card rows retries">
      <thead><tr><th scope="col">state</th><th scope="col">job, and what became of it</th><th scope="col">who and why</th><th scope="col">asked</th><th scope="col">error before</th><th scope="col"><span class="hidden">act</span></th></tr></thead>
      ${inParts(rows).map((retries, i) => html`<${Rows} key=${i} retries=${retries} put=${pages.put} changed=${reading.reload} />`)}
    </table></div>`}
    <${More} pages=${pages} />`;
}

/** The audit trail. @param {{query: Record<string, string>}} props */
export function Retries({ query }) {
  const put = (changes) => go(href("retries", { ...query, ...changes }), { replace: true });
  const path = pathOf("retries", { state: query.state, actor: query.actor, job_id: query.job_id, batch_id: query.batch_id, limit: 50 });
  const states = STATES.some(([key]) => key === (query.state ?? "")) ? STATES : [...STATES, [query.state, shown(query.state)]];
  return html`<${List} path=${path} title="Retries" empty="No retry matches.">
    <${Tabs} label="state" value=${query.state} options=${states} to=${(state) => href("retries", { ...query, state })} />
    <div class="filters">
      <${TextFilter} label="who" id="find" value=${query.actor} longest=${255} put=${(actor) => put({ actor })} />
      ${query.batch_id && html`<${Chip} off=${() => put({ batch_id: "" })}>of batch <a href=${href(`batches/${query.batch_id}`)}><code>${shown(query.batch_id).slice(0, 8)}</code></a></${Chip}>`}
      ${query.job_id && html`<${Chip} off=${() => put({ job_id: "" })}>of job <code>${shown(short(query.job_id))}</code></${Chip}>`}
    </div>
  </${List}>`;
}

/** What was given up. */
export function Dead() {
  return html`<${List} path=${pathOf("retries", { state: "dead_lettered", limit: 50 })} title="Dead letters" empty="Nothing was given up.">
    <p class="under muted">Retries that no worker could read or settle. Once the cause is mended, redrive them. Messages that only the broker has, such as
      unreadable ones of other publishers, are not in this list: <code class="words">redrive dead list</code> shows them.</p>
  </${List}>`;
}
