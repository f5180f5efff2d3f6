// A back end built on Microsoft's @azure/event-hubs: prints what devices send. Usage: node events.js COUNT
// with EVENTHUB_CONNECTION_STRING and NODE_EXTRA_CA_CERTS (the hub's CA) in the environment; over a WebSocket with
// WEBSOCKETS, too. Reads each partition from its beginning, prints one JSON object for each message, and ends after
// COUNT of them.

'use strict';
const { EventHubConsumerClient, earliestEventPosition } = require('@azure/event-hubs');
const WebSocket = require('ws');

async function main() {
  const options = 'WEBSOCKETS' in process.env ? { webSocketOptions: { webSocket: WebSocket } } : {};
  const client = new EventHubConsumerClient('$Default', process.env.EVENTHUB_CONNECTION_STRING, options);
  const partitions = await client.getPartitionIds();
  console.log(JSON.stringify({ partitions }));
  let left = Number(process.argv[2]);
  await new Promise((resolve, reject) => {
    const processEvents = async (events) => {
      for (const { body, properties, systemProperties, sequenceNumber, enqueuedTimeUtc } of events) {
        const device = systemProperties['iothub-connection-device-id'];
        console.log(JSON.stringify({ event: body.toString(), properties, device, numbered: sequenceNumber >= 0, enqueuedTimeUtc }));
        left -= 1;
      }
      if (left <= 0) resolve();
    };
    client.subscribe({ processEvents, processError: async (error) => reject(error) }, { startPosition: earliestEventPosition });
  });
  await client.close();
}

main().catch((error) => {
  console.error(error.stack);
  process.exit(1);
});
