"""The same work as the agent's, done by Microsoft's azure-iot-device: connects, does one thing per message, reports.

Usage: sdk_receiver.py CONNECTION_STRING CA_FILE WHAT COUNT, where WHAT is `nothing`, `child` (one process per
message), `latency` (the payload is the time of sending in nanoseconds of CLOCK_MONOTONIC) or `lines` (prints
`subscribed`, and `got` for each message). After COUNT messages it prints one line of JSON and ends; with COUNT 0 it stays
connected. With WEBSOCKETS in the environment it dials port 443.
"""

import json
import os
import sys
import threading
import time

from azure.iot.device import IoTHubDeviceClient


def main():
    connection_string, ca_file, what, count = sys.argv[1:]
    count = int(count)
    with open(ca_file, encoding="ascii") as file:
        client = IoTHubDeviceClient.create_from_connection_string(
            connection_string, server_verification_cert=file.read(), websockets="WEBSOCKETS" in os.environ
        )
    lock, done = threading.Lock(), threading.Event()
    state = {"seen": 0, "latencies": []}

    def handle(message):
        now = time.monotonic_ns()
        if what == "child":
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        elif what == "lines":
            print("got", flush=True)
        with lock:
            if state["seen"] == 0:
                state.update(begin=now, cpu=time.process_time())
            if what == "latency":
                state["latencies"].append(now - int(message.data))
            state["seen"] += 1
            if state["seen"] == count:
                state.update(end=time.monotonic_ns(), cpu=time.process_time() - state["cpu"])
                done.set()

    client.on_message_received = handle
    if what == "lines":
        print("subscribed", flush=True)
    done.wait()
    print(json.dumps(state), flush=True)
    client.shutdown()


main()
