/** Jobs over time as stacked bars, with their numbers as a table. */
import { default as uPlot } from "./vendor/uplot.mjs";
import { clock, number, zoneName } from "./text.mjs";
import { choices } from "./store.mjs";
import { html, useLayoutEffect, useRef, useStore } from "./ui.mjs";

/** From the ground up: what failed stands where it is seen best. */
const STACK = ["failed", "running", "pending", "other", "completed"];

const HEIGHT = 140;

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries([...STACK, "line", "muted"].map((name) => [name, style.getPropertyValue(`--bar-${name}`).trim()]));
}

/** One row of heights for each status, each on top of the ones before it; the tallest first, as it is drawn first. */
function dataOf(buckets) {
  const sums = buckets.map(() => 0);
  const rows = STACK.map((status) => buckets.map((bucket, i) => (sums[i] += bucket[status].count) || null));
  return [buckets.map((bucket) => Date.parse(bucket.at) / 1_000), ...rows.reverse()];
}

function plotOf(element, buckets) {
  const colour = colours();
  const utc = choices.get().zone === "utc";
  const axis = { stroke: colour.muted, grid: { stroke: colour.line, width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  const options = {
    width: element.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, 24, 0, 0],
    tzDate: (s) => (utc ? uPlot.tzDate(new Date(s * 1_000), "Etc/UTC") : new Date(s * 1_000)),
    scales: { y: { range: (_plot, _least, most) => [0, Math.max(most ?? 0, 4) * 1.05] } },
    axes: [
      { ...axis, space: 64, size: 28, values: (_plot, times) => times.map((s) => clock(s * 1_000, { seconds: false })) },
      { ...axis, size: 48, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000], values: (_plot, counts) => counts.map((count) => number(count)) },
    ],
    series: [
      {},
      ...[...STACK].reverse().map((status) => ({
        stroke: colour[status], fill: colour[status], width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.72, 22], align: 1 }),
      })),
    ],
  };
  return new uPlot(options, dataOf(buckets), element);
}

/** @param {{buckets: any[], label: string}} props buckets as GET /api/jobs/series has them */
export function Bars({ buckets, label }) {
  const box = useRef(null);
  const chosen = useStore(choices);
  useLayoutEffect(() => {
    const element = box.current;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    let plot = plotOf(element, buckets);
    const draw = () => {
      plot.destroy();
      plot = plotOf(element, buckets);
    };
    const sizes = new ResizeObserver(() => {
      if (element.clientWidth > 0 && element.clientWidth !== plot.width) plot.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    sizes.observe(element);
    dark.addEventListener("change", draw);
    return () => {
      sizes.disconnect();
      dark.removeEventListener("change", draw);
      plot.destroy();
    };
  }, [buckets, chosen]);
  const present = STACK.filter((status) => status !== "other" || buckets.some((bucket) => bucket.other.count > 0));
  const total = (status) => buckets.reduce((sum, bucket) => sum + bucket[status].count, 0);
  const capped = (status) => buckets.some((bucket) => bucket[status].capped);
  const rows = buckets.filter((bucket) => present.some((status) => bucket[status].count > 0 || bucket[status].capped));
  return html`<figure class="card chart">
    <figcaption>${present.map((status) => html`<span class=${`key ${status}`}>${number(total(status), capped(status))} ${status}</span>`)}</figcaption>
    <div class="plot" ref=${box} role="img" aria-label=${`${label}; the numbers are in the table below`}></div>
    <details>
      <summary>The numbers</summary>
      <div class="scroll" tabindex="0" role="region" aria-label=${`${label}, as numbers`}>
        <table>
          <thead><tr><th scope="col">from (${zoneName()})</th>${present.map((status) => html`<th scope="col" class="n">${status}</th>`)}</tr></thead>
          <tbody>
            ${rows.map((bucket) => html`<tr key=${bucket.at}>
              <th scope="row">${clock(Date.parse(bucket.at), { seconds: false })}</th>
              ${present.map((status) => html`<td class="n">${number(bucket[status].count, bucket[status].capped)}</td>`)}
            </tr>`)}
          </tbody>
        </table>
      </div>
    </details>
  </figure>`;
}
