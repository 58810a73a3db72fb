/** `#/`: what is failing, since when, how much of it can go back, and whether the way back is open. */
import { BatchLines } from "./batch_parts.mjs";
import { bulkRefusal } from "./session.mjs";
import { Groups, useStill } from "./groups.mjs";
import { href } from "./router.mjs";
import { html, useEffect } from "./ui.mjs";
import { CHART } from "./views.mjs";
import { later } from "./later.mjs";
import { AsOf, Empty, Old, Standing, Status, STATUSES, Time, Title } from "./parts.mjs";
import { many, number, span, zoneName } from "./text.mjs";
import { now } from "./api.mjs";
import { OVERVIEW } from "./reads.mjs";
import { useQuery } from "./query.mjs";

const COUNTS_S = 15;
const SLOW_S = 60;
const LATE_MS = 120_000;

/** When the newest of these groups last failed: whether it goes on. */
const lastOf = (groups) => groups.map((group) => group.last_at).filter(Boolean).sort().at(-1);

function Card({ status, stat, queued, last }) {
  const alarm = status === "failed" && stat.count > 0;
  return html`<a class=${`card count ${status} ${alarm ? "alarm" : ""}`} href=${href("jobs", { status })}>
    <${Status} of=${status} />
    <strong>${number(stat.count, stat.capped)}</strong>
    ${alarm && html`<span class="muted">${number(stat.retryable, stat.capped)} can go back${last && html` · last <${Time} at=${last} />`}${queued?.count > 0 && ` · ${number(queued.count, queued.capped)} queued`}</span>`}
    <span class="muted">${stat.oldest_at ? html`oldest <${Time} at=${stat.oldest_at} />` : stat.capped ? "none among those counted" : "none"}</span>
  </a>`;
}

function isHealthy(stats) {
  const oldest = stats.oldest_requested_at ? now() - Date.parse(stats.oldest_requested_at) : 0;
  return oldest < LATE_MS && stats.last_hour.dead_lettered.count === 0;
}

function WayBack({ reading }) {
  if (!reading.body) return html`<div class="card pad"><${Standing} reading=${reading} what="the retries" /></div>`;
  const stats = reading.body.data;
  const hour = stats.last_hour;
  const count = (name) => number(hour[name].count, hour[name].capped);
  return html`<div class=${isHealthy(stats) ? "card pad" : "card pad alarm"}>
    <${Old} reading=${reading} />
    <dl class="facts">
      <dt>queued</dt><dd><a href=${href("retries", { state: "queued" })}>${number(stats.queued.count, stats.queued.capped)}</a></dd>
      <dt>oldest queued</dt><dd><${Time} at=${stats.oldest_requested_at} /></dd>
      <dt>request to effect</dt><dd>${stats.wait_ms ? `p50 ${span(stats.wait_ms.p50)} · p95 ${span(stats.wait_ms.p95)}` : "–"}</dd>
      <dt>last hour</dt><dd>${count("applied")} applied · ${count("rejected")} rejected${hour.cancelled.count > 0 ? ` · ${count("cancelled")} cancelled` : ""}</dd>
      ${hour.dead_lettered.count > 0 && html`<dt>given up</dt><dd><a href=${href("dead")}>${count("dead_lettered")}</a></dd>`}
    </dl>
    ${!isHealthy(stats) && html`<p class="note">The way back is not open: ${hour.dead_lettered.count > 0 ? "retries were given up in the last hour." : "retries have waited for over two minutes. Do the workers run?"}</p>`}
  </div>`;
}

function WhatFails({ reading }) {
  const largest = useStill(OVERVIEW.failures, reading.body?.data.slice(0, 5) ?? []);
  if (!reading.body) return html`<div class="card pad"><${Standing} reading=${reading} what="the failures" /></div>`;
  const { data, truncated, sampled } = reading.body;
  return html`<${Old} reading=${reading} /><${Groups} groups=${largest} most=${data[0]?.jobs ?? 1} changed=${reading.reload} />
    <p class="under">
      ${data.length > 5 && html`<a href=${href("failures")}>all ${data.length} groups</a>`}
      ${truncated && html`<span class="muted"> of the newest ${number(sampled)} failed jobs</span>`}
      ${data.length > 0 && bulkRefusal() && html`<span class="muted"> ${bulkRefusal()}</span>`}
    </p>`;
}

/** The chart's code is a quarter of the console, and stands last on its page: it is read when the rest is there. */
function Hours({ reading }) {
  useEffect(() => {
    CHART.read().catch(() => {}); // while the hours are on their way
  }, []);
  if (!reading.body) return html`<div class="card pad"><${Standing} reading=${reading} what="the hours" /></div>`;
  return html`<${Old} reading=${reading} /><${later(CHART)} buckets=${reading.body.data} label="Jobs of the last 24 hours by status" />`;
}

/** The page. */
export function Overview() {
  const stats = useQuery(OVERVIEW.stats, COUNTS_S);
  const failures = useQuery(OVERVIEW.failures, COUNTS_S);
  const retries = useQuery(OVERVIEW.retries, COUNTS_S);
  const batches = useQuery(OVERVIEW.batches, COUNTS_S * 2);
  const series = useQuery(OVERVIEW.series, SLOW_S);
  const away = stats.body && stats.problem; // which is said once, at the top
  const besides = (reading) => (away && reading.body && reading.problem?.code === away.code ? { ...reading, problem: null } : reading);
  const first = retries.body && !isHealthy(retries.body.data) ? "first" : "";
  return html`
    <${Title} text="Overview"><${AsOf} reading=${stats} at=${stats.body?.data && stats.body.as_of} /></${Title}>
    ${away && html`<${Standing} reading=${stats} />`}
    ${stats.body
      ? html`<div class="counts" aria-live="polite">${STATUSES.map((status) => html`<${Card} key=${status} status=${status} stat=${stats.body.data[status]} queued=${retries.body?.data.queued} last=${lastOf(failures.body?.data ?? [])} />`)}</div>
          ${stats.body.data.other.count > 0 && html`<p class="under muted">${many(stats.body.data.other.count, "job", stats.body.data.other.capped)} in other states</p>`}`
      : html`<${Standing} reading=${stats} what="the counts" />`}
    <div class=${`two ${first}`}>
      <section><h2>What fails</h2><${WhatFails} reading=${besides(failures)} /></section>
      <div class="side">
        <section><h2>The way back</h2><${WayBack} reading=${besides(retries)} /></section>
        <section><h2>Last batches</h2>
          <${Old} reading=${besides(batches)} />
          ${batches.body
            ? batches.body.data.length > 0 ? html`<${BatchLines} batches=${batches.body.data} />` : html`<${Empty}>None yet. A bulk retry shows up here.</${Empty}>`
            : html`<div class="card pad"><${Standing} reading=${batches} what="the batches" /></div>`}
        </section>
      </div>
    </div>
    <section>
      <h2>Last 24 hours, by creation, ${zoneName()}</h2>
      <${Hours} reading=${besides(series)} />
    </section>`;
}
