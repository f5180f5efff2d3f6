"""A back end built on Microsoft's azure-iot-hub: calls direct methods of a device, or of a module of it.

Usage: service_invokes.py DEVICE [MODULE], with SERVICE_CONNECTION_STRING and REQUESTS_CA_BUNDLE (the hub's CA) in the
environment. Reads one JSON array a line, [METHOD, PAYLOAD], and prints for each what the SDK got: [STATUS, PAYLOAD].
"""

import json
import os
import sys

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod


def main():
    service = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"])
    device, module = sys.argv[1], sys.argv[2:]
    for line in sys.stdin:
        name, payload = json.loads(line)
        method = CloudToDeviceMethod(method_name=name, payload=payload)
        if module:
            answer = service.invoke_device_module_method(device, module[0], method)
        else:
            answer = service.invoke_device_method(device, method)
        print(json.dumps([answer.status, answer.payload]), flush=True)
    service.amqp_svc_client.disconnect_sync()


main()
