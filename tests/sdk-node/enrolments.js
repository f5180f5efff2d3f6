// A back end built on Microsoft's azure-iot-provisioning-service. Usage: node enrolments.js CA_FILE
// with SERVICE_CONNECTION_STRING (policy provisioningserviceowner) and NODE_EXTRA_CA_CERTS in the environment. The
// device `seen` has registered when it begins. Prints one JSON object a line.

'use strict';
const fs = require('node:fs');
const { ProvisioningServiceClient } = require('azure-iot-provisioning-service');

const client = ProvisioningServiceClient.fromConnectionString(process.env.SERVICE_CONNECTION_STRING);
const print = (value) => console.log(JSON.stringify(value));
/** The SDK's name of what goes wrong; fails when nothing does. */
const failure = (call) => call.then(() => 'none', (error) => error.name);
const key = (byte) => Buffer.alloc(32, byte).toString('base64');
const keyed = (registrationId) => ({
  registrationId,
  attestation: { type: 'symmetricKey', symmetricKey: { primaryKey: key(1), secondaryKey: key(2) } },
});
const all = async (query) => {
  const pages = [];
  do {
    // Without an argument the SDK forgets where it was.
    const { responseBody: rows } = await query.next(query.continuationToken);
    pages.push(rows.map(({ registrationId, enrollmentGroupId }) => registrationId ?? enrollmentGroupId));
  } while (query.hasMoreResults && pages.length < 9);
  return pages;
};

async function main() {
  const { responseBody: made } = await client.createOrUpdateIndividualEnrollment(keyed('one'));
  const { responseBody: changed } = await client.createOrUpdateIndividualEnrollment({ ...made, deviceId: 'pump-7' });
  print({
    made: made.registrationId,
    changed: changed.deviceId,
    stale: await failure(client.createOrUpdateIndividualEnrollment({ ...made, deviceId: 'pump-8' })),
    again: await failure(client.createOrUpdateIndividualEnrollment(keyed('one'))),
    wrong: await failure(client.createOrUpdateIndividualEnrollment({ registrationId: 'tpm', attestation: { type: 'tpm' } })),
  });
  const { responseBody: mechanism } = await client.getIndividualEnrollmentAttestationMechanism('one');
  const { responseBody: got } = await client.getIndividualEnrollment('one');
  print({ keeps: mechanism.symmetricKey.primaryKey === key(1), status: got.provisioningStatus, sameEtag: got.etag === changed.etag });

  const certificate = fs.readFileSync(process.argv[2], 'utf8');
  const { responseBody: group } = await client.createOrUpdateEnrollmentGroup({
    enrollmentGroupId: 'fleet',
    attestation: { type: 'x509', x509: { signingCertificates: { primary: { certificate } } } },
    provisioningStatus: 'disabled',
  });
  print({ group: group.provisioningStatus, subject: group.attestation.x509.signingCertificates.primary.info.subjectName });

  // The SDK's promise of this call never ends, so it gets a callback.
  const bulk = (mode, ids) => new Promise((done, failed) => {
    const operation = { mode, enrollments: ids.map(keyed) };
    client.runBulkEnrollmentOperation(operation, (error, result) => (error ? failed(error) : done(result)));
  });
  const created = await bulk('create', ['two', 'three']);
  const half = await bulk('create', ['three', 'four']);
  print({ created: created.isSuccessful, half: half.errors.map(({ registrationId }) => registrationId) });
  print({
    pages: await all(client.createIndividualEnrollmentQuery({ query: 'SELECT * FROM enrollments' }, 3)),
    groups: await all(client.createEnrollmentGroupQuery({ query: 'SELECT * FROM enrollmentGroups' }, 3)),
  });

  const { responseBody: state } = await client.getDeviceRegistrationState('seen');
  print({ registration: state.status, device: state.deviceId });
  await client.deleteDeviceRegistrationState(state);
  await client.deleteIndividualEnrollment(changed);
  await client.deleteEnrollmentGroup('fleet');
  print({
    gone: await failure(client.getDeviceRegistrationState('seen')),
    enrolment: await failure(client.getIndividualEnrollment('one')),
    group: await failure(client.getEnrollmentGroup('fleet')),
  });
}

main().catch((error) => {
  console.error(error.stack, error.responseBody || '');
  process.exit(1);
});
