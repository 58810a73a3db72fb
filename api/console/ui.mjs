/** What every component is written with: Preact, its hooks, and `html` in place of JSX. */
import { h, render } from "./vendor/preact.mjs";
import { default as htm } from "./vendor/htm.mjs";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.mjs";

export { render, useEffect, useLayoutEffect, useMemo, useRef, useState };

export const html = htm.bind(h);

/** The value of a store (store.mjs); the component is drawn again when it changes. */
export function useStore(store) {
  const [, redraw] = useState(0);
  useLayoutEffect(() => store.subscribe(() => redraw((n) => n + 1)), [store]);
  return store.get();
}
