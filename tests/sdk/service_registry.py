"""A back end built on Microsoft's azure-iot-hub: makes, reads, changes and deletes devices.

Usage: service_registry.py, with SERVICE_CONNECTION_STRING (a policy with registry rights) and REQUESTS_CA_BUNDLE (the hub's
CA) in the environment.
Makes `new-1` with keys of its own, `new-2` with keys that the hub makes, and `cert-1` with thumbprints; disables and enables
`new-1`; deletes `cert-1`. Makes the edge device `edge-1` and its child `child-1`, and `ca-1`, which signs in with a certificate of
an authority. Changes six devices in one request, one of which does not exist. Prints one JSON object with what the SDK saw,
statuses of refused requests among it.
"""

import base64
import json
import os

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import ExportImportDevice
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
    made = registry.create_device_with_sas("new-1", keys[0], keys[1], "enabled")
    again = status_of(registry.create_device_with_sas, "new-1", keys[0], keys[1], "enabled")
    without = registry.create_device_with_sas("new-2", None, None, "enabled")
    x509 = registry.create_device_with_x509("cert-1", "ab" * 20, "CD" * 32, "enabled")
    disabled = registry.update_device_with_sas("new-1", made.etag, keys[0], keys[1], "disabled")
    stale = status_of(registry.update_device_with_sas, "new-1", made.etag, keys[0], keys[1], "enabled")
    registry.update_device_with_sas("new-1", None, keys[0], keys[1], "enabled")
    listed = sorted(device.device_id for device in registry.get_devices())
    first = [device.device_id for device in registry.get_devices(1)]
    registry.delete_device("cert-1", x509.etag)
    edge = registry.create_device_with_sas("edge-1", None, None, "enabled", iot_edge=True, status_reason="first")
    child = registry.create_device_with_sas("child-1", None, None, "enabled", device_scope=edge.device_scope)
    authority = registry.create_device_with_certificate_authority("ca-1", "enabled")
    bulk = [ExportImportDevice(id="bulk-%d" % n, import_mode="create", tags={"n": n}) for n in range(5)]
    result = registry.bulk_create_or_update_devices(bulk + [ExportImportDevice(id="none", import_mode="update")])
    statistics = registry.get_device_registry_statistics()
    twin = registry.get_twin("bulk-3")
    seen = {
        "edge": [edge.capabilities.iot_edge, edge.status_reason, edge.parent_scopes],
        "child": [child.device_scope == edge.device_scope, child.parent_scopes == [edge.device_scope]],
        "authority": authority.authentication.type,
        "bulk": [result.is_successful, [[error.device_id, error.error_code] for error in result.errors]],
        "counts": [statistics.total_device_count, statistics.disabled_device_count],
        "connected": registry.get_service_statistics().connected_device_count,
        "twin": [twin.tags, twin.authentication_type, twin.device_etag == registry.get_device("bulk-3").etag],
        "kept_keys": made.authentication.symmetric_key.primary_key == keys[0],
        "made_keys": len(base64.b64decode(without.authentication.symmetric_key.primary_key)),
        "type": x509.authentication.type,
        "thumbprint": x509.authentication.x509_thumbprint.primary_thumbprint,
        "again": again,
        "disabled": disabled.status,
        "stale": stale,
        "enabled": registry.get_device("new-1").status,
        "listed": listed,
        "first": first,
        "deleted": status_of(registry.get_device, "cert-1"),
        "delete_again": status_of(registry.delete_device, "cert-1"),
    }
    print(json.dumps(seen), flush=True)
    registry.amqp_svc_client.disconnect_sync()


main()
