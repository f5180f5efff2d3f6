// A device built on Microsoft's azure-iot-provisioning-device that registers over one transport, and sends a message to
// the hub that it is assigned. Usage: node provisioning.js mqtt|mqtt-ws|amqp|amqp-ws|http HOST ID_SCOPE REGISTRATION_ID
// with KEY, or CERTIFICATE and PRIVATE_KEY (files), and NODE_EXTRA_CA_CERTS (the service's CA) in the environment.
// Prints the registration as one JSON object, and `sent` when the hub has taken the message.

'use strict';
const fs = require('node:fs');
const { Client, Message } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-provisioning-device-mqtt');
const { Amqp, AmqpWs } = require('azure-iot-provisioning-device-amqp');
const { Http } = require('azure-iot-provisioning-device-http');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');
const AtHub = require('azure-iot-device-mqtt').Mqtt;

const [name, host, scope, id] = process.argv.slice(2);
const transports = { mqtt: Mqtt, 'mqtt-ws': MqttWs, amqp: Amqp, 'amqp-ws': AmqpWs, http: Http };
const { KEY: key, CERTIFICATE: certificate, PRIVATE_KEY: privateKey } = process.env;
const pair = key ? undefined : { cert: fs.readFileSync(certificate, 'utf8'), key: fs.readFileSync(privateKey, 'utf8') };

async function main() {
  const security = key ? new SymmetricKeySecurityClient(id, key) : new X509Security(id, pair);
  const client = ProvisioningDeviceClient.create(host, scope, new transports[name](), security);
  client.setProvisioningPayload({ site: 12 });
  const { status, substatus, assignedHub, deviceId, payload } = await client.register();
  console.log(JSON.stringify({ status, substatus, assignedHub, deviceId, payload }));

  const proof = key ? `SharedAccessKey=${key}` : 'x509=true';
  const device = Client.fromConnectionString(`HostName=${assignedHub};DeviceId=${deviceId};${proof}`, AtHub);
  if (pair) {
    device.setOptions(pair);
  }
  await device.open();
  await device.sendEvent(new Message('from ' + id));
  await device.close();
  console.log('sent');
}

main().catch((error) => {
  console.error(error.stack, error.responseBody || '');
  process.exit(1);
});
