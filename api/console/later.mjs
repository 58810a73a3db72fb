/** Components whose modules are read when they are shown first, not with the console's first page. */
import { focusPage } from "./router.mjs";
import { html, useLayoutEffect, useRef, useState } from "./ui.mjs";
import { Problem } from "./problems.mjs";
import { Refusal } from "./parts.mjs";

/** In place of a dialog, until it is there. */
function Sheet({ close, children }) {
  const element = useRef(null);
  useLayoutEffect(() => {
    const dialog = element.current;
    dialog.showModal();
    return () => dialog.close(); // the focus goes back to where it was
  }, []);
  return html`<dialog ref=${element} class="sheet" aria-label="Loading" onCancel=${(event) => { event.preventDefault(); close?.(); }}>
    ${children}
    ${close && html`<p class="actions"><button type="button" onClick=${close}>Close</button></p>`}
  </dialog>`;
}

function componentOf(view) {
  return function Later(props) {
    const [problem, setProblem] = useState(null);
    const [, redraw] = useState(0);
    function show() {
      setProblem(null);
      view.read().then(() => redraw((n) => n + 1), () => setProblem(new Problem({ status: 0, code: "not-loaded" })));
    }
    function showAgain() {
      show();
      if (!view.inDialog) focusPage(); // the button that had it goes
    }
    useLayoutEffect(() => {
      if (view.module === null) show();
    }, []);
    if (view.module !== null) return html`<${view.module[view.name]} ...${props} />`;
    const standing = problem ? html`<${Refusal} problem=${problem} retry=${showAgain} />` : html`<p class="loading" aria-busy="true">Loading…</p>`;
    return view.inDialog ? html`<${Sheet} close=${props.close}>${standing}</${Sheet}>` : standing;
  };
}

const made = new Map();

/** The component of a view, the same one each time. @param {import("./views.mjs").View} view */
export function later(view) {
  if (!made.has(view)) made.set(view, componentOf(view));
  return made.get(view);
}
