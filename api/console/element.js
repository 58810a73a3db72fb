/** The page that shows <redrive-job>: `element.html#job=ID`. The token is not taken from the address. */
{
const form = document.forms[0];
const told = document.getElementById("told");
const elements = document.querySelectorAll("redrive-job");

/** The lines for a page of one's own, for this API. */
function snippetFor(job) {
  const at = (path) => new URL(path, document.baseURI).href;
  return [
    `<script src="${at("redrive-job.js")}" defer></` + `script>`,
    `<redrive-job job="${job || "…"}" api="${at("../api")}" token="…">`,
    `  <span slot="completed">Your report is ready.</span>`,
    `</redrive-job>`,
  ].join("\n");
}

function fill() {
  const job = new URLSearchParams(location.hash.slice(1)).get("job") ?? "";
  form.job.value = job;
  document.getElementById("snippet").textContent = snippetFor(job);
}

function tell(event) {
  const line = document.createElement("li");
  line.textContent = `${event.type}: ${event.detail.state}`;
  told.append(line);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const job = form.job.value.trim();
  const token = form.token.value.trim();
  told.replaceChildren();
  document.getElementById("snippet").textContent = snippetFor(job);
  for (const element of elements) {
    element.tokenProvider = async () => token; // a page of yours asks its own server for a new one
    element.setAttribute("job", job);
  }
});
for (const name of ["redrive-change", "redrive-done"]) elements[0].addEventListener(name, tell);
addEventListener("hashchange", fill);
fill();
}
