// A back end built on Microsoft's azure-iothub. Usage: node service.js amqp|amqp-ws DEVICE
// with SERVICE_CONNECTION_STRING and NODE_EXTRA_CA_CERTS (the hub's CA) in the environment.
//
// Attaches to feedback and to file notifications, sends three messages that ask for feedback, prints each record, calls
// a method, and sends to a device that is not there. Prints one JSON object a line.

'use strict';
const { Client } = require('azure-iothub');
const { Message } = require('azure-iot-common');
const { Amqp } = require('azure-iothub/dist/amqp');
const { AmqpWs } = require('azure-iothub/dist/amqp_ws');

const [transport, device] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));

/** Waits until each of the messages has its record. */
function feedbackOf(receiver, ids) {
  const waiting = new Set(ids);
  return new Promise((resolve, reject) => {
    receiver.on('errorReceived', reject);
    receiver.on('message', (batch) => {
      for (const { originalMessageId, deviceId, statusCode, deviceGenerationId } of JSON.parse(batch.data)) {
        print({ feedback: originalMessageId, deviceId, statusCode, hasGeneration: deviceGenerationId !== '' });
        waiting.delete(originalMessageId);
      }
      receiver.complete(batch).then(() => waiting.size === 0 && resolve(), reject);
    });
  });
}

async function main() {
  const client = Client.fromConnectionString(process.env.SERVICE_CONNECTION_STRING, { amqp: Amqp, 'amqp-ws': AmqpWs }[transport]);
  await client.open();
  client.on('disconnect', (event) => print({ disconnected: String(event.reason) }));
  const { result: receiver } = await client.getFeedbackReceiver();
  const { result: files } = await client.getFileNotificationReceiver();
  files.on('message', () => print({ file: true }));

  const ids = ['m-1', 'm:2', 'm-3'];
  const records = feedbackOf(receiver, ids);
  for (const id of ids) {
    const message = new Message(`grüße ${id}`);
    message.ack = 'full';
    message.messageId = id;
    message.correlationId = 'c-1';
    message.expiryTimeUtc = Date.now() + 60_000;
    message.properties.add('action', 'write');
    message.properties.add('odd', 'a=b&c%d');
    print({ sent: id, as: (await client.send(device, message)).result.constructor.name });
  }
  await records;
  const { result } = await client.invokeDeviceMethod(device, { methodName: 'greet', payload: { name: 'wörld' } });
  print({ method: result.status, payload: result.payload });
  await client.send('nobody', 'x').catch((error) => print({ nobody: error.name }));
  await client.close();
  print({ closed: true });
}

main().catch((error) => {
  console.error(error.stack, error.responseBody || '');
  process.exit(1);
});
