/** Lists that are read page by page. Rows that are there change in place; new ones wait behind a button. */
import { call } from "./api.mjs";
import { focusPage } from "./router.mjs";
import { html, useLayoutEffect, useMemo, useState } from "./ui.mjs";
import { number } from "./text.mjs";
import { Refusal } from "./parts.mjs";
import { useQuery } from "./query.mjs";

const EVERY_S = 15;

const keyOf = (row) => row.id;

const timeOf = (row) => row.created_at ?? row.requested_at;

/** Whether a row stands above another one in its list, as the API sorts it: newest first, of one moment the greatest id. */
function isAbove(one, other) {
  const [at, otherAt] = [timeOf(one), timeOf(other)].map((iso) => iso?.replace("Z", ""));
  if (!at || !otherAt) return false; // a row that cannot be shown has no time
  if (at !== otherAt) return at > otherAt;
  return one.id.length === other.id.length ? one.id > other.id : one.id.length > other.id.length;
}

const lastOf = (rows) => rows.findLast((row) => !row.unreadable) ?? {};

/** The rows that are shown as they are in the first page, read anew. Those that it should have and has not have `left` the list. */
function renewed(rows, { data, next_cursor }) {
  const fresh = new Map(data.map((row) => [keyOf(row), row]));
  const last = lastOf(data);
  return rows.map((row) => fresh.get(keyOf(row)) ?? (next_cursor === null || isAbove(row, last) ? { ...row, left: true } : row));
}

/** How many rows of the first page belong among those that are shown, and are not there. */
function missingIn({ rows, cursor }, { data }) {
  const known = new Set(rows.map(keyOf));
  const last = lastOf(rows);
  return data.filter((row) => !known.has(keyOf(row)) && (cursor === null || isAbove(row, last))).length;
}

/**
 * A list's rows so far, newest first. A row that has `left` no longer belongs to the list; it stays in its place until the
 * list is begun anew. `put` shows what an action here has made of a row, which is its `isOwn` until it is read again.
 * @returns {{rows: any[], newer: number, left: number, begin: () => void, put: (row: any) => void, more: boolean,
 *   readMore: () => Promise<void>, busy: boolean, problem: any, reading: import("./query.mjs").Reading}}
 */
export function usePages(path) {
  const reading = useQuery(path, EVERY_S);
  const [list, setList] = useState({ path, rows: null, cursor: null });
  const [state, setState] = useState({ path, busy: false, problem: null });
  const current = list.path === path ? list : { path, rows: null, cursor: null };
  const rows = current.rows ?? [];
  const first = reading.body;
  const begin = () => first !== null && setList({ path, rows: first.data, cursor: first.next_cursor });
  const put = (row) => setList((now) => ({ ...now, rows: now.rows.map((each) => (keyOf(each) === keyOf(row) ? { ...row, isOwn: true } : each)) }));
  const newer = useMemo(() => (first === null || current.rows === null ? 0 : missingIn(current, first)), [first, current.rows]);

  useLayoutEffect(() => {
    if (first === null) return;
    if (rows.length === 0) begin();
    else setList({ ...current, rows: renewed(rows, first) });
  }, [first]);

  async function readMore() {
    const { cursor } = current;
    setState({ path, busy: true, problem: null });
    try {
      const { body } = await call("GET", `${path}${path.includes("?") ? "&" : "?"}cursor=${encodeURIComponent(cursor)}`);
      const known = new Set(rows.map(keyOf));
      const added = body.data.filter((row) => !known.has(keyOf(row)));
      // Meanwhile another list may have been chosen, or this one begun anew.
      setList((now) => (now.path === path && now.cursor === cursor ? { path, rows: [...now.rows, ...added], cursor: body.next_cursor } : now));
      setState({ path, busy: false, problem: null });
    } catch (problem) {
      setState({ path, busy: false, problem });
    }
  }
  const { busy, problem } = state.path === path ? state : { busy: false, problem: null };
  const left = rows.filter((row) => row.left).length;
  return { busy, problem, rows, newer, left, begin, put, more: current.cursor !== null, readMore, reading };
}

/** The button above a list for rows that came since, and for those that have left. It takes no place of its own. */
export function Newer({ pages: { newer, left, begin, reading } }) {
  const words = [newer > 0 && `${number(newer, newer === reading.body?.data.length)} newer`, left > 0 && `${number(left)} moved on`].filter(Boolean);
  function renew() {
    begin();
    focusPage(); // the button goes
  }
  return html`<p class="newer" aria-live="polite">${words.length > 0 && html`<button type="button" onClick=${renew}>${words.join(", ")}${left > 0 ? ": renew the list" : ""}</button>`}</p>`;
}

/** The button below a list for older rows. */
export function More({ pages }) {
  return html`
    ${pages.problem && html`<${Refusal} problem=${pages.problem} retry=${pages.readMore} />`}
    ${pages.more && html`<p class="more"><button type="button" disabled=${pages.busy} onClick=${pages.readMore}>${pages.busy ? "Reading…" : "Older"}</button></p>`}`;
}
