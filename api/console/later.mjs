/** Components whose module is read when they are shown first, not with the console's first page. */
import { html, useLayoutEffect, useState } from "./ui.mjs";
import { Problem } from "./problems.mjs";
import { Refusal } from "./parts.mjs";

/**
 * A component of another module. `load` reads the module ahead.
 * @param {() => Promise<any>} read imports the module
 * @param {string} name of the component in it
 */
export function later(read, name) {
  let component = null;
  let reading = null;

  function load() {
    reading ??= read().then(
      (module) => {
        component = module[name];
      },
      () => {
        reading = null;
        throw new Problem({ status: 0, code: "no-answer" });
      },
    );
    return reading;
  }

  function Later(props) {
    const [problem, setProblem] = useState(null);
    const [, redraw] = useState(0);
    const show = () => load().then(() => redraw((n) => n + 1), setProblem);
    useLayoutEffect(() => {
      if (component === null) show();
    }, []);
    if (component !== null) return html`<${component} ...${props} />`;
    if (problem !== null) return html`<${Refusal} problem=${problem} retry=${show} />`;
    return html`<p class="loading" aria-busy="true">Loading…</p>`;
  }
  Later.load = load;
  return Later;
}
