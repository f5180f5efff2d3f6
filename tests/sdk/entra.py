"""A back end built on Microsoft's azure-iot-hub that signs in with azure-identity.

Usage: entra.py HOST DEVICE secret|certificate|managed, with AZURE_AUTHORITY_HOST, AZURE_TENANT_ID, AZURE_CLIENT_ID and
AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH or AZURE_POD_IDENTITY_AUTHORITY_HOST in the environment, and the hub's
CA in REQUESTS_CA_BUNDLE and SSL_CERT_FILE.
Writes a tag over HTTPS and sends a message over AMQP; prints one JSON object with what the hub said.
"""

import json
import os
import sys

from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CertificateCredential, ClientSecretCredential, ManagedIdentityCredential
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import Twin
from msrest.exceptions import HttpOperationError


def credential(kind):
    if kind == "managed":
        return ManagedIdentityCredential()
    app = {
        "tenant_id": os.environ["AZURE_TENANT_ID"],
        "client_id": os.environ["AZURE_CLIENT_ID"],
        "authority": os.environ["AZURE_AUTHORITY_HOST"],
        # It would ask Microsoft whether the authority is one of its own.
        "disable_instance_discovery": True,
    }
    if kind == "certificate":
        return CertificateCredential(certificate_path=os.environ["AZURE_CLIENT_CERTIFICATE_PATH"], **app)
    return ClientSecretCredential(client_secret=os.environ["AZURE_CLIENT_SECRET"], **app)


def main():
    host, device, kind = sys.argv[1:]
    seen = {}
    try:
        service = IoTHubRegistryManager.from_token_credential(host, credential(kind))
    except ClientAuthenticationError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    seen["twin"] = service.get_twin(device).device_id
    try:
        seen["tags"] = service.update_twin(device, Twin(tags={"room": kind})).tags
    except HttpOperationError as error:
        seen["patch"] = [error.response.status_code, error.response.json()["Message"]]
    try:
        service.send_c2d_message(device, f"from {kind}", {"action": "write"})
        seen["sent"] = True
    except Exception as error:  # uamqp has many kinds
        seen["sent"] = str(error)
    print(json.dumps(seen), flush=True)
    service.amqp_svc_client.disconnect_sync()


main()
