/** Words, numbers and times as people read them. */
import { now } from "./api.mjs";
import { choices } from "./store.mjs";

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Text from outside with whatever is invisible, or turns text around, spelled out. */
export function shown(text) {
  return String(text ?? "").replace(HIDDEN, (char) =>
    char === "\r" ? "" : `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

const grouped = (count) => String(count).replace(/\B(?=(?:\d{3})+$)/g, ","); // Intl would be 25 ms, once

/** `10,000+` where the counting stopped there. */
export const number = (count, capped = false) => `${grouped(count)}${capped ? "+" : ""}`;

/** `1 job`, `1,198 jobs`. */
export const many = (count, noun, capped = false) => `${number(count, capped)} ${noun}${count === 1 && !capped ? "" : "s"}`;

/** A span in its largest unit: `40 s`, `31m`, `20h`, `3d`. */
export function span(ms) {
  const s = Math.max(0, ms) / 1_000;
  if (s < 1) return `${Math.round(s * 1_000)} ms`;
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 5_400) return `${Math.round(s / 60)}m`;
  return s < 172_800 ? `${Math.round(s / 3_600)}h` : `${Math.round(s / 86_400)}d`;
}

const pad = (n) => String(n).padStart(2, "0");

function partsOf(ms, zone) {
  const date = new Date(zone === "utc" ? ms : ms - new Date(ms).getTimezoneOffset() * 60_000);
  return {
    day: `${date.getUTCFullYear()}-${pad(date.getUTCMonth() + 1)}-${pad(date.getUTCDate())}`,
    minute: `${pad(date.getUTCHours())}:${pad(date.getUTCMinutes())}`,
    second: pad(date.getUTCSeconds()),
  };
}

/** `23:40` or `23:40:11`, in the zone that was chosen. */
export function clock(ms, { seconds = true } = {}) {
  const parts = partsOf(ms, choices.get().zone);
  return seconds ? `${parts.minute}:${parts.second}` : parts.minute;
}

/** The zone that was chosen, as it stands behind a time. */
export const zoneName = () => (choices.get().zone === "utc" ? "UTC" : "local time");

/** `2026-11-24 23:40:11 UTC`. */
export function absolute(iso) {
  const parts = partsOf(Date.parse(iso), choices.get().zone);
  return `${parts.day} ${parts.minute}:${parts.second} ${zoneName()}`;
}

/** `23:40:11`, with its date if that is not today's: to tell what came first, and how soon after. */
export function exact(iso) {
  const parts = partsOf(Date.parse(iso), choices.get().zone);
  const time = `${parts.minute}:${parts.second}`;
  return parts.day === partsOf(now(), choices.get().zone).day ? time : `${parts.day} ${time}`;
}

/** `4m ago`, `in 3h`. */
export function ago(iso) {
  const ms = now() - Date.parse(iso);
  if (Math.abs(ms) < 1_000) return "now";
  return ms >= 0 ? `${span(ms)} ago` : `in ${span(-ms)}`;
}

/** The same, and a date beyond 24 hours. */
export function relative(iso) {
  if (choices.get().times === "relative" && Math.abs(now() - Date.parse(iso)) <= 86_400_000) return ago(iso);
  const parts = partsOf(Date.parse(iso), choices.get().zone);
  return `${parts.day} ${parts.minute}`;
}

/** The first eight characters of an id; all of one that is short. */
export const short = (id) => (id.length > 20 ? id.slice(0, 8) : id);

const OUTCOMES = {
  applied: "the job went back to pending",
  job_not_found: "the job's row was gone",
  job_not_failed: "the job was no longer failed",
  attempts_exhausted: "all attempts were used up",
  superseded: "the job had changed after the request, so it was left alone",
  blocked: "the owner of the table does not take this job back now",
  cancelled: "taken back before it was applied",
  poison: "no worker could settle it in twenty deliveries",
};

/** What became of a retry, in words. */
export function outcomeWords(retry) {
  if (retry.state === "queued") return "waits for a worker";
  const words = OUTCOMES[retry.outcome] ?? retry.outcome ?? retry.state.replace("_", " ");
  return retry.cancelled_by ? `${words}, by ${shown(retry.cancelled_by)}` : words;
}

const BLOCKS = { attempts_exhausted: "attempts used up", retry_queued: "a retry is queued already", job_not_found: "not found", job_unreadable: "its row cannot be read", job_not_failed: "not failed", not_failed: "not failed" };

/** Why a job cannot go back, in words. */
export const blockWords = (code) => BLOCKS[code.replaceAll("-", "_")] ?? code.replaceAll("_", " ");
