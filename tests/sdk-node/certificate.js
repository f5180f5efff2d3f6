// A device built on Microsoft's azure-iot-device that signs in with a certificate, over each transport after the other.
// Usage: node certificate.js HOST DEVICE CERTIFICATE KEY, with NODE_EXTRA_CA_CERTS (the hub's CA) in the environment.
// Sends a message over each, whose body is the transport's name, and prints the name when the hub has taken it.

'use strict';
const fs = require('node:fs');
const { Client, Message } = require('azure-iot-device');
const mqtt = require('azure-iot-device-mqtt');
const amqp = require('azure-iot-device-amqp');
const http = require('azure-iot-device-http');

const [host, device, certificate, key] = process.argv.slice(2);
const transports = { mqtt: mqtt.Mqtt, 'mqtt-ws': mqtt.MqttWs, amqp: amqp.Amqp, 'amqp-ws': amqp.AmqpWs, http: http.Http };

async function main() {
  for (const [name, transport] of Object.entries(transports)) {
    const client = Client.fromConnectionString(`HostName=${host};DeviceId=${device};x509=true`, transport);
    // Not awaited: over HTTPS, the SDK never says that options without a policy of receiving are set.
    client.setOptions({ cert: fs.readFileSync(certificate, 'utf8'), key: fs.readFileSync(key, 'utf8') });
    await client.open();
    await client.sendEvent(new Message(name));
    await client.close();
    console.log(name);
  }
}

main().catch((error) => {
  console.error(error.stack, error.responseBody || '');
  process.exit(1);
});
