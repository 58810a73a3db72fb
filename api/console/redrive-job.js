/** <redrive-job job api token>: one job's state, live: see docs/console.md. */
{
const API = new URL("../api", document.currentScript.src).href;
const WORDS = {
	loading: "Looking…", pending: "Waiting", running: "Running", retrying: "Failed, retry queued", failed: "Failed",
	completed: "Completed", gone: "No such job", refused: "Cannot be shown",
};
const WHY = { 400: "not a job id", 401: "the token is not valid", 403: "the token does not permit it", 409: "its row cannot be read" };
const sheet = new CSSStyleSheet();
sheet.replaceSync(`
:host { overflow-wrap: anywhere; unicode-bidi: isolate }
span::before { content: "○ " / ""; color: light-dark(#5b6472, #a3adbb) }
[part~=failed]::before { content: "✕ " / ""; color: light-dark(#a8121f, #ff7a70) }
[part~=running]::before { content: "◐ " / ""; color: light-dark(#0b62b8, #6db3f8) }
[part~=completed]::before { content: "✓ " / ""; color: light-dark(#1a7348, #6fdb9f) }`);
const make = (name) => document.createElement(name);
let holder = null; // the element with a lasting connection: a browser has six a host

customElements.define("redrive-job", class extends HTMLElement {
	static observedAttributes = ["job", "api", "token"];
	#line = make("span"); #slot = make("slot"); #note = make("small");
	#stop = new AbortController();
	#provider; #token; #tag; #over; #streams; #had;

	constructor() {
		super();
		this.#line.role = "status";
		this.#note.part = "note";
		this.#line.append(this.#slot, this.#note);
		this.attachShadow({ mode: "open" }).append(this.#line);
		this.shadowRoot.adoptedStyleSheets = [sheet];
	}

	/** An async function for a token: first, and after a 401. */
	set tokenProvider(provider) {
		this.#provider = provider;
		this.#begin();
	}
	connectedCallback() {
		this.#provider ??= this.tokenProvider; // set earlier, it hides the setter
		delete this.tokenProvider;
		this.#begin();
	}
	disconnectedCallback() { this.#stop.abort(); }
	attributeChangedCallback() { this.#begin(); }

	#begin() {
		this.#token = this.#tag = null;
		this.#streams = true;
		this.#show("loading");
		this.#follow();
	}

	#follow = async () => {
		this.#stop.abort();
		const { signal } = (this.#stop = new AbortController());
		this.#over = !this.isConnected || !this.getAttribute("job");
		if (!this.#over) document.addEventListener("visibilitychange", this.#follow, { signal });
		await null; // set together, one change
		let pauseS, failures = 0;
		while (!signal.aborted && !this.#over && document.visibilityState !== "hidden") {
			let timer;
			const allow = (s) => {
				clearTimeout(timer);
				timer = setTimeout(this.#follow, s * 1000);
			};
			try {
				holder ??= this;
				pauseS = await (this.#streams && holder === this ? this.#stream(signal, allow) : this.#ask(signal, allow));
				this.#streams ||= this.#had;
				failures = 0;
			} catch (error) {
				const { status, after } = error ?? {};
				if (signal.aborted) break;
				if (status === 401 && this.#provider && !failures++) {
					this.#token = null;
					continue;
				}
				if (status === 404) this.#show("gone");
				else if (WHY[status]) this.#show("refused", WHY[status]);
				else this.#note.textContent = " · not reached, trying again";
				pauseS = +after || Math.min(2 ** ++failures, 30);
			} finally { clearTimeout(timer); }
			if (!this.#over) await new Promise((wake) => setTimeout((signal.onabort = wake), pauseS * 1000));
		}
		if (holder === this) holder = null;
	};

	async #call(path, headers, signal) {
		const [job, api, token] = ["job", "api", "token"].map((name) => this.getAttribute(name));
		this.#token ??= token ?? (await this.#provider?.());
		if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
		const url = `${api ?? API}/jobs/${encodeURIComponent(job)}${path}`;
		const answer = await fetch(url, { headers, signal, cache: "no-store" });
		if (!answer.ok && answer.status !== 304) throw { status: answer.status, after: answer.headers.get("Retry-After") };
		this.#note.textContent = "";
		return answer;
	}

	async #stream(signal, allow) {
		let pauseS = 1, text = "";
		this.#streams = false; // until an event comes: a proxy may hold it back
		allow(9);
		const answer = await this.#call("/events", {}, signal);
		const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
		for (let part; !(part = await reader.read()).done; ) {
			allow(40); // it has a line every 15 s
			const events = (text + part.value).split("\n\n");
			text = events.pop();
			for (const lines of events) {
				const { retry, event, id, data } = Object.fromEntries(lines.split("\n").map((line) => line.split(/: (.*)/s)));
				pauseS = retry / 1000 || pauseS;
				this.#had = this.#streams ||= !!data;
				if (event === "gone") this.#show("gone");
				else if (data) this.#take(JSON.parse(data), `"${id}"`);
			}
		}
		return pauseS;
	}

	async #ask(signal, allow) {
		const headers = this.#tag ? { "If-None-Match": this.#tag } : {};
		if (this.#tag && holder === this) headers.Prefer = "wait=25";
		allow(40);
		const answer = await this.#call("", headers, signal);
		if (answer.status === 200) this.#take((await answer.json()).data, answer.headers.get("ETag"));
		return answer.headers.has("Preference-Applied") ? 1 : +answer.headers.get("Retry-After") || 10;
	}

	#take(job, tag) {
		if (job.unreadable) throw { status: 409 };
		const word = /^(pending|running|failed|completed)$/.exec(job.status)?.[0] ?? "other";
		this.#over = job.done;
		if (tag !== this.#tag) this.#show(job.pending_retry ? "retrying" : word, "", job);
		this.#tag = tag;
	}

	#show(state, note = "", job = null) {
		const known = !job && this.#slot.name === state;
		this.#line.part = `state ${(this.#slot.name = state)}`;
		this.#slot.textContent = WORDS[state] ?? job.status.slice(0, 99).replace(/\p{C}/gu, "\ufffd");
		this.#note.textContent = note && ` · ${note}`;
		this.#over ||= !job && state !== "loading";
		if (known || state === "loading") return;
		const init = { bubbles: true, detail: { state, job } };
		this.dispatchEvent(new CustomEvent("redrive-change", init));
		if (this.#over) this.dispatchEvent(new CustomEvent("redrive-done", init));
	}
});
}
