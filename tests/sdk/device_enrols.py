"""A device built on Microsoft's azure-iot-device that knows no hub: it registers at the provisioning service, signs in at
the hub that it is assigned, and prints every C2D message as one line of JSON.

Usage: device_enrols.py CA_FILE COUNT
Who it is comes from the environment: PROVISIONING_HOST, ID_SCOPE, REGISTRATION_ID, and KEY, or CERTIFICATE and
PRIVATE_KEY. With WEBSOCKETS in the environment both connections are WebSockets. PAYLOAD is JSON for the service.
Prints the registration as one line of JSON, then `subscribed`, and ends after COUNT messages.
"""

import json
import os
import queue
import sys

from azure.iot.device import IoTHubDeviceClient, ProvisioningDeviceClient, X509


def main():
    with open(sys.argv[1], encoding="ascii") as file:
        ca = file.read()
    environment = os.environ
    common = {"server_verification_cert": ca, "websockets": "WEBSOCKETS" in environment}
    who = {
        "provisioning_host": environment["PROVISIONING_HOST"],
        "registration_id": environment["REGISTRATION_ID"],
        "id_scope": environment["ID_SCOPE"],
    }
    key = environment.get("KEY")
    if key:
        client = ProvisioningDeviceClient.create_from_symmetric_key(symmetric_key=key, **who, **common)
    else:
        x509 = X509(environment["CERTIFICATE"], environment["PRIVATE_KEY"])
        client = ProvisioningDeviceClient.create_from_x509_certificate(x509=x509, **who, **common)
    if "PAYLOAD" in environment:
        client.provisioning_payload = json.loads(environment["PAYLOAD"])
    result = client.register()
    state = result.registration_state
    told = {
        "status": result.status,
        "hub": state.assigned_hub,
        "device": state.device_id,
        "substatus": state.sub_status,
        "payload": state.response_payload,
        "etag": bool(state.etag),
        "created": bool(state.created_date_time),
    }
    print(json.dumps(told), flush=True)

    at_hub = {"hostname": state.assigned_hub, "device_id": state.device_id, **common}
    if key:
        device = IoTHubDeviceClient.create_from_symmetric_key(symmetric_key=key, **at_hub)
    else:
        device = IoTHubDeviceClient.create_from_x509_certificate(x509=x509, **at_hub)
    received = queue.Queue(maxsize=100)
    device.on_message_received = received.put
    print("subscribed", flush=True)
    for _ in range(int(sys.argv[2])):
        message = received.get(timeout=60)
        print(json.dumps({"body": message.data.decode("utf-8")}), flush=True)
    device.shutdown()


main()
