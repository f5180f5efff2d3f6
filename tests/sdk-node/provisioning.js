// A device built on Microsoft's azure-iot-provisioning-device: asks for its hub, and then sends a message there.
// Usage: node provisioning.js mqtt|mqtt-ws|amqp|amqp-ws|http HOST SCOPE REGISTRATION, with NODE_EXTRA_CA_CERTS in the
// environment. The proof is SYMMETRIC_KEY, or the files CERTIFICATE and PRIVATE_KEY; PAYLOAD is JSON for the service.
//
// Prints one JSON object a line: what the service has answered, then what was sent; or the error.

'use strict';
const fs = require('node:fs');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');
const { Client, Message } = require('azure-iot-device');

const [name, host, scope, registration] = process.argv.slice(2);
const protocol = name.split('-')[0];
const kind = { mqtt: 'Mqtt', 'mqtt-ws': 'MqttWs', amqp: 'Amqp', 'amqp-ws': 'AmqpWs', http: 'Http' }[name];
const Transport = require(`azure-iot-provisioning-device-${protocol}`)[kind];
const DeviceTransport = require(`azure-iot-device-${protocol}`)[kind];

const { SYMMETRIC_KEY: symmetricKey, CERTIFICATE: certificate, PRIVATE_KEY: privateKey, PAYLOAD: payload } = process.env;
const pair = certificate && { cert: fs.readFileSync(certificate, 'utf8'), key: fs.readFileSync(privateKey, 'utf8') };
const print = (value) => console.log(JSON.stringify(value));

async function main() {
  const security = pair ? new X509Security(registration, pair) : new SymmetricKeySecurityClient(registration, symmetricKey);
  const provisioning = ProvisioningDeviceClient.create(host, scope, new Transport(), security);
  if (payload) provisioning.setProvisioningPayload(JSON.parse(payload));
  const state = await provisioning.register();
  print(state);

  const place = `HostName=${state.assignedHub};DeviceId=${state.deviceId}`;
  const device = Client.fromConnectionString(`${place};${pair ? 'x509=true' : `SharedAccessKey=${symmetricKey}`}`, DeviceTransport);
  // Not awaited: over HTTPS, the SDK never says that options without a policy of receiving are set.
  if (pair) device.setOptions(pair);
  await device.open();
  await device.sendEvent(new Message(name));
  await device.close();
  print({ sent: name });
}

main().catch((error) => {
  // Over AMQP, an error of the service is the object of the AMQP library.
  print({ error: error.name ?? error.condition, message: error.message, said: error.description ?? error.responseBody });
  process.exit(1);
});
