"""A device on uamqp, an AMQP 1.0 client that is neither ours nor knows IoT Hub: settles C2D messages by their body.

Usage: amqp_device.py HOST PORT DEVICE, with DEVICE_KEY (base64) and SSL_CERT_FILE (the hub's CA) in the environment.
Signs in by CBS, receives one message at a time, and does what its body says: accept, reject or release; or ends, at `end`.
Prints `ready`, and for each message its id, its delivery count and what was done.
"""

import sys
import time

from uamqp import ReceiveClient

from amqp_sign_in import sign_in


def main():
    host, port, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    auth = sign_in(host, port, device)
    source = f"amqps://{host}:{port}/devices/{device}/messages/deviceBound"
    client = ReceiveClient(source, auth=auth, prefetch=1, auto_complete=False)
    client.open()
    while not client.client_ready():
        time.sleep(0.01)
    print("ready", flush=True)
    while True:
        for message in client.receive_message_batch(max_batch_size=1, timeout=1000):
            body = b"".join(message.get_data()).decode()
            count = message.annotations.get(b"iothub-deliverycount")
            print(message.properties.message_id.decode(), count, body, flush=True)
            if body == "reject":
                message.reject()
            elif body == "release":
                message.release()
            else:
                message.accept()
            if body == "end":
                client.do_work()
                client.close()
                return


main()
