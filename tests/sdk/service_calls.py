"""A back end built on Microsoft's azure-iot-hub: writes a twin under conditions, and calls direct methods.

Usage: service_calls.py DEVICE, with SERVICE_CONNECTION_STRING and REQUESTS_CA_BUNDLE (the hub's CA) in the environment. DEVICE
runs device_serves.py.
Prints one JSON object with what the SDK saw, statuses of refused requests among it.
"""

import json
import os
import sys

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties
from msrest.exceptions import HttpOperationError


def refused(call, *arguments):
    try:
        call(*arguments)
    except HttpOperationError as error:
        return [error.response.status_code, error.response.headers.get("iothub-errorcode")]
    return None


def main():
    device = sys.argv[1]
    service = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"])

    def call(name, payload=None, **times):
        method = CloudToDeviceMethod(method_name=name, payload=payload, **times)
        answer = service.invoke_device_method(device, method)
        return [answer.status, answer.payload]

    first = service.get_twin(device)
    patch = Twin(tags={"room": "kitchen"}, properties=TwinProperties(desired={"led": {"on": True, "level": 3}}))
    patched = service.update_twin(device, patch, first.etag)
    stale = refused(service.update_twin, device, patch, first.etag)
    # The whole twin goes back, with everything that the hub added.
    patched.properties.desired = {"led": {"on": False}}
    replaced = service.replace_twin(device, patched, patched.etag)
    replaced_stale = refused(service.replace_twin, device, patched, first.etag)
    anyhow = service.update_twin(device, Twin(tags={"room": None}))
    silent = CloudToDeviceMethod(method_name="silent", response_timeout_in_seconds=5)
    seen = {
        "etags": len({first.etag, patched.etag, replaced.etag, anyhow.etag}),
        "patched": patched.tags,
        "stale": stale,
        "replaced": replaced.properties.desired,
        "replaced_stale": replaced_stale,
        "tags": anyhow.tags,
        "echo": call("echo", {"text": "grüße", "list": [1, None]}),
        "nothing": call("echo"),
        "unknown": call("re boot/now", 1),
        "silent": refused(service.invoke_device_method, device, silent),
        "end": call("end", "bye", connect_timeout_in_seconds=5),
        "nowhere": refused(service.invoke_device_method, "no-such-device", silent),
    }
    print(json.dumps(seen), flush=True)
    service.amqp_svc_client.disconnect_sync()


main()
