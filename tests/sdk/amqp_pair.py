"""The pair of links that a twin or the methods of a device need, with uamqp: for the programs beside this one.

uamqp is an AMQP 1.0 client that is neither ours nor knows IoT Hub.
"""

import time

import uamqp
from uamqp import ReceiveClient, constants, types
from uamqp.sender import MessageSender

from amqp_sign_in import sign_in

CORRELATION = types.AMQPSymbol(b"com.microsoft:channel-correlation-id")


class Pair:
    """One link each way, both at the same address."""

    def __init__(self, host, port, device, path, correlation):
        address = f"amqps://{host}:{port}/devices/{device}/{path}"
        # As SDKs do: what is sent is settled, and taking it is enough.
        settled = {
            "send_settle_mode": constants.SenderSettleMode.Settled,
            "receive_settle_mode": constants.ReceiverSettleMode.ReceiveAndDelete,
        }
        common = {CORRELATION: correlation}
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

    def send(self, message):
        self.sender.send(message, lambda *_: None)

    def receive(self):
        while True:
            for message in self.client.receive_message_batch(max_batch_size=1, timeout=1000):
                return message

    def close(self):
        self.client.do_work()
        self.client.close()


def text(value):
    return value.decode() if isinstance(value, bytes) else value
