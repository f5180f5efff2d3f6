"""A back end built on Microsoft's azure-iot-hub: reads a twin.

Usage: service_twin.py DEVICE, with SERVICE_CONNECTION_STRING and REQUESTS_CA_BUNDLE (the hub's CA) in the environment.
Prints one JSON object: the twin's device_id, connection_state and reported properties, and the HTTP status that the
SDK reports for a device that is not there.
"""

import json
import os
import sys

from azure.iot.hub import IoTHubRegistryManager
from msrest.exceptions import HttpOperationError


def main():
    service = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"])
    twin = service.get_twin(sys.argv[1])
    missing = None
    try:
        service.get_twin("no-such-device")
    except HttpOperationError as error:
        missing = error.response.status_code
    seen = {
        "device_id": twin.device_id,
        "connection_state": twin.connection_state,
        "reported": twin.properties.reported,
        "missing": missing,
    }
    print(json.dumps(seen), flush=True)
    service.amqp_svc_client.disconnect_sync()


main()
