/** `#/me`: what the token is good for, and how this browser shows things. */
import { choices, choose } from "./store.mjs";
import { Choice } from "./filters.mjs";
import { Claims } from "./signin.mjs";
import { html, useState, useStore } from "./ui.mjs";
import { keepToken, keptToken, session, signOut } from "./session.mjs";
import { KEYS } from "./shortcuts.mjs";
import { shown } from "./text.mjs";
import { Time, Title } from "./parts.mjs";

const SCOPES = {
  "jobs:read": "see jobs and retries",
  "jobs:payload": "see payloads",
  "jobs:retry": "retry and cancel single jobs",
  "jobs:retry:bulk": "retry many jobs",
  "jobs:retry:extend": "give extra attempts",
  "jobs:admin": "name another project",
};

function Keep({ token }) {
  const [kept, setKept] = useState(keptToken() !== null);
  const change = (event) => {
    setKept(event.target.checked);
    keepToken(event.target.checked ? token : null);
  };
  return html`<label class="tick"><input type="checkbox" checked=${kept} onClick=${change} /> keep the token for this tab, also when the page is loaded again</label>`;
}

function Token({ me, token }) {
  return html`<dl class="facts">
      <dt>you</dt><dd>${shown(me.actor)}</dd>
      <dt>project</dt><dd>${shown(me.project_id)}</dd>
      <dt>good until</dt><dd><${Time} at=${me.expires_at} /></dd>
      <dt>may</dt><dd>${me.scopes === null ? "read and retry single jobs (the token names no scopes)" : html`<ul class="plain">${Object.entries(SCOPES).map(([scope, words]) => html`<li key=${scope} class=${me.scopes.includes(scope) ? "" : "muted"}>${me.scopes.includes(scope) ? "✓" : "✗"} ${words} <code>${scope}</code></li>`)}</ul>`}</dd>
      ${me.jobs !== null && html`<dt>only jobs</dt><dd>${me.jobs.map((id) => html`<code key=${id}>${id}</code> `)}</dd>`}
      ${me.read_only && html`<dt>deployment</dt><dd>read-only</dd>`}
      <dt>Redrive</dt><dd>${me.version}</dd>
    </dl>
    ${token && html`<details><summary>All claims of the token</summary><${Claims} token=${token} /></details><${Keep} token=${token} />`}
    <p class="actions"><button type="button" onClick=${signOut}>Sign out</button></p>`;
}

/** The page. */
export function Me() {
  const { me, token } = useStore(session);
  const chosen = useStore(choices);
  return html`
    <${Title} text="You" />
    <div class="two">
      <section><h2>The token</h2><div class="card pad"><${Token} me=${me} token=${token} /></div></section>
      <div class="side">
        <section><h2>This browser</h2><div class="card pad filters stacked">
          <${Choice} label="theme" value=${chosen.theme} options=${[["auto", "as the system"], ["light", "light"], ["dark", "dark"]]} put=${(theme) => choose({ theme })} />
          <${Choice} label="time zone" value=${chosen.zone} options=${[["utc", "UTC"], ["local", "local"]]} put=${(zone) => choose({ zone })} />
          <${Choice} label="times" value=${chosen.times} options=${[["relative", "relative, such as 4m ago"], ["absolute", "absolute"]]} put=${(times) => choose({ times })} />
        </div></section>
        <section><h2>Shortcuts</h2><div class="card pad">
          <label class="tick"><input type="checkbox" checked=${chosen.shortcuts} onClick=${(event) => choose({ shortcuts: event.target.checked })} /> single keys do something</label>
          <dl class="facts">${KEYS.map(([keys, words]) => html`<dt key=${keys}><kbd>${keys}</kbd></dt><dd>${words}</dd>`)}</dl>
        </div></section>
      </div>
    </div>`;
}
