/** Reading for as long as a component is on the page, and never while the tab is hidden. */
import { askedEarly, call } from "./api.mjs";
import { session } from "./session.mjs";
import { useLayoutEffect, useRef, useState, useMemo } from "./ui.mjs";

const LEAST_GAP_MS = 1_500;
const WAIT_S = 25;
const AFTER_PROBLEM_S = 10;

/**
 * @typedef {object} Reading
 * @property {any} body the last good answer, null before the first
 * @property {string} text the same as it came
 * @property {string | null} etag
 * @property {import("./problems.mjs").Problem | null} problem of the last try
 * @property {number | null} at when the last good answer came, ms of this clock
 * @property {boolean} loading before the first answer to this path
 * @property {() => void} reload
 */

const NOTHING = { body: null, text: "", etag: null, problem: null, at: null, loading: true };

/** Run `step(signal)` again and again while the tab is visible; it returns how long to wait, in ms, or null to end. */
function useWhileVisible(step, dependencies) {
  const wake = useRef(() => {});
  useLayoutEffect(() => {
    let ended = false;
    let timer = 0;
    let aborter = new AbortController();
    let running = false;
    let dueAt = 0;
    async function run() {
      if (ended || running || document.visibilityState === "hidden") return;
      running = true;
      const own = (aborter = new AbortController());
      const pauseMs = await step(own.signal);
      running = false;
      if (ended) return;
      dueAt = pauseMs === null ? Infinity : Date.now() + pauseMs;
      plan();
    }
    function plan() {
      clearTimeout(timer);
      if (!ended && dueAt !== Infinity && document.visibilityState !== "hidden") timer = setTimeout(run, Math.max(0, dueAt - Date.now()));
    }
    function onVisibility() {
      if (document.visibilityState === "hidden") {
        clearTimeout(timer);
        aborter.abort();
      } else plan();
    }
    wake.current = () => {
      dueAt = 0;
      if (running) aborter.abort();
      else plan();
    };
    document.addEventListener("visibilitychange", onVisibility);
    const forget = session.subscribe(() => session.get().phase === "in" && wake.current());
    run();
    return () => {
      ended = true;
      clearTimeout(timer);
      aborter.abort();
      forget();
      document.removeEventListener("visibilitychange", onVisibility);
    };
  }, dependencies);
  return () => wake.current();
}

const pauseAfter = (problem) => (problem.passing ? Math.max(problem.retryAfterS ?? AFTER_PROBLEM_S, 2) * 1_000 : null);

function useReading(path, once) {
  const [state, setState] = useState({ path, ...NOTHING });
  const current = useRef(state);
  current.current = state.path === path ? state : { path, ...NOTHING };
  const reload = useWhileVisible(async (signal) => {
    const put = (changes) => {
      if (signal.aborted) return;
      current.current = { ...current.current, ...changes, loading: false };
      setState(current.current);
    };
    if (path === null) return null;
    try {
      return await once(signal, put, current.current);
    } catch (error) {
      if (signal.aborted) return 0;
      if (error?.status === undefined) throw error;
      put({ problem: error });
      return pauseAfter(error);
    }
  }, [path]);
  return useMemo(() => ({ ...current.current, reload }), [current.current]);
}

/**
 * Read a path now, and again every `everyS` seconds (null: once).
 * @returns {Reading}
 */
export function useQuery(path, everyS = null) {
  return useReading(path, async (signal, put) => {
    const early = await askedEarly(path);
    if (signal.aborted) return 0; // the tab was hidden meanwhile
    const { body, text, headers } = early ?? (await call("GET", path, { signal }));
    put({ body, text, etag: headers.get("ETag"), problem: null, at: Date.now() });
    return everyS === null ? null : everyS * 1_000;
  });
}

/**
 * Read what has a tag, and be told of each change: the API holds the answer until there is one.
 * @returns {Reading}
 */
export function useWatched(path) {
  return useReading(path, async (signal, put, before) => {
    const headers = before.etag === null ? {} : { "If-None-Match": before.etag, Prefer: `wait=${WAIT_S}` };
    const answer = await call("GET", path, { signal, headers, timeoutMs: (WAIT_S + 10) * 1_000 });
    if (answer.status === 304) put({ problem: null, at: Date.now() });
    else put({ body: answer.body, text: answer.text, etag: answer.headers.get("ETag"), problem: null, at: Date.now() });
    if (before.etag !== null && !answer.headers.has("Preference-Applied")) return AFTER_PROBLEM_S * 1_000;
    return before.etag === null ? 0 : LEAST_GAP_MS;
  });
}
