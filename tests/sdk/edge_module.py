"""A module built on Microsoft's azure-iot-device, started as edgeAgent starts it: with nothing but its environment.

Prints `ready` when it is connected; then each input message as one line of JSON, which it sends on to its output `out`
with its body in capitals; answers methods with their own name and payload, and reports `last` in its twin. Ends after the method `end`.
"""

import json
import threading

from azure.iot.device import IoTHubModuleClient, Message, MethodResponse


def main():
    client = IoTHubModuleClient.create_from_edge_environment()
    ended = threading.Event()

    def on_message(message):
        line = {"input": message.input_name, "body": message.data.decode(), "properties": message.custom_properties}
        print(json.dumps(line), flush=True)
        answer = Message(message.data.decode().upper())
        answer.custom_properties["answers"] = message.message_id
        client.send_message_to_output(answer, "out")

    def on_method(request):
        client.patch_twin_reported_properties({"last": request.name})
        payload = {"name": request.name, "given": request.payload}
        client.send_method_response(MethodResponse.create_from_method_request(request, 200, payload))
        if request.name == "end":
            ended.set()

    client.on_message_received = on_message
    client.on_method_request_received = on_method
    client.connect()
    print("ready", flush=True)
    ended.wait()
    client.shutdown()


main()
