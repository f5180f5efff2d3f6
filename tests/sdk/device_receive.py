"""A device built on Microsoft's azure-iot-device: prints every C2D message as one line of JSON.

Usage: device_receive.py CA_FILE COUNT
Who it is comes from the environment: DEVICE_CONNECTION_STRING, or HOST, DEVICE_ID, CERTIFICATE and PRIVATE_KEY.
With WEBSOCKETS in the environment it comes over a WebSocket, which the SDK dials on port 443.
Prints `subscribed` when it listens, and ends after COUNT messages.
"""

import json
import os
import queue
import sys

from azure.iot.device import IoTHubDeviceClient, X509


def connect(ca):
    websockets = "WEBSOCKETS" in os.environ
    if "DEVICE_CONNECTION_STRING" in os.environ:
        return IoTHubDeviceClient.create_from_connection_string(
            os.environ["DEVICE_CONNECTION_STRING"], server_verification_cert=ca, websockets=websockets
        )
    return IoTHubDeviceClient.create_from_x509_certificate(
        x509=X509(os.environ["CERTIFICATE"], os.environ["PRIVATE_KEY"]),
        hostname=os.environ["HOST"],
        device_id=os.environ["DEVICE_ID"],
        server_verification_cert=ca,
        websockets=websockets,
    )


def as_json(message):
    return json.dumps(
        {
            "message_id": message.message_id,
            "correlation_id": message.correlation_id,
            "user_id": message.user_id,
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "properties": message.custom_properties,
            "body": message.data.decode("utf-8"),
        },
        sort_keys=True,
    )


def main():
    with open(sys.argv[1], encoding="ascii") as file:
        client = connect(file.read())
    # The SDK calls the handler on a thread of its own, and at most a handful of messages are under way.
    received = queue.Queue(maxsize=100)
    client.on_message_received = received.put
    print("subscribed", flush=True)
    for _ in range(int(sys.argv[2])):
        print(as_json(received.get(timeout=60)), flush=True)
    client.shutdown()


main()
