/** `#/jobs`: the jobs of a filter; failed ones unless asked otherwise. */
import { AsOf, Empty, MovedOn, Standing, Status, STATUSES, Time, Title } from "./parts.mjs";
import { bulkRefusal, mayBulk } from "./session.mjs";
import { Chip, Choice, Created, JobById, Tabs, TextFilter, TypeFilter } from "./filters.mjs";
import { go, href } from "./router.mjs";
import { html, useEffect, useMemo, useState } from "./ui.mjs";
import { many, number, short, shown } from "./text.mjs";
import { More, Newer, usePages } from "./pages.mjs";
import { countsOfJobs, jobsOf, ofFailed, since } from "./reads.mjs";
import { openBulk } from "./store.mjs";
import { useQuery } from "./query.mjs";

const COUNTS_S = 15;

/** The four statuses and how many jobs each has, the largest question of this page; and whatever else the address asks for. */
function Statuses({ query }) {
  const counts = useQuery(countsOfJobs(query), COUNTS_S).body?.data ?? {};
  const chosen = query.status || "failed";
  const keys = [...STATUSES, ...(chosen === "any" || STATUSES.includes(chosen) ? [] : [chosen])];
  const options = keys.map((key) => [key, html`<${Status} of=${key} /> <strong>${Object.hasOwn(counts, key) ? number(counts[key].count, counts[key].capped) : ""}</strong>`]);
  const to = (status) => href("jobs", status === "failed" ? { ...query, status } : { ...query, status, retryable: "", error: "", fingerprint: "" });
  return html`<${Tabs} label="status" value=${chosen} options=${[...options, ["any", "any"]]} to=${to} />`;
}

function Filters({ query, put, failed }) {
  return html`<div class="filters">
    <${TypeFilter} value=${query.type} put=${(type) => put({ type, fingerprint: "" })} />
    <${Created} value=${query.within} put=${(within) => put({ within })} />
    ${failed && html`<${Choice} label="can go back" value=${query.retryable} options=${[["", "either"], ["true", "yes"], ["false", "no"]]} put=${(retryable) => put({ retryable })} />
      <${TextFilter} label="error contains" id="find" value=${query.error} put=${(error) => put({ error })} />`}
    ${query.fingerprint && html`<${Chip} off=${() => put({ fingerprint: "" })}>one error: <code>${shown(query.fingerprint)}</code></${Chip}>`}
  </div>`;
}

function Row({ job, failed, selected, select, selectable }) {
  if (job.unreadable) {
    return html`<tr data-row=${job.id} class=${job.left ? "left" : ""}>${selectable && html`<td></td>`}<td class="main" colspan="6"><code>${job.id}</code> <span class="muted">cannot be shown: its row holds something unreadable</span> ${job.left && html`<${MovedOn} />`}</td></tr>`;
  }
  return html`<tr data-row=${job.id} class=${job.left ? "left" : selected ? "selected" : ""}>
    ${selectable && html`<td class="pick"><input type="checkbox" checked=${selected} disabled=${job.left} aria-label=${`Select job ${short(job.id)}`} onClick=${(event) => select(job.id, event.shiftKey)} /></td>`}
    <td class="state">${job.left ? html`<${MovedOn} />` : html`<${Status} of=${job.status} />`}</td>
    <td class="main"><a href=${href(`jobs/${job.id}`)}>${shown(job.type) || "(no type)"}</a> <code class="muted id">${short(job.id)}</code></td>
    ${failed && html`<td class="error"><code title=${shown(job.last_error)}>${shown(job.last_error).split("\n")[0].slice(0, 300)}</code></td>`}
    <td class="n tries">${job.attempts}/${job.max_attempts}</td>
    <td class="when"><${Time} at=${failed ? job.completed_at ?? job.created_at : job.created_at} /></td>
    ${failed && html`<td class="back">${job.left ? "" : job.retryable ? "yes" : job.retry_blocked_by === "retry_queued" ? "queued" : "used up"}</td>`}
  </tr>`;
}

/** The filter of a bulk retry. It cannot ask for jobs that cannot go back. */
function filterOf(query, after) {
  const filter = { type: query.type, created_after: after, error_contains: query.error, fingerprint: query.fingerprint };
  return Object.fromEntries(Object.entries(filter).filter(([, value]) => value));
}

