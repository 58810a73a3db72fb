/** What retried jobs are now. That a retry was applied says only that its job went back; it may have failed again since. */
import { html } from "./ui.mjs";
import { number } from "./text.mjs";
import { pathOf } from "./api.mjs";
import { Status, STATUSES } from "./parts.mjs";
import { useQuery } from "./query.mjs";

const EVERY_S = 15;

/** How many jobs are asked for at once, at most; the API takes a hundred. */
export const TOGETHER = 50;

/** Whether this is the job from before the retry was applied, as a replica that lags behind may show it. */
const isFromBefore = (job, retry) =>
  retry.state === "applied" && job.status === "failed" && job.attempts === retry.attempts_before && job.started_at === retry.started_at_before && job.completed_at === retry.completed_at_before;

/** The jobs of these retries by id, as they are; without those that are gone, cannot be shown, or are shown as they were. */
export function useJobsNow(retries) {
  const ids = [...new Set(retries.map((retry) => retry.job_id))].slice(0, TOGETHER);
  const jobs = useQuery(ids.length > 0 ? pathOf("jobs", { ids: ids.join(",") }) : null, EVERY_S).body?.data ?? [];
  const now = new Map(jobs.filter((job) => !job.unreadable).map((job) => [job.id, job]));
  for (const retry of retries) if (now.has(retry.job_id) && isFromBefore(now.get(retry.job_id), retry)) now.delete(retry.job_id);
  return now;
}

/** The status of a job that went back: one that is failed has failed again. */
const Again = ({ status }) => html`<${Status} of=${status} word=${status === "failed" ? "failed again" : status} />`;

/** The status of a retried job now. */
export const Now = ({ retry, job }) => (retry.state === "applied" ? html`<${Again} status=${job.status} />` : html`<${Status} of=${job.status} />`);

/** How the jobs of a batch that went back are doing; of a large batch, the newest of them. */
export function JobsOfBatch({ batch }) {
  const applied = useQuery(batch.applied > 0 ? pathOf("retries", { batch_id: batch.id, state: "applied", limit: TOGETHER }) : null, batch.done ? null : EVERY_S);
  const retries = applied.body?.data ?? [];
  const jobs = [...useJobsNow(retries).values()];
  if (jobs.length === 0) return null;
  const others = jobs.filter((job) => !STATUSES.includes(job.status)).length;
  return html`<p class="now" aria-live="polite">${batch.applied > retries.length ? `Of the newest ${number(retries.length)} that went back` : "Of these"}, now:
    ${STATUSES.map((status) => [status, jobs.filter((job) => job.status === status).length]).filter(([, count]) => count > 0).map(([status, count]) => html`${" "}<span key=${status}>${number(count)} <${Again} status=${status} /></span>`)}
    ${others > 0 && html`${" "}<span>${number(others)} in other states</span>`}
  </p>`;
}
