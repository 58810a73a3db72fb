/** Sign-in: a token is pasted, and its claims are shown before it is used. */
import { claimsOf, keepToken, session } from "./session.mjs";
import { html, useLayoutEffect, useRef, useState, useStore } from "./ui.mjs";
import { absolute, shown } from "./text.mjs";
import { now, signIn } from "./api.mjs";
import { Refusal } from "./parts.mjs";
import { start } from "./start.mjs";

function claimText(name, value) {
  if (["exp", "iat", "nbf"].includes(name) && typeof value === "number" && value < 253_402_300_799) {
    return `${absolute(new Date(value * 1_000).toISOString())}${name === "exp" && value * 1_000 < now() ? ": it has expired" : ""}`;
  }
  return shown(typeof value === "string" ? value : JSON.stringify(value));
}

/** The claims inside a token. */
export function Claims({ token }) {
  const claims = claimsOf(token);
  if (claims === null) return html`<p class="note">This is no token: a token has three parts with dots between them.</p>`;
  return html`<dl class="facts claims">${Object.entries(claims).slice(0, 20).map(([name, value]) => html`<dt key=${name}>${shown(name)}</dt><dd>${claimText(name, value)}</dd>`)}</dl>`;
}

/** The form. `expired`: what is on the page stays, and goes on with the new token. */
function Form({ expired }) {
  const { refused } = useStore(session);
  const [token, setToken] = useState("");
  const [keep, setKeep] = useState(false);
  const [state, setState] = useState({ busy: false, problem: null });
  const field = useRef(null);
  useLayoutEffect(() => field.current.focus(), []);
  const given = token.trim();
  async function use(event) {
    event.preventDefault();
    setState({ busy: true, problem: null });
    try {
      await signIn(given);
      if (keep) keepToken(given);
    } catch (problem) {
      setState({ busy: false, problem });
    }
  }
  return html`<form onSubmit=${use}>
    <p>${expired ? "Your token has expired, or is about to. Give a new one, and all goes on where it stood." : "Paste a token of your project."}</p>
    <label class="reason">token
      <textarea ref=${field} rows="4" spellcheck=${false} autocomplete="off" autocapitalize="off" value=${token} onInput=${(event) => setToken(event.target.value)}></textarea>
    </label>
    ${given !== "" && html`<${Claims} token=${given} />`}
    <label class="tick"><input type="checkbox" checked=${keep} onClick=${(event) => setKeep(event.target.checked)} /> keep it for this tab, also when the page is loaded again</label>
    <p class="actions"><button type="submit" class="act" disabled=${claimsOf(given) === null || state.busy}>${state.busy ? "Asking…" : "Use this token"}</button></p>
    ${(state.problem ?? (!expired && refused?.code !== "authentication-required" && refused)) && html`<${Refusal} problem=${state.problem ?? refused} retry=${!state.problem && refused?.passing ? start : undefined} />`}
    ${!expired && html`<p class="muted">An operator makes one with <code class="words">redrive token --project P</code>; <code>redrive up</code> prints a link that is signed in. The token stays in this page and goes to this API alone.</p>`}
  </form>`;
}

/** The whole page, before sign-in. */
export const SignIn = () => html`<main class="signin"><h1 tabindex="-1">Redrive</h1><div class="card pad"><${Form} expired=${false} /></div></main>`;

/** Over the page, when the token is over. */
export function SignInAgain() {
  const element = useRef(null);
  useLayoutEffect(() => {
    const dialog = element.current;
    const keep = (event) => event.key === "Escape" && event.preventDefault(); // a second one would reach what lies below
    document.addEventListener("keydown", keep, true);
    dialog.showModal();
    return () => {
      document.removeEventListener("keydown", keep, true);
      dialog.close(); // the focus goes back to where it was
    };
  }, []);
  const reopen = () => element.current?.isConnected && element.current.showModal(); // where there is a key or gesture for back
  return html`<dialog ref=${element} class="sheet" aria-labelledby="again" onCancel=${(event) => event.preventDefault()} onClose=${reopen}>
    <header><h2 id="again">Sign in again</h2></header>
    <${Form} expired=${true} />
  </dialog>`;
}
