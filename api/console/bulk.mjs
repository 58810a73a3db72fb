/** The bulk dialog: preview, reason, go, live progress, and the list of those that were rejected. */
import { BatchProgress, Rejected } from "./batch_parts.mjs";
import { announcement, openedBulk } from "./store.mjs";
import { call, newKey } from "./api.mjs";
import { href } from "./router.mjs";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./ui.mjs";
import { blockWords, many, number } from "./text.mjs";
import { BulkForm, Forecast } from "./bulk_form.mjs";
import { JobsOfBatch } from "./jobs_now.mjs";
import { Refusal } from "./parts.mjs";
import { useWatched } from "./query.mjs";

const MOST = 10_000;

/** Which jobs are asked about, or for. A filter needs a reason even to ask, and a bound. */
const chosen = (what, most) => (what.body.ids ? { ids: what.body.ids } : { filter: what.body.filter, max: most, reason: "preview" });

/** How they are to go back. */
function shapeOf(form) {
  return {
    ...(form.reason.trim() && { reason: form.reason.trim() }),
    ...(form.spread > 0 && { spread_seconds: form.spread }),
    ...(form.delay > 0 && { delay_seconds: form.delay }),
    ...(form.extra > 0 && { extra_attempts: form.extra }),
  };
}

/** What is sent: the first few of those that can go back, or all, that is what was shown and some for what fails meanwhile. */
function bodyOf(what, form, { matched, sample }) {
  const jobs = form.first > 0 ? { ids: sample.slice(0, form.first) } : chosen(what, Math.min(MOST, Math.ceil(matched * 1.1) + 20));
  return { ...jobs, ...shapeOf(form) };
}