function Selection({ picked, everything, query, after, all, setAll, clear, done, list }) {
  const open = () =>
    openBulk({ title: all ? "Retry all that match" : `Retry ${many(picked.length, "job")}`, body: all ? { filter: filterOf(query, after) } : { ids: picked }, list: all ? list : null, done });
  return html`<div class="selection" role="region" aria-label="Selected jobs">
    <span aria-live="polite">${all ? "All that match" : many(picked.length, "job")} selected</span>
    ${everything && !all && (query.retryable === "false"
      ? html`<p class="muted">All that match cannot be chosen: a bulk retry has no filter for what cannot go back.</p>`
      : html`<button type="button" onClick=${() => setAll(true)}>Select all that match</button>`)}
    <button type="button" onClick=${clear}>Clear</button>
    <button type="button" class="act" onClick=${open}>Retry${all ? " all" : ` ${number(picked.length)}`}…</button>
  </div>`;
}

/** The page. @param {{query: Record<string, string>}} props */
export function Jobs({ query }) {
  const failed = ofFailed(query);
  const after = useMemo(() => since(query.within), [query.within]);
  const path = jobsOf(query, after);
  const pages = usePages(path);
  const { reading, rows } = pages;
  const [chosen, setChosen] = useState(new Set());
  const [all, setAll] = useState(false);
  const [last, setLast] = useState(null);
  const clear = () => {
    setChosen(new Set());
    setAll(false);
  };
  useEffect(clear, [path]);
  const selectable = failed && mayBulk();
  const put = (changes) => go(href("jobs", { ...query, ...changes }), { replace: true });
  const ids = rows.filter((job) => !job.unreadable && !job.left).map((job) => job.id);
  const picked = ids.filter((id) => chosen.has(id));
  useEffect(() => {
    const left = new Set(rows.filter((job) => job.left).map((job) => job.id));
    if ([...chosen].some((id) => left.has(id))) setChosen(new Set([...chosen].filter((id) => !left.has(id)))); // it may come back as another failure
  }, [rows]);
  const retried = () => {
    clear();
    reading.reload();
  };
  function select(id, toHere) {
    const next = new Set(chosen);
    const anchor = toHere && ids.includes(last) ? last : id;
    const [from, to] = [ids.indexOf(anchor), ids.indexOf(id)].sort((a, b) => a - b);
    for (const each of ids.slice(from, to + 1)) chosen.has(id) ? next.delete(each) : next.add(each);
    setChosen(next);
    setAll(false);
    setLast(id);
  }
  const whole = ids.length > 0 && picked.length === ids.length;
  return html`
    <${Title} text="Jobs"><${JobById} /><${AsOf} reading=${reading} /></${Title}>
    <${Statuses} query=${query} />
    <${Filters} query=${query} put=${put} failed=${failed} />
    ${(reading.problem || !reading.body) && html`<${Standing} reading=${reading} what="the jobs" />`}
    ${failed && rows.length > 0 && bulkRefusal() && html`<p class="under muted">${bulkRefusal()}</p>`}
    ${reading.body?.truncated && html`<p class="under muted">Of the newest 10,000 failed jobs; there are more.</p>`}
    ${reading.body && rows.length === 0 && html`<${Empty}>${failed ? "No failed job matches." : "No job matches."} ${Object.keys(query).length > 1 ? html`<a href=${href("jobs", { status: query.status })}>Without the other filters</a>` : ""}</${Empty}>`}
    ${rows.length > 0 && html`<div><${Newer} pages=${pages} /><table class=${failed ? "card rows jobs" : "card rows jobs short"}>
      <thead><tr>
        ${selectable && html`<th class="pick"><input type="checkbox" aria-label="Select all shown" checked=${whole} onClick=${() => { setAll(false); setChosen(whole ? new Set() : new Set(ids)); }} /></th>`}
        <th scope="col">status</th><th scope="col">type</th>${failed && html`<th scope="col">error</th>`}
        <th scope="col" class="n">attempts</th><th scope="col">${failed ? "failed" : "created"}</th>${failed && html`<th scope="col">can go back</th>`}
      </tr></thead>
      <tbody>${rows.map((job) => html`<${Row} key=${job.id} job=${job} failed=${failed} selected=${!job.left && (all || chosen.has(job.id))} select=${select} selectable=${selectable} />`)}</tbody>
    </table></div>`}
    <${More} pages=${pages} />
    ${(all || picked.length > 0) && html`<${Selection} picked=${picked} everything=${whole && pages.more} query=${query} after=${after} all=${all} setAll=${setAll} clear=${clear} done=${retried} list=${location.hash} />`}`;
}
