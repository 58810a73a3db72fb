/** Every refusal of the API in words that a person can act on. */

const WORDS = {
  "authentication-required": "You are not signed in. Give a token.",
  "invalid-token": "The token is not good here, or no longer. Give a new one; nothing on this page is lost.",
  "insufficient-scope": "Your token does not permit this. Ask for one with the scope that is named beside the button.",
  "cross-site": "The API takes this for another site's page. A proxy in front must pass on Host and Origin as they came.",
  "read-only": "This deployment is read-only: it shows jobs and changes none.",
  "not-found": "There is nothing here. It may have been pruned, or belong to another project.",
  "job-not-found": "There is no such job in this project.",
  "retry-not-found": "There is no such retry in this project.",
  "invalid-job-id": "This is not a job id.",
  "invalid-parameter": "One of the filters cannot be read.",
  "invalid-cursor": "This list has changed too much to be continued. Begin again.",
  "invalid-body": "The API did not take what was filled in.",
  "job-not-failed": "The job is no longer failed, so there is nothing to retry.",
  "attempts-exhausted": "All attempts of the job are used up. Give it extra attempts.",
  "job-changed": "The job has changed since you looked. It is shown anew; look again, then decide.",
  "job-unreadable": "The job's row holds something that cannot be shown. The owner of the table can mend it.",
  "retry-already-settled": "The retry is no longer queued, so it cannot be taken back.",
  "retry-not-dead-lettered": "The retry is not among the dead letters any more.",
  "retry-queued": "Another retry is queued for the same job.",
  "too-many-matches": "More jobs match by now than you were shown. Nothing was retried; look at the preview again.",
  "idempotency-key-reused": "This was sent before with other values. Close the dialog and begin again.",
  "payload-too-large": "That is more than the API takes at once.",
  "rate-limited": "The project has used up its share of requests for the moment.",
  "unavailable": "The database behind the API is away or too slow. What this page shows, if anything, is from before.",
  "internal": "Something went wrong in the API; it has been logged under the request id.",
  "no-answer": "The API does not answer: it, a proxy, or your network is away. What this page shows, if anything, is from before.",
  "not-loaded": "This part of the console could not be loaded: the API, a proxy or your network is away, or Redrive has been renewed. If it does not come when you try again, load the console anew.",
  "not-ours": "Something in between answered in place of the API.",
};

/** A refused or failed call. `status` 0: no answer came. */
export class Problem extends Error {
  /**
   * @param {{status: number, code: string, detail?: string, requestId?: string | null, retryAfterS?: number | null,
   *   faults?: {pointer: string, detail: string}[], parameter?: string | null}} facts
   */
  constructor(facts) {
    super(facts.code);
    this.status = facts.status;
    this.code = facts.code;
    this.requestId = facts.requestId ?? null;
    this.retryAfterS = facts.retryAfterS ?? null;
    this.parameter = facts.parameter ?? null;
    this.faults = facts.faults ?? [];
    this.words = WORDS[facts.code] ?? facts.detail ?? "The API refused this.";
  }

  /** Whether the same call may succeed later, unchanged. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The problem that an answer which is not 2xx stands for. */
export async function problemOf(response) {
  const after = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const facts = {
    status: response.status,
    requestId: response.headers.get("X-Request-Id"),
    retryAfterS: Number.isNaN(after) ? null : after,
  };
  // A proxy's 502 is HTML.
  if (!(response.headers.get("Content-Type") ?? "").startsWith("application/problem+json")) {
    return new Problem({ ...facts, code: "not-ours" });
  }
  const body = await response.json();
  return new Problem({ ...facts, code: body.code, detail: body.detail, faults: body.errors, parameter: body.parameter });
}
