/** One value that several components read, and what a person has chosen for this browser. */

/**
 * @template T
 * @param {T} value
 * @returns {{get: () => T, set: (next: T) => void, subscribe: (listener: () => void) => () => void}}
 */
export function createStore(value) {
  const listeners = new Set();
  return {
    get: () => value,
    set(next) {
      value = next;
      for (const listener of [...listeners]) listener();
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

const CHOICES_KEY = "redrive.choices";
const DEFAULTS = { theme: "auto", zone: "utc", times: "relative", shortcuts: true };

function kept() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(CHOICES_KEY) ?? "{}") };
  } catch {
    return DEFAULTS; // storage is off, or holds something else
  }
}

/** Theme (auto, light, dark), zone (utc, local), times (relative, absolute), shortcuts (true, false). */
export const choices = createStore(kept());

/** Change some choices, for this and later visits. */
export function choose(changes) {
  choices.set({ ...choices.get(), ...changes });
  try {
    localStorage.setItem(CHOICES_KEY, JSON.stringify(choices.get()));
  } catch {
    // without storage a choice holds until the page is closed
  }
  applyTheme();
}

/** Put the chosen theme on the page. */
export function applyTheme() {
  document.documentElement.dataset.theme = choices.get().theme;
}

/** Said to screen readers; set it to a sentence. */
export const announcement = createStore("");

/** What the bulk dialog is open for: `{title, about, body: {ids} | {filter}, list, extra}`; null when it is closed. */
export const openedBulk = createStore(null);

/** Open the bulk dialog for these ids, or this filter. */
export const openBulk = (what) => openedBulk.set(what);
