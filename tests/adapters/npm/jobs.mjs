// What every system's handler does with a job; tests/adapters/drivers says what there is to ask for.
export const QUEUE = "p1";

export async function runJob(job, mode) {
  if (mode === "succeed" || job === "work") return;
  if (job === "hang") await new Promise(() => setInterval(() => {}, 1 << 30));
  throw new Error("card 4242 was declined");
}

export async function run(actions) {
  const [action, ...rest] = process.argv.slice(2);
  const given = action === "install" ? [JSON.parse(await text(process.stdin))] : [];
  const answer = await actions[action](process.env.DATABASE_URL, ...given, ...rest);
  if (answer !== undefined) console.log(JSON.stringify(answer));
}

async function text(stream) {
  let all = "";
  for await (const part of stream) all += part;
  return all;
}

export async function untilStopped() {
  console.log("up");
  const alive = setInterval(() => {}, 1 << 30);
  await new Promise((resolve) => process.once("SIGTERM", resolve));
  clearInterval(alive);
}
