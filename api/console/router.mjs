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
    const hash = shown;
    requestAnimationFrame(() => restore(place, hash));
  });
  document.addEventListener("scroll", () => remember(), { passive: true });
  document.addEventListener("focusin", () => remember());
}

function remember() {
  if (shown !== location.hash) return;
  places.set(shown, { y: scrollY, row: document.activeElement?.closest?.("[data-row]")?.getAttribute("data-row") ?? null });
}

const TRY_EVERY_MS = 50;
const TRIES_FOR_PAGE = 200;
const TRIES_FOR_ROW = 20;

/** Scroll to where this view was left, and put the focus there, or on its heading; the page, or its list, may still be on its way. */
function restore(place, hash, tries = 0) {
  if (location.hash !== hash) return; // another view was chosen meanwhile
  const heading = document.querySelector("h1");
  const row = place?.row && document.querySelector(`[data-row="${CSS.escape(place.row)}"] a`);
  if ((!heading && tries < TRIES_FOR_PAGE) || (place?.row && !row && tries < TRIES_FOR_ROW)) {
    setTimeout(() => restore(place, hash, tries + 1), TRY_EVERY_MS);
    return;
  }
  scrollTo(0, place?.y ?? 0);
  (row || heading)?.focus({ preventScroll: true });
}

/** Put the focus on the page's heading, once it is there. */
export const focusPage = () => restore(null, location.hash);

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
