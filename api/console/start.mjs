/** Signing in when the console is opened. A script of its own: the API is asked while other modules are still being read. */
import { go, route } from "./router.mjs";
import { keptToken, session, tokenFromAddress } from "./session.mjs";
import { signIn } from "./api.mjs";
import { viewOf } from "./views.mjs";

/** The address bar's token, until it is known to be good or not: the API may be away just now. */
let untried = null;

/** In the order that docs/console.md says: the address bar's token, the tab's, none (a proxy may add one), a pasted one. */
export async function start() {
  const given = tokenFromAddress();
  if (given !== null) {
    untried = given;
    go("#/", { replace: true });
  }
  let refused = null;
  for (const token of new Set([untried ?? keptToken(), null])) {
    try {
      await signIn(token);
      untried = null;
      return;
    } catch (problem) {
      if (token === untried && !problem.passing) untried = null;
      refused ??= problem;
    }
  }
  session.set({ phase: "signed-out", token: null, me: null, refused });
}

start();
viewOf(route.get().path)?.load().catch(() => {}); // the page itself says what went wrong, and tries again
