/** What the overview and the list of jobs read, apart from their code: start.mjs asks for it while that is on its way. */
import { now, pathOf } from "./api.mjs";

const LIMIT = 50;

/** The moment some hours ago, on a whole minute, so that a page's path stays the same for a while; undefined for none. */
export function since(hours) {
  const count = Number.parseInt(hours ?? "", 10);
  if (!(count > 0 && count < 100_000)) return undefined;
  return new Date(Math.floor(now() / 60_000) * 60_000 - count * 3_600_000).toISOString();
}

/** All that the overview reads. */
export const OVERVIEW = {
  stats: "jobs/stats",
  failures: "failures",
  retries: "retries/stats",
  batches: pathOf("retry-batches", { limit: 5 }),
  series: "jobs/series",
};

/** Whether the query of `#/jobs` is about failed jobs, as it is unless it names another status. */
export const ofFailed = (query) => (query.status || "failed") === "failed";

/** The list of jobs that the query of `#/jobs` names; `after` is the moment that its `within` stands for. */
export function jobsOf(query, after) {
  const status = query.status === "any" ? undefined : query.status || "failed";
  const only = ofFailed(query) ? { error_contains: query.error, fingerprint: query.fingerprint, retryable: query.retryable } : {};
  return pathOf("jobs", { status, type: query.type, created_after: after, ...only, limit: LIMIT });
}

/** How many jobs have each status. */
export const countsOfJobs = (query) => pathOf("jobs/stats", { type: query.type });

/** The types that jobs have. */
export const TYPES = "jobs/types";

const FIRST = {
  "": () => Object.values(OVERVIEW),
  jobs: (query) => [jobsOf(query, since(query.within))],
};

/** What the page of a path of the address bar reads first, as far as that is known without its code. */
export const readsOf = ([name = "", ...more], query) => (more.length === 0 && Object.hasOwn(FIRST, name) ? FIRST[name](query) : []);
