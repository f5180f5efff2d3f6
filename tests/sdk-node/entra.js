// A back end built on Microsoft's azure-iothub that signs in with @azure/identity. Usage: node entra.js amqp|amqp-ws HOST DEVICE
// with AZURE_AUTHORITY_HOST, AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and NODE_EXTRA_CA_CERTS (the hub's CA) in the
// environment.
//
// Reads a twin over HTTPS and sends a message over AMQP. Prints one JSON object a line.

'use strict';
const { ClientSecretCredential } = require('@azure/identity');
const { Client, Registry } = require('azure-iothub');
const { Amqp } = require('azure-iothub/dist/amqp');
const { AmqpWs } = require('azure-iothub/dist/amqp_ws');

const [transport, host, device] = process.argv.slice(2);
const { AZURE_TENANT_ID: tenant, AZURE_CLIENT_ID: id, AZURE_CLIENT_SECRET: secret, AZURE_AUTHORITY_HOST: authorityHost } = process.env;
const print = (value) => console.log(JSON.stringify(value));

async function main() {
  // Discovery would ask Microsoft whether the authority is one of its own.
  const credential = new ClientSecretCredential(tenant, id, secret, { authorityHost, disableInstanceDiscovery: true });
  const registry = Registry.fromTokenCredential(host, credential);
  print({ twin: (await registry.getTwin(device)).responseBody.deviceId });
  const client = Client.fromTokenCredential(host, credential, { amqp: Amqp, 'amqp-ws': AmqpWs }[transport]);
  await client.open();
  print({ sent: (await client.send(device, 'from node')).result.constructor.name });
  await client.close();
  print({ closed: true });
}

main().catch((error) => {
  print({ failed: error.name, message: String(error.message) });
  process.exit(1);
});
