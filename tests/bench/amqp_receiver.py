"""The same work as the agent's, done by uamqp: takes C2D messages over AMQP, one line for each.

Usage: amqp_receiver.py HOST PORT DEVICE, with DEVICE_KEY (base64) and SSL_CERT_FILE (the hub's CA) in the environment, and
tests/sdk in PYTHONPATH; with WEBSOCKETS there, too, over a WebSocket, which uamqp dials on port 443.
Prints `subscribed`, and `got` when it has a message, which it then accepts.
"""

import sys
import time

from uamqp import ReceiveClient

from amqp_sign_in import sign_in


def main():
    host, port, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    source = f"amqps://{host}:{port}/devices/{device}/messages/deviceBound"
    client = ReceiveClient(source, auth=sign_in(host, port, device), prefetch=32)
    client.open()
    while not client.client_ready():
        time.sleep(0.001)
    print("subscribed", flush=True)
    # pylint: disable=protected-access
    # It accepts each when the function is done. Its own loop would sleep for 50 ms whenever nothing has come.
    client._message_received_callback = lambda _: print("got", flush=True)
    client._streaming_receive = True
    while True:
        client.message_handler.work()
        client._connection.work()
        time.sleep(0.0001)


main()
