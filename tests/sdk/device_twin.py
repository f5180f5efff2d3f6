"""A device built on Microsoft's azure-iot-device: gets its twin, and patches what it reports.

Usage: device_twin.py CA_FILE PATCH..., with DEVICE_CONNECTION_STRING in the environment.
Prints the twin as one line of JSON before the first patch and after each, then sends a D2C message and prints
{"sent": true} when the hub has acknowledged it.
"""

import json
import os
import sys

from azure.iot.device import IoTHubDeviceClient, Message


def main():
    with open(sys.argv[1], encoding="ascii") as file:
        client = IoTHubDeviceClient.create_from_connection_string(
            os.environ["DEVICE_CONNECTION_STRING"], server_verification_cert=file.read()
        )
    print(json.dumps(client.get_twin()), flush=True)
    for patch in sys.argv[2:]:
        client.patch_twin_reported_properties(json.loads(patch))
        print(json.dumps(client.get_twin()), flush=True)
    message = Message('{"state": "done"}', content_encoding="utf-8", content_type="application/json")
    message.custom_properties["kind"] = "test"
    client.send_message(message)
    print(json.dumps({"sent": True}), flush=True)
    client.shutdown()


main()
