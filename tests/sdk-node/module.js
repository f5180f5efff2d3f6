// A module built on Microsoft's azure-iot-device, which knows its hub from nothing but its environment: IOTEDGE_… as
// edgeAgent gives it, or EdgeHubConnectionString and EdgeModuleCACertificateFile. With WEBSOCKETS it comes over a
// WebSocket.
//
// Prints `ready` when it is connected; then each message to an input as one line of JSON, which it sends on to its
// output `out` with its body in capitals; answers the method `greet`, and reports `last` in its twin. The method ends it.

'use strict';
const { Message, ModuleClient } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');

async function main() {
  const client = await ModuleClient.fromEnvironment('WEBSOCKETS' in process.env ? MqttWs : Mqtt);
  await client.open();
  const twin = await client.getTwin();
  client.on('inputMessage', async (input, message) => {
    try {
      const body = message.getData().toString();
      await client.complete(message);
      const properties = Object.fromEntries(message.properties.propertyList.map(({ key, value }) => [key, value]));
      console.log(JSON.stringify({ input, body, properties, desired: twin.properties.desired.level }));
      const answer = new Message(body.toUpperCase());
      answer.properties.add('answers', message.messageId);
      await client.sendOutputEvent('out', answer);
    } catch (error) {
      fail(error);
    }
  });
  client.onMethod('greet', async (request, response) => {
    try {
      await new Promise((resolve, reject) =>
        twin.properties.reported.update({ last: request.methodName }, (error) => (error ? reject(error) : resolve())),
      );
      await response.send(200, { greets: request.payload });
      await client.close();
    } catch (error) {
      fail(error);
    }
  });
  console.log('ready');
}

function fail(error) {
  console.error(error.stack);
  process.exit(1);
}

main().catch(fail);
