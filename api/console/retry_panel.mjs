/** The panel that retries one job, and says before the click why a retry would be refused. */
import { announcement } from "./store.mjs";
import { call, newKey } from "./api.mjs";
import { html, useRef, useState } from "./ui.mjs";
import { refusalOf, session } from "./session.mjs";
import { Refusal, Time } from "./parts.mjs";
import { Shape } from "./bulk_form.mjs";
import { shown } from "./text.mjs";

function whyNot(job, extra) {
  if (job.retry_blocked_by === "not_failed") return `Only a failed job can be retried. This one is ${shown(job.status)}.`;
  if (job.retry_blocked_by === "attempts_exhausted" && extra === 0) {
    return `All ${job.max_attempts} attempts are used up. Give it extra attempts below, and it can go back.`;
  }
  return null;
}

function Queued({ job, changed }) {
  const [problem, setProblem] = useState(null);
  async function cancel() {
    try {
      await call("DELETE", `retries/${job.pending_retry.id}`);
      setProblem(null);
    } catch (refused) {
      setProblem(refused);
    }
    changed();
  }
  return html`<p>A retry is queued since <${Time} at=${job.pending_retry.requested_at} />. A second one would be the same one.</p>
    ${refusalOf(session.get().me, "jobs:retry") === null && html`<p class="actions"><button type="button" onClick=${cancel}>Take it back</button></p>`}
    ${problem && html`<${Refusal} problem=${problem} />`}`;
}

/** @param {{job: any, etag: string | null, changed: () => void}} props */
export function RetryPanel({ job, etag, changed }) {
  const [form, setForm] = useState({ reason: "", delay: 0, extra: 0 });
  const [state, setState] = useState({ busy: false, problem: null });
  const key = useRef({ text: "", key: "" });
  const refusal = refusalOf(session.get().me, "jobs:retry");
  if (job.pending_retry) return html`<${Queued} job=${job} changed=${changed} />`;
  if (refusal !== null) return html`<p class="muted">${refusal}</p>`;
  const blocked = whyNot(job, form.extra);
  if (job.retry_blocked_by === "not_failed") return html`<p class="muted">${blocked}</p>`;
  async function act(event) {
    event.preventDefault();
    if (blocked !== null || state.busy) return;
    const body = {
      ...(form.reason.trim() && { reason: form.reason.trim() }),
      ...(form.delay > 0 && { delay_seconds: form.delay }),
      ...(form.extra > 0 && { extra_attempts: form.extra }),
    };
    const text = JSON.stringify([job.id, etag, body]);
    if (key.current.text !== text) key.current = { text, key: newKey() };
    setState({ busy: true, problem: null });
    try {
      const headers = { "Idempotency-Key": key.current.key, ...(etag && { "If-Match": etag }) };
      await call("POST", `jobs/${encodeURIComponent(job.id)}/retry`, { body, headers });
      setState({ busy: false, problem: null });
      setForm({ reason: "", delay: 0, extra: 0 });
      announcement.set("The retry is accepted.");
    } catch (problem) {
      setState({ busy: false, problem });
    }
    changed();
  }
  return html`<form onSubmit=${act}>
    ${blocked !== null && html`<p class="note">${blocked}</p>`}
    <label class="reason">reason (optional)
      <textarea rows="2" maxlength="500" value=${form.reason} placeholder="why it may go back now" onInput=${(event) => setForm({ ...form, reason: event.target.value })}></textarea>
    </label>
    <${Shape} form=${form} put=${(changes) => setForm({ ...form, ...changes })} spread=${false} />
    <p class="actions"><button type="submit" class="act" disabled=${blocked !== null || state.busy}>${state.busy ? "Asking…" : "Retry this job"}</button></p>
    ${state.problem && html`<${Refusal} problem=${state.problem} />`}
  </form>`;
}