function usePreview(what, form) {
  const [state, setState] = useState({ forecast: null, problem: null });
  const [round, setRound] = useState(0);
  useEffect(() => {
    const stop = new AbortController();
    setState((before) => ({ ...before, problem: null, stale: true }));
    const ask = () =>
      call("POST", "jobs/retry?dry_run=true", { body: { ...chosen(what, MOST), ...shapeOf({ ...form, reason: "" }) }, signal: stop.signal }).then(
        ({ body }) => setState({ forecast: body.data, problem: null }),
        (problem) => stop.signal.aborted || setState({ forecast: null, problem }),
      );
    const timer = setTimeout(ask, round === 0 && form.extra === 0 ? 0 : 600); // typing asks once, not for every key
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [what, form.extra, round]);
  return { ...state, again: () => setRound((n) => n + 1) };
}

/** Jobs that were left out when the retries were accepted, by reason. */
function LeftOut({ skipped }) {
  const counts = new Map();
  for (const { code } of skipped) counts.set(code, (counts.get(code) ?? 0) + 1);
  return html`<div class="muted"><p>${many(skipped.length, "job")} could not be asked for, and nothing was done to them:</p>
    <ul>${[...counts].map(([code, count]) => html`<li key=${code}>${number(count)}: ${blockWords(code)}</li>`)}</ul></div>`;
}

function Progress({ accepted, rest, close }) {
  const reading = useWatched(`retry-batches/${accepted.batch_id}`);
  const batch = reading.body?.data;
  useEffect(() => {
    if (batch?.done) announcement.set(`Done: ${batch.applied} went back, ${batch.rejected} were rejected.`);
  }, [batch?.done]);
  return html`
    ${reading.problem && html`<${Refusal} problem=${reading.problem} retry=${reading.reload} />`}
    ${batch ? html`<${BatchProgress} batch=${batch} /><${JobsOfBatch} batch=${batch} />` : !reading.problem && html`<p class="loading">Reading the batch…</p>`}
    ${accepted.skipped.length > 0 && html`<${LeftOut} skipped=${accepted.skipped} />`}
    ${batch?.rejected > 0 && html`<${Rejected} key=${batch.done} batchId=${batch.id} count=${batch.rejected} />`}
    <p class="actions">
      <a href=${href(`batches/${accepted.batch_id}`)} onClick=${close}>the batch's own page</a>
      ${rest && html`<button type="button" onClick=${rest}>Go on…</button>`}
      <button type="button" onClick=${close}>Close</button>
    </p>`;
}

function Dialog({ what, close, onAccepted }) {
  const [form, setForm] = useState({ reason: "", first: 0, spread: 0, delay: 0, extra: what.extra ?? 0 });
  const [sent, setSent] = useState({ busy: false, problem: null, accepted: null });
  const key = useRef({ text: "", key: "" });
  const preview = usePreview(what, form);
  const first = preview.forecast?.retryable > form.first ? form.first : 0; // fewer may be left than were to be tried
  const asked = sent.accepted !== null;
  const { filter } = what.body; // one for an error looks at the newest jobs alone, and so matches no more than may go back
  const tooMany = preview.forecast?.truncated && filter !== undefined && !filter.fingerprint && !filter.error_contains;
  useLayoutEffect(() => {
    if (!asked) document.querySelector("dialog textarea")?.focus(); // when it goes on after a trial
  }, [asked]);
  async function act() {
    const body = bodyOf(what, { ...form, first }, preview.forecast);
    const text = JSON.stringify(body);
    if (key.current.text !== text) key.current = { text, key: newKey() };
    setSent({ busy: true, problem: null, accepted: null });
    try {
      const headers = { "Idempotency-Key": key.current.key };
      const answer = await call("POST", "jobs/retry?dry_run=false", { body, headers });
      onAccepted();
      setSent({ busy: false, problem: null, accepted: answer.body.data });
      announcement.set(`${many(answer.body.data.accepted, "retry").replace("retrys", "retries")} accepted.`);
    } catch (problem) {
      setSent({ busy: false, problem, accepted: null });
      if (problem.code === "too-many-matches") preview.again();
    }
  }
  function goOn() {
    key.current = { text: "", key: "" }; // the same jobs may be asked for again, once they have failed again
    setForm({ ...form, first: 0 });
    setSent({ busy: false, problem: null, accepted: null });
    preview.again();
  }
  if (asked) return html`<${Progress} accepted=${sent.accepted} rest=${first > 0 && goOn} close=${close} />`;
  return html`
    ${preview.problem
      ? html`<${Refusal} problem=${preview.problem} retry=${preview.again} />`
      : html`<${Forecast} forecast=${preview.forecast} stale=${preview.stale} tooMany=${tooMany} list=${what.list} close=${close} />`}
    <${BulkForm} form=${{ ...form, first }} put=${(changes) => setForm({ ...form, ...changes })} forecast=${preview.forecast}
      stale=${preview.stale} tooMany=${tooMany} busy=${sent.busy} needsReason=${!what.body.ids} act=${act} close=${close} />
    ${sent.problem && html`<${Refusal} problem=${sent.problem} />`}`;
}

/** The dialog. @param {{what: any}} props what it is open for (store.mjs) */
export function BulkDialog({ what }) {
  const element = useRef(null);
  const returnTo = useRef(null);
  const accepted = useRef(false);
  useLayoutEffect(() => {
    returnTo.current = document.activeElement;
    element.current.showModal();
    element.current.querySelector("textarea")?.focus();
  }, [what]);
  function close() {
    element.current.close(); // what lies below it can have the focus again
    if (returnTo.current?.isConnected) returnTo.current.focus();
    openedBulk.set(null);
    if (accepted.current) what.done?.();
  }
  return html`<dialog ref=${element} class="sheet" aria-labelledby="bulk-title" onCancel=${(event) => { event.preventDefault(); close(); }}>
    <header><h2 id="bulk-title">${what.title}</h2><button type="button" class="small" aria-label="Close" onClick=${close}>×</button></header>
    ${what.about && html`<code class="clamp">${what.about}</code>`}
    <${Dialog} key=${what} what=${what} close=${close} onAccepted=${() => { accepted.current = true; }} />
  </dialog>`;
}
