// A back end built on Microsoft's azure-iothub: the registry and twins. Usage: node registry.js
// with SERVICE_CONNECTION_STRING (policy iothubowner) and NODE_EXTRA_CA_CERTS (the hub's CA) in the environment.
// The hub has the device dev1 when it begins. Prints one JSON object a line.

'use strict';
const { Registry } = require('azure-iothub');

const print = (value) => console.log(JSON.stringify(value));
const registry = Registry.fromConnectionString(process.env.SERVICE_CONNECTION_STRING);
/** The SDK's name of what goes wrong; fails when nothing does. */
const failure = (call) => call.then(() => 'none', (error) => error.name);
const key = (byte) => Buffer.alloc(32, byte).toString('base64');

async function devices() {
  const keys = { primaryKey: key(1), secondaryKey: key(2) };
  const { responseBody: made } = await registry.create({
    deviceId: 'new-1',
    status: 'enabled',
    statusReason: 'just made',
    capabilities: { iotEdge: true },
    authentication: { type: 'sas', symmetricKey: keys },
  });
  print({
    made: made.deviceId,
    keepsKeys: made.authentication.symmetricKey.primaryKey === keys.primaryKey,
    again: await failure(registry.create({ deviceId: 'new-1' })),
    odd: await failure(registry.create({ deviceId: 'new 1' })),
  });

  const { responseBody: got } = await registry.get('new-1');
  print({ got: got.status, reason: got.statusReason, iotEdge: got.capabilities.iotEdge, state: got.connectionState });

  const { responseBody: changed } = await registry.update({ ...got, status: 'disabled', statusReason: 'too loud' });
  print({
    changed: changed.status,
    reason: changed.statusReason,
    sameGeneration: changed.generationId === got.generationId,
    otherEtag: changed.etag !== got.etag,
    changedAt: Date.parse(changed.statusUpdatedTime) > Date.now() - 60_000,
  });

  await registry.create({ deviceId: 'new-2' });
  const { responseBody: all } = await registry.list();
  print({ listed: all.map(({ deviceId }) => deviceId).sort() });
  await registry.delete('new-2');
  print({ deleted: await failure(registry.get('new-2')), deletedAgain: await failure(registry.delete('new-2')) });
}

async function modules() {
  await registry.addModule({ deviceId: 'dev1', moduleId: 'mod', managedBy: 'nobody' });
  const { responseBody: module } = await registry.getModule('dev1', 'mod');
  const { responseBody: changed } = await registry.updateModule({ ...module, managedBy: 'somebody' }, true);
  const { responseBody: listed } = await registry.getModulesOnDevice('dev1');
  await registry.removeModule('dev1', 'mod');
  print({
    module: [module.managedBy, changed.managedBy],
    listed: listed.map(({ moduleId }) => moduleId),
    removed: await failure(registry.getModule('dev1', 'mod')),
  });
}

async function twins() {
  const { responseBody: twin } = await registry.getTwin('dev1');
  const { etag } = twin;
  const patch = { tags: { site: 'b43' }, properties: { desired: { x: { y: 'é' } } } };
  const { responseBody: patched } = await registry.updateTwin('dev1', patch, etag);
  const { x, $version } = patched.properties.desired;
  print({
    tags: patched.tags,
    x,
    $version,
    stale: await failure(registry.updateTwin('dev1', { tags: { site: null } }, etag)),
    missing: await failure(registry.getTwin('nobody')),
  });
}

async function statistics() {
  const { responseBody } = await registry.getRegistryStatistics();
  print({ statistics: responseBody });
}

/** Two calls with a fault in each: what is right is done. */
async function bulk() {
  const ids = (from, to) => Array.from({ length: to - from }, (_, at) => ({ deviceId: `bulk-${from + at}` }));
  const { responseBody: added } = await registry.addDevices(ids(0, 20));
  const { responseBody: half } = await registry.addDevices(ids(18, 22));
  const disabled = ids(0, 20).map((device) => ({ ...device, status: 'disabled' }));
  const { responseBody: updated } = await registry.updateDevices(disabled, true);
  const { responseBody: device } = await registry.get('bulk-7');
  const { responseBody: removed } = await registry.removeDevices(ids(0, 22), true);
  print({
    bulk: [added, updated, removed].map(({ isSuccessful }) => isSuccessful),
    half: half.errors.map(({ deviceId, errorCode }) => [deviceId, errorCode]),
    device: device.status,
    gone: await failure(registry.get('bulk-21')),
  });
}

async function query() {
  for (let floor = 0; floor < 5; floor += 1) {
    await registry.create({ deviceId: `q-${floor}` });
    await registry.updateTwin(`q-${floor}`, { tags: { floor, wing: 'é' } }, '*');
  }
  const twins = registry.createQuery("SELECT * FROM devices WHERE tags.wing = 'é' AND tags.floor > 0", 3);
  const pages = [];
  while (twins.hasMoreResults) {
    const { result } = await twins.nextAsTwin();
    pages.push(result.map(({ deviceId, tags }) => [deviceId, tags.floor]));
  }
  const first = async (text) => (await registry.createQuery(text).next()).result;
  print({
    pages,
    fields: await first("SELECT deviceId AS id, tags.floor FROM devices WHERE deviceId IN ['q-1', 'nobody']"),
    count: await first('SELECT COUNT() AS n FROM devices WHERE IS_DEFINED(tags.floor)'),
    wrong: await failure(first('SELECT * FROM')),
  });
}

async function main() {
  for (const part of process.argv.slice(2)) {
    await { devices, modules, twins, query, statistics, bulk }[part]();
  }
}

main().catch((error) => {
  console.error(error.stack, error.responseBody || '');
  process.exit(1);
});
