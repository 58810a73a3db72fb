/** The address bar's hash is the whole view: `#/jobs?status=failed&type=email.send`. */
import { createStore } from "./store.mjs";

/** @typedef {{path: string[], query: Record<string, string>}} Route */

/** @returns {Route} */
function routeOf(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  return {
    path: path.split("/").filter((part) => part !== "").map(safelyDecoded),
    query: Object.fromEntries(new URLSearchParams(query)),
  };
}

function safelyDecoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export const route = createStore(routeOf(location.hash));

/** Where each view was scrolled to, and what had the focus, by its hash: going back returns to the same row. */
const places = new Map();
let shown = location.hash;

/** Follow the address bar. `onToken` is called where a link with a token in it is opened. */
export function followAddress(onToken) {
  history.scrollRestoration = "manual";
  window.addEventListener("hashchange", () => {
    if (location.hash.startsWith("#token=")) onToken();
    shown = location.hash;
    route.set(routeOf(location.hash));
    const place = places.get(shown);
    requestAnimationFrame(() => restore(place));
  });
  document.addEventListener("scroll", () => remember(), { passive: true });
  document.addEventListener("focusin", () => remember());
}

function remember() {
  if (shown !== location.hash) return;
  places.set(shown, { y: scrollY, row: document.activeElement?.closest?.("[data-row]")?.getAttribute("data-row") ?? null });
}

function restore(place, triesLeft = 20) {
  const heading = document.querySelector("h1");
  const row = place?.row && document.querySelector(`[data-row="${CSS.escape(place.row)}"] a`);
  if ((!heading || (place?.row && !row)) && triesLeft > 0) {
    setTimeout(() => restore(place, triesLeft - 1), 50); // the page, or its list, is still being read
    return;
  }
  scrollTo(0, place?.y ?? 0);
  (row || heading)?.focus({ preventScroll: true });
}

/** A link to a view; what is null or empty is left out. */
export function href(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length === 0 ? `#/${path}` : `#/${path}?${new URLSearchParams(given)}`;
}

/** Change the view; `replace` leaves no step to go back to. */
export function go(hash, { replace = false } = {}) {
  if (!replace) {
    location.hash = hash;
    return;
  }
  history.replaceState(null, "", hash);
  shown = hash;
  route.set(routeOf(hash));
}
