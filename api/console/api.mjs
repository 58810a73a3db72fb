/** Calls to the API, beside which this page is served: /console/ → /api/, under whatever prefix. */
import { Problem, problemOf } from "./problems.mjs";
import { openedBulk } from "./store.mjs";
import { session } from "./session.mjs";

const API = new URL("../api/", document.baseURI);
const TIMEOUT_MS = 20_000;
const EARLY_FOR_MS = 5_000;

/** How far the server's clock is ahead of this one, in ms. */
let skewMs = 0;

/** The server's time, in ms since 1970. */
export const now = () => Date.now() + skewMs;

function noteClock(response) {
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (Number.isNaN(date)) return;
  const skew = date - Date.now();
  skewMs = Math.abs(skew) > 2_000 ? skew : 0; // the header has whole seconds
}

/** A path below /api/ with its query; what is null, undefined or empty is left out. */
export function pathOf(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length === 0 ? path : `${path}?${new URLSearchParams(given)}`;
}

/**
 * One call. A 304 is an answer, with `data` null.
 * @param {string} method
 * @param {string} path below /api/, without a slash in front
 * @param {{body?: object, headers?: Record<string, string>, signal?: AbortSignal, token?: string | null,
 *   timeoutMs?: number}} [options]
 * @returns {Promise<{status: number, body: any, text: string, headers: Headers}>}
 * @throws {Problem}
 */
export async function call(method, path, options = {}) {
  const token = options.token === undefined ? session.get().token : options.token;
  const headers = { Accept: "application/json", ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (options.body !== undefined) headers["Content-Type"] = "application/json";
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), options.timeoutMs ?? TIMEOUT_MS);
  const stop = () => limit.abort();
  options.signal?.addEventListener("abort", stop);
  try {
    const response = await fetch(new URL(path, API), {
      method,
      headers,
      body: options.body === undefined ? undefined : JSON.stringify(options.body),
      signal: limit.signal,
      cache: "no-store",
      credentials: "same-origin", // a proxy in front may know the browser by its own cookie
      redirect: "error",
    });
    noteClock(response);
    if (!response.ok && response.status !== 304) throw await refused(response, token);
    const text = response.status === 304 ? "" : await response.text();
    return { status: response.status, body: text === "" ? null : JSON.parse(text), text, headers: response.headers };
  } catch (error) {
    if (error instanceof Problem) throw error;
    if (options.signal?.aborted) throw error;
    throw new Problem({ status: 0, code: error instanceof SyntaxError ? "not-ours" : "no-answer" });
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener("abort", stop);
  }
}

async function refused(response, token) {
  const problem = await problemOf(response);
  const current = session.get();
  if (problem.status === 401 && current.phase === "in" && current.token === token) {
    session.set({ ...current, phase: "expired", refused: problem });
  }
  return problem;
}

/** What was asked for before there was a page to show it, by path. */
const early = new Map();
let tooLate = false;

/** Ask for what a page is going to read, unless there is one, which has begun to read. */
export function askEarly(path) {
  if (!tooLate) early.set(path, { token: session.get().token, at: Date.now(), answer: call("GET", path).catch(() => null) });
}

/** The answer, to the first who wants it soon and with the same token. Null where there is none, or no good one. */
export function askedEarly(path) {
  tooLate = true;
  const asked = early.get(path);
  early.delete(path);
  const isGood = asked?.token === session.get().token && Date.now() - asked?.at < EARLY_FOR_MS;
  return isGood ? asked.answer : null;
}

/** A key that makes one POST safe to repeat. `crypto.randomUUID` is not there on plain http. */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Try a token, or none, and sign in with it. Throws Problem. */
export async function signIn(token) {
  const { body } = await call("GET", "me", { token });
  if (session.get().me?.project_id !== body.data.project_id) openedBulk.set(null); // its preview is another project's
  session.set({ phase: "in", token, me: body.data, refused: null });
}
