// A back end built on Microsoft's azure-iothub: jobs. Usage: node jobs.js
// with SERVICE_CONNECTION_STRING (policy iothubowner) and NODE_EXTRA_CA_CERTS (the hub's CA) in the environment.
// The hub has the devices dev1, which is connected and answers the method `greet`, and dev2, which is not connected.
// Prints one JSON object a line.

'use strict';
const { JobClient, Registry } = require('azure-iothub');
const { setTimeout: sleep } = require('node:timers/promises');

const print = (value) => console.log(JSON.stringify(value));
const jobs = JobClient.fromConnectionString(process.env.SERVICE_CONNECTION_STRING);
const registry = Registry.fromConnectionString(process.env.SERVICE_CONNECTION_STRING);
/** The SDK's name of what goes wrong. */
const failure = (call) => call.then(() => 'none', (error) => error.name);
const CONDITION = "deviceId IN ['dev1', 'dev2']";
const SECONDS = 20;

/** Asks until the job has ended, as the SDK's samples do. */
async function end(jobId) {
  for (;;) {
    const { jobStatus } = await jobs.getJob(jobId);
    if (['completed', 'failed', 'cancelled'].includes(jobStatus.status)) {
      return jobStatus;
    }
    await sleep(50);
  }
}

/** What became of the job at each device. */
async function results(jobId) {
  const { result } = await registry.createQuery(`SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '${jobId}'`).next();
  return Object.fromEntries(result.map(({ deviceId, status }) => [deviceId, status]));
}

function counts({ deviceJobStatistics: { deviceCount, succeededCount, failedCount } }) {
  return [deviceCount, succeededCount, failedCount];
}

async function main() {
  const patch = { etag: '*', tags: { site: 'b43' }, properties: { desired: { level: 9 } } };
  const { jobStatus: begun } = await jobs.scheduleTwinUpdate('twins', CONDITION, patch, new Date(), SECONDS);
  const twins = await end('twins');
  const { responseBody: twin } = await registry.getTwin('dev2');
  print({
    twins: [begun.type, twins.status],
    counts: counts(twins),
    results: await results('twins'),
    twin: [twin.tags.site, twin.properties.desired.level],
  });

  const method = { methodName: 'greet', payload: { a: 'é' }, responseTimeoutInSeconds: 5 };
  await jobs.scheduleDeviceMethod('methods', CONDITION, method, new Date(), SECONDS);
  const methods = await end('methods');
  print({ methods: methods.status, counts: counts(methods), results: await results('methods') });

  const later = new Date(Date.now() + 3_600_000);
  const { jobStatus: scheduled } = await jobs.scheduleDeviceMethod('later', CONDITION, method, later, SECONDS);
  await jobs.cancelJob('later');
  print({
    later: [scheduled.status, (await end('later')).status],
    again: await failure(jobs.scheduleDeviceMethod('later', CONDITION, method, later, SECONDS)),
    nobody: await failure(jobs.getJob('nobody')),
  });

  const { result } = await jobs.createQuery('scheduleDeviceMethod').next();
  print({ listed: result.map(({ jobId }) => jobId).sort() });
}

main().catch((error) => {
  console.error(error.stack, error.responseBody || '');
  process.exit(1);
});
