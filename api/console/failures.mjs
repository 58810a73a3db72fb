/** `#/failures`: every group of failed jobs. */
import { bulkRefusal } from "./session.mjs";
import { Groups, useStill } from "./groups.mjs";
import { go, href } from "./router.mjs";
import { html, useMemo } from "./ui.mjs";
import { AsOf, Standing, Title } from "./parts.mjs";
import { many, number, shown } from "./text.mjs";
import { pathOf } from "./api.mjs";
import { Created, TextFilter, TypeFilter } from "./filters.mjs";
import { since } from "./reads.mjs";
import { useQuery } from "./query.mjs";

const EVERY_S = 15;
const MOST = 100; // groups in an answer

/** Whether a group's type or error has the text in it, in any case. */
const has = (group, text) => `${shown(group.type)}\n${shown(group.error)}`.toLowerCase().includes(text.toLowerCase());

/** Nothing was found, or not among those that the API shows. */
const NoGroup = ({ all, query }) => html`${all.length < MOST ? "No group matches." : `None of the ${MOST} largest groups matches.`}
  ${" "}<a href=${href("jobs", { type: query.type, within: query.within, error: query.find })}>Look into the errors of the jobs</a>`;

/** The page. @param {{query: Record<string, string>}} props */
export function Failures({ query }) {
  const after = useMemo(() => since(query.within), [query.within]);
  const path = pathOf("failures", { type: query.type, created_after: after });
  const reading = useQuery(path, EVERY_S);
  const standing = useStill(path, reading.body?.data ?? []);
  const put = (changes) => go(href("failures", { ...query, ...changes }), { replace: true });
  const all = reading.body;
  const isFound = (group) => has(group, query.find ?? "");
  const groups = standing.filter(isFound);
  const found = all?.data.filter(isFound).length;
  return html`
    <${Title} text="Failures"><${AsOf} reading=${reading} at=${all?.as_of} /></${Title}>
    <div class="filters">
      <${TypeFilter} value=${query.type} put=${(type) => put({ type })} />
      <${Created} value=${query.within} put=${(within) => put({ within })} />
      <${TextFilter} label="find" id="find" value=${query.find} put=${(find) => put({ find })} />
    </div>
    ${(reading.problem || !all) && html`<${Standing} reading=${reading} what="the failures" />`}
    ${all && html`
      <p class="under muted" aria-live="polite">
        ${number(all.sampled)}${all.truncated ? "+" : ""} failed in ${many(all.data.length, "group")}${found < all.data.length ? `, of which ${number(found)} ${found === 1 ? "matches" : "match"}` : ""}${all.truncated ? `; these are of the newest ${number(all.sampled)}` : ""}. ${bulkRefusal() ?? ""}
      </p>
      <${Groups} groups=${groups} most=${all.data[0]?.jobs ?? 1} empty=${all.data.length > 0 ? html`<${NoGroup} all=${all.data} query=${query} />` : undefined} detailed=${true} changed=${reading.reload} />`}`;
}
