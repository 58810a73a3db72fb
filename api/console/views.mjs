/** What is read when it is needed: the pages that the address bar can name, the dialogs, the chart. */

/**
 * @typedef {object} View
 * @property {string} name of the component in the module
 * @property {any} module null until it has been read
 * @property {() => Promise<any>} read
 * @property {boolean} inDialog whether it is a dialog; it may be given a `close`
 */

/** @returns {View} */
function view(name, read, { inDialog = false } = {}) {
  const own = { name, inDialog, module: null, read: async () => (own.module = await read()) };
  return own;
}

const LISTS = {
  "": view("Overview", () => import("./overview.mjs")),
  failures: view("Failures", () => import("./failures.mjs")),
  jobs: view("Jobs", () => import("./jobs.mjs")),
  retries: view("Retries", () => import("./retries.mjs")),
  batches: view("Batches", () => import("./batches.mjs")),
  dead: view("Dead", () => import("./retries.mjs")),
  me: view("Me", () => import("./me.mjs")),
};
const OF_ONE = {
  jobs: view("JobPage", () => import("./job.mjs")),
  batches: view("Batch", () => import("./batches.mjs")),
};

export const BULK_DIALOG = view("BulkDialog", () => import("./bulk.mjs"), { inDialog: true });
export const CHART = view("Bars", () => Promise.all([import("./chart.mjs"), import("./vendor/uplot.mjs")]).then(([chart]) => chart));
export const SIGN_IN = view("SignIn", () => import("./signin.mjs"));
export const SIGN_IN_AGAIN = view("SignInAgain", () => import("./signin.mjs"), { inDialog: true });

/**
 * The page of a path of the address bar, null where there is none. It is given the path's `id` and the `query`.
 * @param {string[]} path
 * @returns {View | null}
 */
export function viewOf([name = "", id, ...more]) {
  const views = id ? OF_ONE : LISTS;
  return more.length === 0 && Object.hasOwn(views, name) ? views[name] : null;
}

/** Read all but the chart: it is there then when the API no longer is, and of the same release as the first page. */
export async function readAhead() {
  for (const { read } of [BULK_DIALOG, SIGN_IN_AGAIN, ...Object.values(LISTS), ...Object.values(OF_ONE)]) {
    if (document.visibilityState === "hidden") return;
    await read().catch(() => {}); // it is read again when it is shown, and says then why it cannot be
  }
}
