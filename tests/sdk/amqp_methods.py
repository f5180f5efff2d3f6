"""A device on uamqp: is called over a pair of links, and answers.

Usage: amqp_methods.py HOST PORT DEVICE, with DEVICE_KEY (base64) and SSL_CERT_FILE (the hub's CA) in the environment.
Prints `ready`; answers each call with its own name and payload and the status 200 (`unknown`: 404), and ends after the
method `end`. Each call is one line of JSON: the type of its correlation id, its name and its payload.
"""

import json
import sys

import uamqp

from amqp_pair import Pair, text


def main():
    pair = Pair(sys.argv[1], int(sys.argv[2]), sys.argv[3], "methods/devicebound", "methods:5c0e")
    print("ready", flush=True)
    name = None
    while name != "end":
        call = pair.receive()
        name = text(call.application_properties[b"IoThub-methodname"])
        payload = json.loads(b"".join(call.get_data()))
        correlation_id = call.properties.correlation_id
        print(json.dumps({"id": type(correlation_id).__name__, "name": name, "payload": payload}), flush=True)
        properties = uamqp.message.MessageProperties(correlation_id=correlation_id)
        status = {"IoThub-status": 404 if name == "unknown" else 200}
        body = json.dumps({"name": name, "given": payload})
        pair.send(uamqp.Message(body, properties=properties, application_properties=status))
    pair.close()


main()
