/** The console: signs in, follows the address bar, and shows the page that it names. */
import { announcement, applyTheme, openedBulk } from "./store.mjs";
import { BULK_DIALOG, readAhead, SIGN_IN, SIGN_IN_AGAIN, viewOf } from "./views.mjs";
import { followAddress, go, route } from "./router.mjs";
import { followKeys } from "./shortcuts.mjs";
import { html, render, useEffect, useStore } from "./ui.mjs";
import { later } from "./later.mjs";
import { now } from "./api.mjs";
import { Empty, Title } from "./parts.mjs";
import { session } from "./session.mjs";
import { shown } from "./text.mjs";
import { start } from "./start.mjs";

const EARLY_MS = 30_000;
const LONGEST_TIMER_MS = 2_147_483_647;
const READ_AHEAD_AFTER_MS = 1_000;

const LINKS = [["", "Overview"], ["failures", "Failures"], ["jobs", "Jobs"], ["retries", "Retries"], ["batches", "Batches"], ["dead", "Dead"]];

function Page({ path, query }) {
  const view = viewOf(path);
  const [, id] = path;
  return view === null ? html`<${Nowhere} />` : html`<${later(view)} key=${id} id=${id} query=${query} />`;
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

/** Read the code of the other pages once the first is there. */
function useReadAhead(signedIn) {
  useEffect(() => {
    if (!signedIn) return undefined;
    const timer = setTimeout(readAhead, READ_AHEAD_AFTER_MS);
    document.addEventListener("visibilitychange", readAhead); // a hidden tab asks for nothing
    return () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", readAhead);
    };
  }, [signedIn]);
}

function App() {
  const { phase, me } = useStore(session);
  const { path, query } = useStore(route);
  const said = useStore(announcement);
  const bulk = useStore(openedBulk);
  useExpiry(phase === "in" ? me : null);
  useReadAhead(me !== null);
  useEffect(() => {
    const page = LINKS.find(([name]) => name === (path[0] ?? ""))?.[1] ?? "You";
    document.title = me ? `${page} · ${me.project_id} · Redrive` : "Redrive";
  }, [path, me]);
  if (phase === "starting") return html`<p class="boot">Loading the console…</p>`;
  if (me === null) return html`<${later(SIGN_IN)} />`;
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.querySelector("main h1")?.focus(); }}>To the page</a>
    <${Head} me=${me} path=${path} />
    ${me.read_only && html`<p class="banner">This deployment is read-only: it shows jobs and changes none.</p>`}
    <main id="main"><${Page} key=${me.project_id} path=${path} query=${query} /></main>
    ${bulk && html`<${later(BULK_DIALOG)} what=${bulk} close=${() => openedBulk.set(null)} />`}
    <p class="hidden" role="status">${said}</p>
    ${phase === "expired" && html`<${later(SIGN_IN_AGAIN)} />`}`;
}

applyTheme();
followAddress(start);
followKeys();
const root = document.getElementById("app");
root.replaceChildren(); // Preact would leave the page's first words where they are
render(html`<${App} />`, root);
