"""A device built on Microsoft's azure-iot-device: answers direct methods, and prints its desired properties as they change.

Usage: device_serves.py CA_FILE, with DEVICE_CONNECTION_STRING in the environment; with WEBSOCKETS, too, it comes over a
WebSocket, which the SDK dials on port 443.
Prints `ready` when it listens; then one line of JSON for each patch of its desired properties. `echo` is answered with status
200 and what it was given, `silent` is not answered, `end` is answered and ends the program; any other method gets 404.
"""

import json
import os
import queue
import sys

from azure.iot.device import IoTHubDeviceClient, MethodResponse


def main():
    with open(sys.argv[1], encoding="ascii") as file:
        client = IoTHubDeviceClient.create_from_connection_string(
            os.environ["DEVICE_CONNECTION_STRING"],
            server_verification_cert=file.read(),
            websockets="WEBSOCKETS" in os.environ,
        )
    # The SDK calls the handlers on threads of its own, and a handful of requests are under way.
    requests = queue.Queue(maxsize=100)
    client.on_method_request_received = requests.put
    client.on_twin_desired_properties_patch_received = lambda patch: print(json.dumps(patch), flush=True)
    print("ready", flush=True)
    while True:
        request = requests.get(timeout=60)
        if request.name == "silent":
            continue
        known = request.name in ("echo", "end")
        payload = {"name": request.name, "given": request.payload}
        client.send_method_response(MethodResponse.create_from_method_request(request, 200 if known else 404, payload))
        if request.name == "end":
            break
    client.shutdown()


main()
