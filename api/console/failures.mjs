/** `#/failures`: every group of failed jobs. */
import { bulkRefusal } from "./bulk.mjs";
import { Groups } from "./groups.mjs";
import { go, href } from "./router.mjs";
import { html, useMemo } from "./ui.mjs";
import { AsOf, Standing, Title } from "./parts.mjs";
import { number } from "./text.mjs";
import { pathOf } from "./api.mjs";
import { since, TypeFilter } from "./filters.mjs";
import { useQuery } from "./query.mjs";

const EVERY_S = 15;

/** The page. @param {{query: Record<string, string>}} props */
export function Failures({ query }) {
  const after = useMemo(() => since(query.within), [query.within]);
  const reading = useQuery(pathOf("failures", { type: query.type, created_after: after }), EVERY_S);
  const put = (changes) => go(href("failures", { ...query, ...changes }), { replace: true });
  const all = reading.body;
  return html`
    <${Title} text="Failures"><${AsOf} reading=${reading} at=${all?.as_of} /></${Title}>
    <div class="filters">
      <${TypeFilter} value=${query.type} put=${(type) => put({ type })} />
      <label>created
        <select value=${query.within ?? ""} onChange=${(event) => put({ within: event.target.value })}>
          <option value="">at any time</option><option value="1">in the last hour</option>
          <option value="6">in the last 6 hours</option><option value="24">in the last 24 hours</option><option value="168">in the last 7 days</option>
        </select>
      </label>
    </div>
    ${(reading.problem || !all) && html`<${Standing} reading=${reading} what="the failures" />`}
    ${all && html`
      <p class="under muted" aria-live="polite">
        ${number(all.sampled)}${all.truncated ? "+" : ""} failed in ${all.data.length} ${all.data.length === 1 ? "group" : "groups"}${all.truncated ? `; these are of the newest ${number(all.sampled)}` : ""}. ${bulkRefusal() ?? ""}
      </p>
      <${Groups} groups=${all.data} detailed=${true} changed=${reading.reload} />`}`;
}
