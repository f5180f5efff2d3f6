// A device built on Microsoft's azure-iot-device. Usage: node device.js mqtt|mqtt-ws|amqp|amqp-ws|http
// with DEVICE_CONNECTION_STRING and NODE_EXTRA_CA_CERTS (the hub's CA) in the environment.
//
// Prints one JSON object a line: the twin at first (not over HTTPS), each C2D message, what became of its settlement,
// changes of desired properties. The property `settle` of a message says complete, reject or abandon; the default is
// complete. It answers the method `greet`. A message with the body `end` has it send its own message and end.

'use strict';
const { Client, Message } = require('azure-iot-device');
const mqtt = require('azure-iot-device-mqtt');
const amqp = require('azure-iot-device-amqp');
const http = require('azure-iot-device-http');

const transports = { mqtt: mqtt.Mqtt, 'mqtt-ws': mqtt.MqttWs, amqp: amqp.Amqp, 'amqp-ws': amqp.AmqpWs, http: http.Http };
const name = process.argv[2];
const hasTwin = name !== 'http';
const client = Client.fromConnectionString(process.env.DEVICE_CONNECTION_STRING, transports[name]);

const print = (value) => console.log(JSON.stringify(value));

async function onMessage(message) {
  const properties = Object.fromEntries(message.properties.propertyList.map(({ key, value }) => [key, value]));
  const body = message.getData().toString();
  print({
    message: message.messageId,
    correlationId: message.correlationId,
    contentType: message.contentType,
    contentEncoding: message.contentEncoding,
    properties,
    body,
  });
  const verb = properties.settle || properties['iothub-app-settle'] || 'complete';
  try {
    await client[verb](message);
    print({ settled: verb, message: message.messageId });
  } catch (error) {
    print({ settled: 'refused', verb, error: error.name });
    await client.complete(message);
  }
  if (body === 'end') {
    await end();
  }
}

async function end() {
  const event = new Message('from ' + name + ': grüße');
  event.messageId = 'd2c-1';
  event.contentType = 'text/plain';
  event.contentEncoding = 'utf-8';
  event.properties.add('kind', 'a=b&c%d');
  await client.sendEvent(event);
  if (name === 'http') {
    // The only transport of this SDK that sends batches.
    await client.sendEventBatch(['one', 'two'].map((text) => new Message(text)));
  }
  await client.close();
  print('closed');
}

async function main() {
  await client.open();
  client.on('error', (error) => print({ error: error.name }));
  client.on('message', (message) => onMessage(message).catch(fail));
  if (!hasTwin) {
    await client.setTransportOptions({ interval: 0.1, drain: true });
    return;
  }
  client.onDeviceMethod('greet', (request, response) =>
    response.send(200, { greets: request.payload }).catch(fail),
  );
  const twin = await client.getTwin();
  print({ twin: { desired: twin.properties.desired.$version, reported: twin.properties.reported.$version } });
  // The SDK gives each change without its version; the first call is for what there is.
  twin.on('properties.desired', (desired) => print({ desired }));
  await new Promise((resolve, reject) =>
    twin.properties.reported.update({ from: name, text: 'grüße' }, (error) => (error ? reject(error) : resolve())),
  );
  print({ reported: name });
}

function fail(error) {
  // The whole error would have each field of the sockets.
  console.error(error.stack, error.responseBody || '');
  process.exit(1);
}

main().catch(fail);
