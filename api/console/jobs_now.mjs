/** What retried jobs are now. That a retry was applied says only that its job went back; it may have failed again since. */
import { html } from "./ui.mjs";
import { number } from "./text.mjs";
import { pathOf } from "./api.mjs";
import { Status, STATUSES } from "./parts.mjs";
import { useQuery } from "./query.mjs";

const EVERY_S = 15;

/** How many jobs are asked for at once, at most; the API takes a hundred. */
export const TOGETHER = 50;

/** The jobs of these ids by id, as they are; without those that are gone or cannot be shown. */
export function useJobsNow(ids) {
  const path = ids.length > 0 ? pathOf("jobs", { ids: [...new Set(ids)].slice(0, TOGETHER).join(",") }) : null;
  const jobs = useQuery(path, EVERY_S).body?.data ?? [];
  return new Map(jobs.filter((job) => !job.unreadable).map((job) => [job.id, job]));
}

/** The status of a job that went back: one that is failed has failed again. */
const Again = ({ status }) => html`<${Status} of=${status} word=${status === "failed" ? "failed again" : status} />`;

/** The status of a retried job now. */
export const Now = ({ retry, job }) => (retry.state === "applied" ? html`<${Again} status=${job.status} />` : html`<${Status} of=${job.status} />`);

/** How the jobs of a batch that went back are doing; of a large batch, the newest of them. */
export function JobsOfBatch({ batch }) {
  const applied = useQuery(batch.applied > 0 ? pathOf("retries", { batch_id: batch.id, state: "applied", limit: TOGETHER }) : null, batch.done ? null : EVERY_S);
  const retries = applied.body?.data ?? [];
  const jobs = [...useJobsNow(retries.map((retry) => retry.job_id)).values()];
  if (jobs.length === 0) return null;
  const others = jobs.filter((job) => !STATUSES.includes(job.status)).length;
  return html`<p class="now" aria-live="polite">${batch.applied > retries.length ? `Of the newest ${number(retries.length)} that went back` : "Of these"}, now:
    ${STATUSES.map((status) => [status, jobs.filter((job) => job.status === status).length]).filter(([, count]) => count > 0).map(([status, count]) => html`${" "}<span key=${status}>${number(count)} <${Again} status=${status} /></span>`)}
    ${others > 0 && html`${" "}<span>${number(others)} in other states</span>`}
  </p>`;
}
