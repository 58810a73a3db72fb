/** What the address bar can name. The code of each page is read with the page, and that of the others soon after. */
import { later } from "./later.mjs";

const overview = later(() => import("./overview.mjs"), "Overview");
const failures = later(() => import("./failures.mjs"), "Failures");
const jobs = later(() => import("./jobs.mjs"), "Jobs");
const job = later(() => import("./job.mjs"), "JobPage");
const retries = later(() => import("./retries.mjs"), "Retries");
const batches = later(() => import("./batches.mjs"), "Batches");
const batch = later(() => import("./batches.mjs"), "Batch");
const dead = later(() => import("./retries.mjs"), "Dead");
const me = later(() => import("./me.mjs"), "Me");

export const BulkDialog = later(() => import("./bulk.mjs"), "BulkDialog");
export const SignIn = later(() => import("./signin.mjs"), "SignIn");
export const SignInAgain = later(() => import("./signin.mjs"), "SignInAgain");

const LISTS = { "": overview, failures, jobs, retries, batches, dead, me };
const OF_ONE = { jobs: job, batches: batch };

/** The page of a path of the address bar, null where there is none. It is given the path's `id` and the `query`. */
export function viewOf([name = "", id, ...more]) {
  const views = id ? OF_ONE : LISTS;
  return more.length === 0 && Object.hasOwn(views, name) ? views[name] : null;
}

/** Read all that has not been shown yet: it is there when the API no longer is, and of the same release as the rest. */
export async function readAhead() {
  for (const each of [BulkDialog, SignInAgain, ...Object.values(LISTS), ...Object.values(OF_ONE)]) {
    if (document.visibilityState === "hidden") return;
    await each.load().catch(() => {}); // it is read again when it is shown, and says then why it cannot be
  }
}
