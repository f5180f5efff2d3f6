"""A back end built on Microsoft's azure-iot-hub: sends C2D messages.

Usage: service_send.py DEVICE, with SERVICE_CONNECTION_STRING and SSL_CERT_FILE (the hub's CA) in the environment and
on standard input one message per line: {"body": TEXT, "properties": {NAME: VALUE, ...}}, where the SDK itself takes
messageId, correlationId, contentType and contentEncoding out of the properties. With "device" it is for that one.
With WEBSOCKETS in the environment it sends over a WebSocket, which the SDK dials on port 443.
Prints `sent N` when the hub has accepted all of them.
"""

import json
import os
import sys

from azure.iot.hub import IoTHubRegistryManager
from uamqp import TransportType


def main():
    transport = TransportType.AmqpOverWebsocket if "WEBSOCKETS" in os.environ else TransportType.Amqp
    service = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"], transport)
    sent = 0
    for line in sys.stdin:
        message = json.loads(line)
        service.send_c2d_message(message.get("device", sys.argv[1]), message["body"], message["properties"])
        sent += 1
    print(f"sent {sent}", flush=True)
    service.amqp_svc_client.disconnect_sync()


main()
