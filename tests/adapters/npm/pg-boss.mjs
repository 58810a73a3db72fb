// pg-boss, of the major version that PG_BOSS names.
import { QUEUE, run, runJob, untilStopped } from "./jobs.mjs";

const library = await import(`pg-boss-${process.env.PG_BOSS}`);
const PgBoss = library.PgBoss ?? library.default;
const isNew = process.env.PG_BOSS === "12";

async function started(url, options = {}) {
  const boss = new PgBoss({ connectionString: url, supervise: false, schedule: false, ...options });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  return boss;
}

async function stop(boss) {
  await boss.stop({ graceful: false, wait: true, close: true });
}

await run({
  async install(url, jobs) {
    const boss = await started(url);
    await boss.createQueue(QUEUE, { policy: "standard", retryLimit: 0 });
    const ids = [];
    for (const job of jobs) {
      const options = { retryLimit: 0 };
      if (job.delay_s) options.startAfter = job.delay_s;
      ids.push(await boss.send(QUEUE, { do: job.do }, options));
    }
    await stop(boss);
    return ids;
  },

  async work(url, mode) {
    const boss = await started(url);
    for (let each = 0; each < 5; each++)
      await boss.work(QUEUE, { pollingIntervalSeconds: 0.5 }, ([job]) => runJob(job.data.do, mode));
    await untilStopped();
    process.exit(0);
  },

  async prune(url) {
    const boss = await started(url);
    await (isNew ? boss.supervise() : boss.maintain());
    await stop(boss);
  },
});
