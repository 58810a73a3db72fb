/** The console: signs in, follows the address bar, and shows the page that it names. */
import { announcement, applyTheme, useStore } from "./store.mjs";
import { Batch, Batches } from "./batches.mjs";
import { BulkDialog } from "./bulk.mjs";
import { Dead, Retries } from "./retries.mjs";
import { Failures } from "./failures.mjs";
import { followAddress, go, route } from "./router.mjs";
import { followKeys } from "./shortcuts.mjs";
import { html, render, useEffect } from "./ui.mjs";
import { JobPage } from "./job.mjs";
import { Jobs } from "./jobs.mjs";
import { Me } from "./me.mjs";
import { now } from "./api.mjs";
import { Empty, Title } from "./parts.mjs";
import { Overview } from "./overview.mjs";
import { session } from "./session.mjs";
import { shown } from "./text.mjs";
import { SignIn, SignInAgain } from "./signin.mjs";
import { start } from "./start.mjs";

const EARLY_MS = 30_000;
const LONGEST_TIMER_MS = 2_147_483_647;

const LINKS = [["", "Overview"], ["failures", "Failures"], ["jobs", "Jobs"], ["retries", "Retries"], ["batches", "Batches"], ["dead", "Dead"]];

function Page({ path, query }) {
  const [name = "", id] = path;
  if (path.length > 2) return html`<${Nowhere} />`;
  switch (name) {
    case "": return html`<${Overview} />`;
    case "failures": return html`<${Failures} query=${query} />`;
    case "jobs": return id ? html`<${JobPage} key=${id} id=${id} />` : html`<${Jobs} query=${query} />`;
    case "retries": return html`<${Retries} query=${query} />`;
    case "batches": return id ? html`<${Batch} key=${id} id=${id} />` : html`<${Batches} query=${query} />`;
    case "dead": return html`<${Dead} />`;
    case "me": return html`<${Me} />`;
    default: return html`<${Nowhere} />`;
  }
}

const Nowhere = () => html`<${Title} text="Not found" /><${Empty}>The console has no such page. <a href="#/">To the overview</a></${Empty}>`;

function Head({ me, path }) {
  const here = path[0] ?? "";
  useEffect(() => {
    document.querySelector(".top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [here]);
  return html`<header class="top">
    <a class="brand" href="#/">Redrive</a>
    <nav aria-label="Pages">${LINKS.map(([name, words]) => html`<a key=${name} href=${`#/${name}`} aria-current=${here === name ? "page" : undefined}>${words}</a>`)}</nav>
    <a class="me" href="#/me" aria-current=${here === "me" ? "page" : undefined}>${shown(me.project_id)} · ${shown(me.actor)}</a>
  </header>`;
}

/** Ask for a new token shortly before this one expires. */
function useExpiry(me) {
  useEffect(() => {
    if (me === null) return undefined;
    const left = Date.parse(me.expires_at) - now() - EARLY_MS;
    const expire = () => session.set({ ...session.get(), phase: "expired" });
    const timer = left < LONGEST_TIMER_MS ? setTimeout(expire, Math.max(left, 0)) : 0;
    return () => clearTimeout(timer);
  }, [me]);
}

function App() {
  const { phase, me } = useStore(session);
  const { path, query } = useStore(route);
  const said = useStore(announcement);
  useExpiry(phase === "in" ? me : null);
  useEffect(() => {
    const page = LINKS.find(([name]) => name === (path[0] ?? ""))?.[1] ?? "You";
    document.title = me ? `${page} · ${me.project_id} · Redrive` : "Redrive";
  }, [path, me]);
  if (phase === "starting") return html`<p class="boot">Loading the console…</p>`;
  if (me === null) return html`<${SignIn} />`;
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.querySelector("main h1")?.focus(); }}>To the page</a>
    <${Head} me=${me} path=${path} />
    ${me.read_only && html`<p class="banner">This deployment is read-only: it shows jobs and changes none.</p>`}
    <main id="main"><${Page} path=${path} query=${query} /></main>
    <${BulkDialog} />
    <p class="hidden" role="status">${said}</p>
    ${phase === "expired" && html`<${SignInAgain} />`}`;
}

applyTheme();
followAddress(start);
followKeys();
const root = document.getElementById("app");
root.replaceChildren(); // Preact would leave the page's first words where they are
render(html`<${App} />`, root);
