"""What `az iot hub monitor-events` does to find the D2C messages of a hub: it lets the hub redirect it.

Usage: monitor_events.py HOST PARTITION CA_FILE, with POLICY_KEY (base64, of the policy `service`) and SSL_CERT_FILE
(the same CA) in the environment. Prints the redirect as its AMQP library reports it, as JSON: first as the extension
does it now (the AMQP of azure-eventhub, by CBS), then as older versions do (uamqp, with PLAIN in the address), and then
what uamqp reads from the partition with the filter of those versions.
Source: hub_target_builder.py and monitor.py of the extension of `az` for IoT. No code of it is here.
"""

import json
import os
import sys
import time
import urllib.parse
from collections import namedtuple

import uamqp
from amqp_sign_in import token
from azure.eventhub._pyamqp import ReceiveClient
from azure.eventhub._pyamqp.authentication import _CBSAuth
from azure.eventhub._pyamqp.error import AMQPLinkRedirect

HOST, PARTITION, CA_FILE = sys.argv[1], sys.argv[2], sys.argv[3]
KEY = os.environ["POLICY_KEY"]
ACCESS = namedtuple("ACCESS", ["token", "expires_on"])


def sas(resource):
    return token(resource, KEY, int(time.time()) + 360) + "&skn=service"


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def by_cbs():
    source = f"amqps://{HOST}/messages/events/$management"
    auth = _CBSAuth(
        uri=source,
        audience=HOST,
        token_type=b"servicebus.windows.net:sastoken",
        get_token=lambda: ACCESS(sas(HOST), time.time() + 360),
        expires_in=360,
    )
    client = ReceiveClient(hostname=HOST, source=source, auth=auth, connection_verify=CA_FILE, prefetch=1)
    try:
        client.open()
        client.receive_message_batch(max_batch_size=1, timeout=20)
    except AMQPLinkRedirect as redirect:
        names = [b"hostname", b"network-host", b"port", b"address"]
        return {text(name): text(redirect.info[name]) for name in names}
    finally:
        client.close()


def by_plain():
    user = urllib.parse.quote_plus(f"service@sas.root.{HOST.split('.')[0]}")
    source = f"amqps://{user}:{urllib.parse.quote_plus(sas(HOST))}@{HOST}/messages/events/$management"
    client = uamqp.ReceiveClient(uamqp.address.Source(source), timeout=30000, prefetch=1)
    try:
        client.open()
        client.receive_message_batch(max_batch_size=1)
    except uamqp.errors.LinkRedirect as redirect:
        names = ["hostname", "network_host", "port", "address"]
        return {name.replace("_", "-"): text(getattr(redirect, name)) for name in names}
    finally:
        client.close()


def read(found):
    path = found["address"].split("/")[3]
    auth = uamqp.authentication.SASTokenAuth.from_shared_access_key(
        f"sb://{found['hostname']}/{path}", "service", KEY, verify=CA_FILE
    )
    source = uamqp.address.Source(f"amqps://{found['hostname']}/{path}/ConsumerGroups/$Default/Partitions/{PARTITION}")
    source.set_filter(b"amqp.annotation.x-opt-enqueuedtimeutc > 0")
    client = uamqp.ReceiveClient(source, auth=auth, timeout=30000, prefetch=10)
    try:
        for message in client.receive_message_batch(max_batch_size=1, timeout=20000):
            device = text(message.annotations[b"iothub-connection-device-id"])
            yield {"origin": device, "payload": b"".join(message.get_data()).decode()}
    finally:
        client.close()


found = by_cbs()
print(json.dumps(found), flush=True)
print(json.dumps(by_plain()), flush=True)
for message in read(found):
    print(json.dumps(message), flush=True)
