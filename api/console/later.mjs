/** Components whose modules are read when they are shown first, not with the console's first page. */
import { html, useLayoutEffect, useState } from "./ui.mjs";
import { Problem } from "./problems.mjs";
import { Refusal } from "./parts.mjs";

function componentOf(view) {
  return function Later(props) {
    const [problem, setProblem] = useState(null);
    const [, redraw] = useState(0);
    const show = () => view.read().then(() => redraw((n) => n + 1), () => setProblem(new Problem({ status: 0, code: "no-answer" })));
    useLayoutEffect(() => {
      if (view.module === null) show();
    }, []);
    if (view.module !== null) return html`<${view.module[view.name]} ...${props} />`;
    if (problem !== null) return html`<${Refusal} problem=${problem} retry=${show} />`;
    return html`<p class="loading" aria-busy="true">Loading…</p>`;
  };
}

const made = new Map();

/** The component of a view, the same one each time. @param {import("./views.mjs").View} view */
export function later(view) {
  if (!made.has(view)) made.set(view, componentOf(view));
  return made.get(view);
}
