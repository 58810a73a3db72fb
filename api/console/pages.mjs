/** Lists that are read page by page. Rows that are there change in place; new ones wait behind a button. */
import { call } from "./api.mjs";
import { html, useLayoutEffect, useMemo, useState } from "./ui.mjs";
import { number } from "./text.mjs";
import { Refusal } from "./parts.mjs";
import { useQuery } from "./query.mjs";

const EVERY_S = 15;

const keyOf = (row) => row.id;

/**
 * A list's rows so far, newest first.
 * @returns {{rows: any[], newer: number, showNewer: () => void, more: boolean, readMore: () => Promise<void>,
 *   busy: boolean, problem: any, reading: import("./query.mjs").Reading}}
 */
export function usePages(path) {
  const reading = useQuery(path, EVERY_S);
  const [list, setList] = useState({ path, rows: null, cursor: null });
  const [state, setState] = useState({ path, busy: false, problem: null });
  const current = list.path === path ? list : { path, rows: null, cursor: null };
  const first = reading.body;
  const begin = () => setList({ path, rows: first.data, cursor: first.next_cursor });
  const known = useMemo(() => new Set((current.rows ?? []).map(keyOf)), [current.rows]);
  const newer = first && current.rows ? first.data.filter((row) => !known.has(keyOf(row))).length : 0;

  useLayoutEffect(() => {
    if (first === null) return;
    if (current.rows === null || current.rows.length === 0) {
      begin();
      return;
    }
    // What is shown stays where it is, and shows how it stands now.
    const fresh = new Map(first.data.map((row) => [keyOf(row), row]));
    setList({ ...current, rows: current.rows.map((row) => fresh.get(keyOf(row)) ?? row) });
  }, [first]);

  async function readMore() {
    const { cursor } = current;
    setState({ path, busy: true, problem: null });
    try {
      const { body } = await call("GET", `${path}${path.includes("?") ? "&" : "?"}cursor=${encodeURIComponent(cursor)}`);
      const added = body.data.filter((row) => !known.has(keyOf(row)));
      // Meanwhile another list may have been chosen, or this one begun anew.
      setList((now) => (now.path === path && now.cursor === cursor ? { path, rows: [...now.rows, ...added], cursor: body.next_cursor } : now));
      setState({ path, busy: false, problem: null });
    } catch (problem) {
      setState({ path, busy: false, problem });
    }
  }
  const { busy, problem } = state.path === path ? state : { busy: false, problem: null };
  return { busy, problem, rows: current.rows ?? [], newer, showNewer: begin, more: current.cursor !== null, readMore, reading };
}

/** The button above a list for rows that came since. */
export function Newer({ pages }) {
  if (pages.newer === 0) return null;
  const all = pages.newer === pages.reading.body.data.length;
  return html`<p class="newer" aria-live="polite"><button type="button" onClick=${pages.showNewer}>${number(pages.newer, all)} newer</button></p>`;
}

/** The button below a list for older rows. */
export function More({ pages }) {
  return html`
    ${pages.problem && html`<${Refusal} problem=${pages.problem} retry=${pages.readMore} />`}
    ${pages.more && html`<p class="more"><button type="button" disabled=${pages.busy} onClick=${pages.readMore}>${pages.busy ? "Reading…" : "Older"}</button></p>`}`;
}
