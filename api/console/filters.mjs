/** Filters of lists: each changes the address, and so the view. */
import { go, href } from "./router.mjs";
import { html, useEffect, useRef, useState } from "./ui.mjs";
import { number, shown } from "./text.mjs";
import { TYPES } from "./reads.mjs";
import { useQuery } from "./query.mjs";

/** Types of the newest jobs, the most frequent first. */
export function TypeFilter({ value = "", put }) {
  const reading = useQuery(TYPES);
  const types = reading.body?.data ?? [];
  const known = value === "" || types.some((each) => each.type === value);
  return html`<label>type
    <select value=${value} onChange=${(event) => put(event.target.value)}>
      <option value="">all</option>
      ${!known && html`<option value=${value}>${shown(value)}</option>`}
      ${types.map((each) => html`<option key=${each.type} value=${each.type}>${shown(each.type).slice(0, 60)} (${number(each.jobs)})</option>`)}
    </select>
  </label>`;
}

/** One choice out of a few. */
export function Choice({ label, value = "", options, put }) {
  return html`<label>${label}
    <select value=${value} onChange=${(event) => put(event.target.value)}>
      ${options.map(([key, words]) => html`<option key=${key} value=${key}>${words}</option>`)}
    </select>
  </label>`;
}

const HOURS = [["", "at any time"], ["1", "in the last hour"], ["6", "in the last 6 hours"], ["24", "in the last 24 hours"], ["168", "in the last 7 days"]];

/** How long ago jobs were created at most; reads.mjs makes a moment of it. */
export const Created = ({ value, put }) => html`<${Choice} label="created" value=${value} options=${HOURS} put=${put} />`;

/** One choice out of a few, all of them in sight. They are links: a click changes this view, a click with a key held opens another. */
export function Tabs({ label, value = "", options, to }) {
  function choose(event) {
    if (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(event.currentTarget.getAttribute("href"), { replace: true });
  }
  return html`<nav class="tabs" aria-label=${label}>
    ${options.map(([key, words]) => html`<a key=${key} href=${to(key)} aria-current=${key === value ? "true" : undefined} onClick=${choose}>${words}</a>`)}
  </nav>`;
}

/** Text that is looked for once typing has paused. */
export function TextFilter({ label, value = "", put, longest = 200, id }) {
  const [text, setText] = useState(value);
  const putNow = useRef(put);
  putNow.current = put; // another filter may have been changed since the typing
  useEffect(() => setText(value), [value]);
  useEffect(() => {
    if (text === value) return undefined;
    const timer = setTimeout(() => putNow.current(text), 500);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<label>${label}
    <input type="search" id=${id} maxlength=${longest} value=${text} onInput=${(event) => setText(event.target.value)} />
  </label>`;
}

/** A field for the id of one job, as a log or a ticket has it; Enter opens the job. */
export function JobById() {
  const [id, setId] = useState("");
  function open(event) {
    event.preventDefault();
    if (id.trim() !== "") go(href(`jobs/${encodeURIComponent(id.trim())}`));
  }
  return html`<form class="by-id" onSubmit=${open}><label>job id
    <input type="search" maxlength="64" spellcheck=${false} autocomplete="off" placeholder="opens with Enter" value=${id} onInput=${(event) => setId(event.target.value)} />
  </label></form>`;
}

/** A filter that is on and has no field of its own, with a button that takes it off. */
export const Chip = ({ children, off }) => html`<span class="chip">${children} <button type="button" class="small" aria-label="Remove this filter" onClick=${off}>×</button></span>`;
