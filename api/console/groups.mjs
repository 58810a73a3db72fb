/** Failed jobs in groups of one type and one error: the table of the overview and of the failures' page. */
import { href } from "./router.mjs";
import { Empty, MovedOn, Time } from "./parts.mjs";
import { html, useRef } from "./ui.mjs";
import { many, number, shown } from "./text.mjs";
import { mayBulk, mayExtend } from "./session.mjs";
import { openBulk } from "./store.mjs";

/** The filter that chooses a group. */
const filterOf = (group) => ({ type: group.type, fingerprint: group.fingerprint });

/** The groups in the order in which they stand, new ones below, and those that are gone as `left`. */
function inPlace(before, groups) {
  const fresh = new Map(groups.map((group) => [group.fingerprint, group]));
  const standing = new Set(before.map((group) => group.fingerprint));
  return [...before.map((group) => fresh.get(group.fingerprint) ?? { ...group, left: true }), ...groups.filter((group) => !standing.has(group.fingerprint))];
}

const IN_USE_MS = 30_000;
let usedAt = 0;
for (const event of ["pointermove", "pointerdown", "keydown"]) document.addEventListener(event, () => { usedAt = Date.now(); }, { passive: true });

const isInTable = () => Date.now() - usedAt < IN_USE_MS && document.querySelector("table.groups:is(:hover, :focus-within)") !== null;

/** The groups that were read from a path; while their table is in use, by pointer or keys, none of them moves. */
export function useStill(path, groups) {
  const shown = useRef({ path, groups: [] });
  const isHeld = shown.current.path === path && isInTable();
  shown.current = { path, groups: isHeld ? inPlace(shown.current.groups, groups) : groups };
  return shown.current.groups;
}

/** What the group's bulk dialog is opened with. Where nothing can go back without extra attempts, one is chosen already. */
const retryGroup = (group, changed, extra = 0) =>
  openBulk({
    extra,
    title: `Retry ${shown(group.type)}`,
    about: shown(group.error),
    body: { filter: filterOf(group) },
    list: href("jobs", { status: "failed", ...filterOf(group) }),
    done: changed,
  });

/** What becomes of a group's jobs, where not all of them can go back. */
function parted(group) {
  const rest = [
    group.exhausted > 0 && `${number(group.exhausted)} used up`,
    group.queued > 0 && `${number(group.queued)} queued`,
  ].filter(Boolean);
  return rest.length > 0 && [`${number(group.retryable)} can go back`, ...rest].join(" · ");
}

/** The count, above a bar as long as its share of the largest group's: what matters most is seen before it is read. */
const Amount = ({ jobs, most }) => html`${number(jobs)}
  <svg class="share amount" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true"><rect class="failed" width=${Math.min(100, (100 * jobs) / most)} height="4" /></svg>`;

/** @param {{groups: any[], most: number, empty?: string, detailed?: boolean, changed: () => void}} props `most`: jobs of the largest of all groups */
export function Groups({ groups, most, empty = "Nothing has failed.", detailed = false, changed }) {
  if (groups.length === 0) return html`<${Empty}>${empty}</${Empty}>`;
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
      ${groups.map((group) => html`<tr key=${group.fingerprint} data-row=${group.fingerprint} class=${group.left ? "left" : ""}>
        <td class="n strong"><${Amount} jobs=${group.jobs} most=${most} /></td>
        <td class="what">
          <a href=${href("jobs", { status: "failed", ...filterOf(group) })}><span class="clamp">${shown(group.type) || "(no type)"}</span></a>
          <code class="clamp" title=${shown(group.error)}>${shown(group.error) || "(no error text)"}</code>
          ${detailed && parted(group) && html`<span class="muted">${parted(group)}</span>`}
          <span class="narrow muted">since <${Time} at=${group.first_at} /> · last <${Time} at=${group.last_at} /></span>
        </td>
        <td class="wide"><${Time} at=${group.first_at} /></td>
        <td class="wide"><${Time} at=${group.last_at} /></td>
        ${allowed && html`<td class="act">
          ${group.left ? html`<${MovedOn} />` : group.retryable > 0
            ? html`<button type="button" aria-label=${`Retry ${many(group.retryable, "job")} of ${shown(group.type)}`} onClick=${() => retryGroup(group, changed)}>Retry ${number(group.retryable)}…</button>`
            : group.exhausted > 0
              ? html`<button type="button" aria-label=${`Needs extra attempts: ${many(group.exhausted, "job")} of ${shown(group.type)}`} onClick=${() => retryGroup(group, changed, mayExtend() ? 1 : 0)}>Needs extra attempts…</button>`
              : html`<span class="muted">queued</span>`}
        </td>`}
      </tr>`)}
    </tbody>
  </table>`;
}
