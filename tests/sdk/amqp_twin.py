"""A device on uamqp, an AMQP 1.0 client that is neither ours nor knows IoT Hub: uses its twin over a pair of links.

Usage: amqp_twin.py HOST PORT DEVICE, with DEVICE_KEY (base64) and SSL_CERT_FILE (the hub's CA) in the environment.
Gets its twin, patches what it reports, subscribes to desired properties (PUT) and prints `subscribed`; takes two changes,
unsubscribes (DELETE), and gets its twin again. Each answer and change is one line of JSON: its correlation id, status,
version, resource and body.
"""

import json
import sys
import time

import uamqp
from uamqp import ReceiveClient, constants, types
from uamqp.sender import MessageSender

from amqp_sign_in import sign_in

CORRELATION = types.AMQPSymbol(b"com.microsoft:channel-correlation-id")
DESIRED = "/notifications/twin/properties/desired"


class Twin:
    def __init__(self, host, port, device):
        address = f"amqps://{host}:{port}/devices/{device}/twin"
        # As SDKs do: what is sent is settled, and taking it is enough.
        settled = {
            "send_settle_mode": constants.SenderSettleMode.Settled,
            "receive_settle_mode": constants.ReceiverSettleMode.ReceiveAndDelete,
        }
        common = {CORRELATION: "twin:5c0e"}
        auth = sign_in(host, port, device)
        self.client = ReceiveClient(address, auth=auth, prefetch=10, link_properties=common, **settled)
        self.client.open()
        while not self.client.client_ready():
            time.sleep(0.01)
        # pylint: disable=protected-access
        target = uamqp.address.Target(address)
        self.sender = MessageSender(self.client._session, "device", target, properties=common, **settled)
        self.sender.open()
        while self.sender.get_state() != constants.MessageSenderState.Open:
            self.client.do_work()

    def ask(self, correlation_id, operation, resource=None, body=" "):
        annotations = {types.AMQPSymbol(b"operation"): operation}
        if resource:
            annotations[types.AMQPSymbol(b"resource")] = resource
        properties = uamqp.message.MessageProperties(correlation_id=correlation_id)
        message = uamqp.Message(body, annotations=annotations, properties=properties)
        self.sender.send(message, lambda *_: None)
        self.show()

    def show(self):
        while True:
            for message in self.client.receive_message_batch(max_batch_size=1, timeout=1000):
                annotations = message.annotations or {}
                text = lambda value: value.decode() if isinstance(value, bytes) else value
                correlation_id = message.properties and message.properties.correlation_id
                body = b"".join(message.get_data())
                line = {name: text(annotations.get(name.encode())) for name in ("status", "version", "resource")}
                line["id"] = text(correlation_id)
                line["body"] = json.loads(body) if body else None
                print(json.dumps(line), flush=True)
                return


def main():
    twin = Twin(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    twin.ask("1", "GET")
    twin.ask("2", "PATCH", "/properties/reported", json.dumps({"led": "on"}))
    twin.ask("3", "PATCH", "/properties/reported", "[]")
    twin.ask("4", "PUT", DESIRED)
    print("subscribed", flush=True)
    twin.show()
    twin.show()
    twin.ask("5", "DELETE", DESIRED)
    twin.ask("6", "GET")
    twin.client.close()


main()
