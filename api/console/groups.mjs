/** Failed jobs in groups of one type and one error: the table of the overview and of the failures' page. */
import { href } from "./router.mjs";
import { Empty, Time } from "./parts.mjs";
import { html } from "./ui.mjs";
import { many, number, shown } from "./text.mjs";
import { mayBulk, openBulk } from "./bulk.mjs";

/** The filter that chooses a group. */
const filterOf = (group) => ({ type: group.type, fingerprint: group.fingerprint });

/** What the group's bulk dialog is opened with. */
const retryGroup = (group, changed) =>
  openBulk({
    title: `Retry ${shown(group.type)}`,
    about: shown(group.error),
    body: { filter: filterOf(group) },
    list: href("jobs", { status: "failed", ...filterOf(group) }),
    done: changed,
  });

function parted(group) {
  const rest = [
    group.exhausted > 0 && `${number(group.exhausted)} used up`,
    group.queued > 0 && `${number(group.queued)} queued`,
  ].filter(Boolean);
  return [`${number(group.retryable)} can go back`, ...rest].join(" · ");
}

/** @param {{groups: any[], detailed?: boolean, changed: () => void}} props */
export function Groups({ groups, detailed = false, changed }) {
  if (groups.length === 0) return html`<${Empty}>Nothing has failed.</${Empty}>`;
  const allowed = mayBulk();
  return html`<table class="card groups">
    <thead>
      <tr>
        <th scope="col" class="n">failed</th><th scope="col">type and error</th>
        <th scope="col" class="wide">since</th><th scope="col" class="wide">last</th>
        ${allowed && html`<th scope="col"><span class="hidden">retry</span></th>`}
      </tr>
    </thead>
    <tbody>
      ${groups.map((group) => html`<tr key=${group.fingerprint} data-row=${group.fingerprint}>
        <td class="n strong">${number(group.jobs)}</td>
        <td class="what">
          <a href=${href("jobs", { status: "failed", ...filterOf(group) })}><span class="clamp">${shown(group.type) || "(no type)"}</span></a>
          <code class="clamp" title=${shown(group.error)}>${shown(group.error) || "(no error text)"}</code>
          ${detailed && html`<span class="muted">${parted(group)}</span>`}
          <span class="narrow muted">since <${Time} at=${group.first_at} /> · last <${Time} at=${group.last_at} /></span>
        </td>
        <td class="wide"><${Time} at=${group.first_at} /></td>
        <td class="wide"><${Time} at=${group.last_at} /></td>
        ${allowed && html`<td class="act">
          ${group.retryable > 0
            ? html`<button type="button" aria-label=${`Retry ${many(group.retryable, "job")} of ${shown(group.type)}`} onClick=${() => retryGroup(group, changed)}>Retry ${number(group.retryable)}…</button>`
            : group.exhausted > 0
              ? html`<button type="button" aria-label=${`Needs extra attempts: ${many(group.exhausted, "job")} of ${shown(group.type)}`} onClick=${() => retryGroup(group, changed)}>Needs extra attempts…</button>`
              : html`<span class="muted">queued</span>`}
        </td>`}
      </tr>`)}
    </tbody>
  </table>`;
}
