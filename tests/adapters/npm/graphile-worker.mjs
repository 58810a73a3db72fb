// Graphile Worker.
import { makeWorkerUtils, run as runWorker, runMigrations, Logger } from "graphile-worker";
import { run, runJob, untilStopped } from "./jobs.mjs";

const logger = new Logger(() => () => {});

async function withUtils(url, use) {
  const utils = await makeWorkerUtils({ connectionString: url, logger });
  try {
    return await use(utils);
  } finally {
    await utils.release();
  }
}

await run({
  async install(url, jobs) {
    await runMigrations({ connectionString: url, logger });
    return await withUtils(url, async (utils) => {
      const ids = [];
      for (const job of jobs) {
        const options = { maxAttempts: 1 };
        if (job.delay_s) options.runAt = new Date(Date.now() + job.delay_s * 1000);
        ids.push(String((await utils.addJob("charge", { do: job.do }, options)).id));
      }
      return ids;
    });
  },

  async work(url, mode) {
    await runWorker({
      connectionString: url,
      concurrency: 5,
      noHandleSignals: true,
      pollInterval: 30000,
      logger,
      taskList: { charge: (payload) => runJob(payload.do, mode) },
    });
    await untilStopped();
    process.exit(0);
  },

  async prune(url) {
    await withUtils(url, (utils) => utils.cleanup());
  },
});
