/** What every component is written with: Preact, its hooks, and `html` in place of JSX. */
import { h } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";

export { render } from "./vendor/preact.mjs";
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.mjs";

export const html = htm.bind(h);
