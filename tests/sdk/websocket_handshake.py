"""An independent WebSocket client: tries handshakes and frames against the emulator.

Usage: websocket_handshake.py HOST PORT CA_FILE
Prints one line of JSON for each trial: {"path", "offered", "status", "chosen", "says"}, where `status` is 101 or that of the
refusal, `chosen` the subprotocol of the answer, and `says` the body of a refusal. Then {"frame", "close", "reason"}
for frames that the emulator must close on, and {"frame": "ping", "answered": true}.
"""

import json
import ssl
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

MQTT_CONNECT_V5 = bytes([0x10, 0x0D, 0, 4]) + b"MQTT" + bytes([5, 2, 0, 60, 0, 0, 0])


def main():
    host, port, ca = sys.argv[1:]
    trust = ssl.create_default_context(cafile=ca)
    # This client reads and writes in two threads, which Python's TLS 1.3 does not stand: one handshake in a hundred hangs.
    trust.maximum_version = ssl.TLSVersion.TLSv1_2

    def dial(path, offered):
        return connect(f"wss://{host}:{port}{path}", ssl=trust, subprotocols=offered, compression=None, proxy=None)

    trials = [
        ("/$iothub/websocket", ["mqtt"]),
        ("/$iothub/websocket/?iothub-no-client-cert=true", ["mqtt"]),
        ("/%24iothub/websocket", ["mqttv3.1", "mqtt"]),
        ("/$iothub/websocket", ["AMQPWSB10"]),
        ("/$servicebus/websocket/", ["AMQPWSB10"]),
        ("/$iothub/websocket", ["chat"]),
        ("/$iothub/websocket", None),
        ("/$iothub/other", ["mqtt"]),
        ("/", ["mqtt"]),
    ]
    for path, offered in trials:
        seen = {"path": path, "offered": offered, "chosen": None, "says": ""}
        try:
            with dial(path, offered) as socket:
                seen |= {"status": 101, "chosen": socket.subprotocol}
        except InvalidStatus as error:
            seen |= {"status": error.response.status_code, "says": error.response.body.decode()}
        print(json.dumps(seen), flush=True)

    # Cut in three, and refused inside MQTT: CONNACK with code 1, in a binary frame.
    with dial("/$iothub/websocket", ["mqtt"]) as socket:
        for part in (MQTT_CONNECT_V5[:1], MQTT_CONNECT_V5[1:5], MQTT_CONNECT_V5[5:]):
            socket.send(part)
        answer = socket.recv(timeout=10)
        print(json.dumps({"frame": "connect", "answer": list(answer)}), flush=True)

    for name, frame in (("text", "hello"), ("large", bytes(600 * 1024))):
        with dial("/$iothub/websocket", ["mqtt"]) as socket:
            try:
                socket.send(frame)
                socket.recv(timeout=10)
            except ConnectionClosed as closed:
                received = closed.rcvd
                seen = {"close": received and received.code, "reason": received and received.reason}
                print(json.dumps({"frame": name} | seen), flush=True)

    with dial("/$iothub/websocket", ["mqtt"]) as socket:
        answered = socket.ping(b"here?").wait(timeout=10)
        print(json.dumps({"frame": "ping", "answered": answered}), flush=True)


main()
