/** The token: where it comes from, how long it lives, and what it may do. It leaves this page in one header only. */
import { createStore } from "./store.mjs";

const TOKEN_KEY = "redrive.token";

/**
 * @typedef {object} Me What GET /api/me says.
 * @property {string} actor
 * @property {string} project_id
 * @property {string[] | null} scopes
 * @property {string[] | null} jobs
 * @property {string} expires_at
 * @property {boolean} read_only
 * @property {string} version
 */

/**
 * `phase`: "starting", "signed-out", "in", or "expired": what is on the page stays, and a new token is asked for.
 * @type {ReturnType<typeof createStore<{phase: string, token: string | null, me: Me | null, refused: any}>>}
 */
export const session = createStore({ phase: "starting", token: null, me: null, refused: null });

/** Take a token out of the address bar. Returns it, or null. */
export function tokenFromAddress() {
  if (!location.hash.startsWith("#token=")) return null;
  const token = location.hash.slice("#token=".length); // a JWT needs no escapes
  history.replaceState(null, "", `${location.pathname}${location.search}#/`);
  return token;
}

/** The token kept for this tab, or null. */
export function keptToken() {
  try {
    return sessionStorage.getItem(TOKEN_KEY);
  } catch {
    return null;
  }
}

/** Keep the token for this tab, or forget it where it is null. */
export function keepToken(token) {
  try {
    if (token === null) sessionStorage.removeItem(TOKEN_KEY);
    else sessionStorage.setItem(TOKEN_KEY, token);
  } catch {
    // without storage the token is in memory alone
  }
}

/** Forget everything, and ask for a token. */
export function signOut() {
  keepToken(null);
  session.set({ phase: "signed-out", token: null, me: null, refused: null });
}

/** The claims inside a token, unchecked: only to show them before it is sent. Null where it is no JWT. */
export function claimsOf(token) {
  const parts = token.trim().split(".");
  if (parts.length !== 3) return null;
  try {
    const bytes = Uint8Array.from(atob(parts[1].replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    return typeof claims === "object" && claims !== null && !Array.isArray(claims) ? claims : null;
  } catch {
    return null;
  }
}

/** Why the token may not do this, in words; null where it may. `scope` is one of the API's. */
export function refusalOf(me, scope) {
  if (me === null) return "You are not signed in.";
  if (me.read_only && scope !== "jobs:read" && scope !== "jobs:payload") {
    return "This deployment is read-only: it shows jobs and changes none.";
  }
  if (me.jobs !== null && scope !== "jobs:read") return "Your token is narrowed to some jobs and may only read them.";
  const given = me.scopes ?? ["jobs:read", "jobs:payload", "jobs:retry", "jobs:retry:extend"];
  return given.includes(scope) ? null : `Your token lacks the scope ${scope}.`;
}

/** Why there are no bulk buttons, in words; null where there are. */
export const bulkRefusal = () => refusalOf(session.get().me, "jobs:retry:bulk");
export const mayBulk = () => bulkRefusal() === null;
export const mayExtend = () => refusalOf(session.get().me, "jobs:retry:extend") === null;
