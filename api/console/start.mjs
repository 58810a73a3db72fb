/** Signing in when the console is opened, and asking for what its page shows: the first script, which needs no library. */
import { askEarly, signIn } from "./api.mjs";
import { go, route } from "./router.mjs";
import { keptToken, session, tokenFromAddress } from "./session.mjs";
import { readsOf } from "./reads.mjs";
import { viewOf } from "./views.mjs";

/** The address bar's token, until it is known to be good or not: the API may be away just now. */
let untried = null;

const firstToken = () => untried ?? keptToken();

/** In the order that docs/console.md says: the address bar's token, the tab's, none (a proxy may add one), a pasted one. */
export async function start() {
  const given = tokenFromAddress();
  if (given !== null) {
    untried = given;
    go("#/", { replace: true });
  }
  let refused = null;
  for (const token of new Set([firstToken(), null])) {
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

/** Ask for what the page is going to read, while its code is on its way. */
function askForThePage() {
  if (session.get().phase !== "in" || document.visibilityState === "hidden") return;
  const { path, query } = route.get();
  for (const first of readsOf(path, query)) askEarly(first);
}

const signedIn = start(); // it takes the token out of the address, which names the page only then
viewOf(route.get().path)?.read().catch(() => {}); // the page itself says that it cannot be read, and tries again
signedIn.then(askForThePage);
