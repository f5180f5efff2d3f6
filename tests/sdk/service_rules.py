"""A back end built on Microsoft's azure-iot-hub: sets rules of the agent in the twin, and waits for the answer.

Usage: service_rules.py DEVICE NAME TEXT, with SERVICE_CONNECTION_STRING and REQUESTS_CA_BUNDLE (the hub's CA) in the
environment. TEXT holds [[rule]] tables. Prints what the agent reports of the desired properties: one JSON object.
"""

import json
import os
import sys
import time

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import Twin, TwinProperties

# Seconds; the agent looks at the twin at most once a second.
LIMIT = 30


def main():
    device, name, text = sys.argv[1:]
    service = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"])
    patch = Twin(properties=TwinProperties(desired={"c2dAgent": {"rules": {name: text}}}))
    twin = service.update_twin(device, patch, service.get_twin(device).etag)
    version = twin.properties.desired["$version"]
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        reported = service.get_twin(device).properties.reported
        answer = (reported.get("c2dAgent") or {}).get("desired") or {}
        if answer.get("version") == version:
            print(json.dumps(answer), flush=True)
            break
        time.sleep(0.1)
    else:
        sys.exit(f"version {version} was not answered in {LIMIT} s: {reported}")
    service.amqp_svc_client.disconnect_sync()


main()
