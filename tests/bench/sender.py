"""A back end on uamqp that stays connected: sends one C2D message for each line that it reads.

Usage: sender.py HOST PORT DEVICE, with SERVICE_KEY (base64) and SSL_CERT_FILE (the hub's CA) in the environment, and
tests/sdk in PYTHONPATH. Prints `ready`; then, for each message that the hub has accepted, the time at which it was handed to AMQP, in
nanoseconds of CLOCK_MONOTONIC; and why, for one that it has refused.
"""

import os
import select
import sys
import time
import uuid

import uamqp
from uamqp import authentication, constants
from uamqp.sender import MessageSender

from amqp_sign_in import token

PROPERTIES = {"action": "toggle"}


class Sender:
    def __init__(self, host, port, device):
        self.to = f"/devices/{device}/messages/devicebound"
        password = token(host, os.environ["SERVICE_KEY"], int(time.time()) + 3600) + "&skn=service"
        hub = host.split(".")[0]
        auth = authentication.SASLPlain(
            host, f"service@sas.root.{hub}", password, port=port, verify=os.environ["SSL_CERT_FILE"]
        )
        self.client = uamqp.SendClient(f"amqps://{host}:{port}/messages/devicebound", auth=auth)
        self.client.open()
        while not self.client.client_ready():
            time.sleep(0.001)
        # pylint: disable=protected-access
        self.link: MessageSender = self.client.message_handler
        self.connection = self.client._connection
        # uamqp does not keep what it sends.
        self.unsettled = {}

    def send(self):
        handed = time.monotonic_ns()
        message_id = str(uuid.uuid4())
        properties = uamqp.message.MessageProperties(message_id=message_id, to=self.to)
        message = uamqp.Message(b"x" * 64, properties=properties, application_properties=PROPERTIES)

        def settled(_, result, delivery_state=None):
            del self.unsettled[message_id]
            accepted = constants.MessageSendResult(result) == constants.MessageSendResult.Ok
            print(handed if accepted else f"refused: {delivery_state}", flush=True)

        self.unsettled[message_id] = message
        self.link.send(message, settled)


def main():
    sender = Sender(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print("ready", flush=True)
    os.set_blocking(0, False)
    while True:
        # uamqp looks at its socket only when it is told to.
        sender.connection.work()
        if select.select([0], [], [], 0.0001)[0]:
            lines = os.read(0, 4096)
            if not lines:
                return sender.client.close()
            for _ in range(lines.count(b"\n")):
                sender.send()


main()
