"""A device on uamqp: uses its twin over a pair of links.

Usage: amqp_twin.py HOST PORT DEVICE, with DEVICE_KEY (base64) and SSL_CERT_FILE (the hub's CA) in the environment.
Gets its twin, patches what it reports, subscribes to desired properties (PUT) and prints `subscribed`; takes two changes,
unsubscribes (DELETE), and gets its twin again. Each answer and change is one line of JSON: its correlation id, status,
version, resource and body.
"""

import json
import sys

import uamqp
from uamqp import types

from amqp_pair import Pair, text

DESIRED = "/notifications/twin/properties/desired"


class Twin:
    def __init__(self, pair):
        self.pair = pair

    def ask(self, correlation_id, operation, resource=None, body=" "):
        annotations = {types.AMQPSymbol(b"operation"): operation}
        if resource:
            annotations[types.AMQPSymbol(b"resource")] = resource
        properties = uamqp.message.MessageProperties(correlation_id=correlation_id)
        self.pair.send(uamqp.Message(body, annotations=annotations, properties=properties))
        self.show()

    def show(self):
        message = self.pair.receive()
        annotations = message.annotations or {}
        body = b"".join(message.get_data())
        line = {name: text(annotations.get(name.encode())) for name in ("status", "version", "resource")}
        line["id"] = text(message.properties and message.properties.correlation_id)
        line["body"] = json.loads(body) if body else None
        print(json.dumps(line), flush=True)


def main():
    twin = Twin(Pair(sys.argv[1], int(sys.argv[2]), sys.argv[3], "twin", "twin:5c0e"))
    twin.ask("1", "GET")
    twin.ask("2", "PATCH", "/properties/reported", json.dumps({"led": "on"}))
    twin.ask("3", "PATCH", "/properties/reported", "[]")
    twin.ask("4", "PUT", DESIRED)
    print("subscribed", flush=True)
    twin.show()
    twin.show()
    twin.ask("5", "DELETE", DESIRED)
    twin.ask("6", "GET")
    twin.pair.close()


main()
