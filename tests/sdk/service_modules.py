"""A back end built on Microsoft's azure-iot-hub: makes, reads and deletes modules of the device `edge1`.

Usage: service_modules.py, with SERVICE_CONNECTION_STRING (a policy with registry rights) and REQUESTS_CA_BUNDLE (the hub's
CA) in the environment.
Makes `made` with keys of its own, and again; deletes it, and makes it anew with other keys. Prints one JSON object with what the
SDK saw, statuses of refused requests among it.
"""

import base64
import json
import os

from azure.iot.hub import IoTHubRegistryManager
from msrest.exceptions import HttpOperationError


def status_of(call, *arguments):
    try:
        call(*arguments)
    except HttpOperationError as error:
        return error.response.status_code
    return None


def main():
    registry = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"])
    keys = [base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2)]
    made = registry.create_module_with_sas("edge1", "made", "", keys[0], keys[1])
    again = status_of(registry.create_module_with_sas, "edge1", "made", "", keys[0], keys[1])
    listed = sorted(module.module_id for module in registry.get_modules("edge1"))
    registry.delete_module("edge1", "made", made.etag)
    gone = status_of(registry.get_module, "edge1", "made")
    anew = registry.create_module_with_sas("edge1", "made", "", keys[1], keys[0])
    seen = {
        "kept_keys": made.authentication.symmetric_key.primary_key == keys[0],
        "of": made.device_id,
        "again": again,
        "listed": listed,
        "gone": gone,
        "same_generation": anew.generation_id == made.generation_id,
        "nowhere": status_of(registry.create_module_with_sas, "none", "made", "", keys[0], keys[1]),
    }
    print(json.dumps(seen), flush=True)
    registry.amqp_svc_client.disconnect_sync()


main()
