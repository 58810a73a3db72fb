/** Single keys. They can be turned off (WCAG 2.1.4), and do nothing while text is typed or a dialog is open. */
import { choices } from "./store.mjs";
import { go } from "./router.mjs";

const VIEWS = { o: "#/", f: "#/failures", j: "#/jobs", r: "#/retries", b: "#/batches", d: "#/dead", m: "#/me" };

/** Each with its words, as `?` and `#/me` list them. */
export const KEYS = [
  ["?", "this list"], ["/", "to the search field"], ["g o", "overview"], ["g f", "failures"], ["g j", "jobs"],
  ["g r", "retries"], ["g b", "batches"], ["g d", "dead letters"], ["g m", "you"], ["Esc", "back"],
];

/** Listen for them. */
export function followKeys() {
  let pending = false;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, dialog");
    if (!choices.get().shortcuts || typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) {
      pending = false;
      return;
    }
    if (pending) {
      pending = false;
      if (event.key in VIEWS) {
        event.preventDefault();
        go(VIEWS[event.key]);
      }
    } else if (event.key === "g") pending = true;
    else if (event.key === "?") go("#/me");
    else if (event.key === "/") {
      event.preventDefault();
      document.querySelector("#find")?.focus();
    } else if (event.key === "Escape" && /^#\/(jobs|batches)\/./.test(location.hash)) history.back();
  });
}
