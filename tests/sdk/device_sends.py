"""A device that sends one D2C message: over MQTT with Microsoft's azure-iot-device, over AMQP with uamqp, or over HTTPS
with requests.

Usage: device_sends.py mqtt|amqp|https CA_FILE BODY, with DEVICE_CONNECTION_STRING, and with HTTPS_PORT for HTTPS.
Each message has the id m-TRANSPORT, the content type text/plain, a creation time and the property zone.
"""

import os
import sys
import time
import urllib.parse

import requests
import uamqp
from amqp_sign_in import sign_in, token
from azure.iot.device import IoTHubDeviceClient, Message

TRANSPORT, CA_FILE, BODY = sys.argv[1:4]
PARTS = dict(part.split("=", 1) for part in os.environ["DEVICE_CONNECTION_STRING"].split(";"))
HOST, DEVICE, KEY = PARTS["HostName"], PARTS["DeviceId"], PARTS["SharedAccessKey"]
ID, KIND, CREATED = f"m-{TRANSPORT}", "text/plain", "2026-11-30T10:00:00Z"


def mqtt():
    with open(CA_FILE, encoding="utf-8") as file:
        client = IoTHubDeviceClient.create_from_connection_string(
            os.environ["DEVICE_CONNECTION_STRING"], server_verification_cert=file.read()
        )
    message = Message(BODY, message_id=ID, content_type=KIND, content_encoding="utf-8")
    message.custom_properties.update({"zone": "north", "$.ctime": CREATED})
    client.send_message(message)
    client.shutdown()


def amqp():
    os.environ.update({"DEVICE_KEY": KEY, "SSL_CERT_FILE": CA_FILE})
    target = f"amqps://{HOST}/devices/{DEVICE}/messages/events"
    properties = uamqp.message.MessageProperties(message_id=ID, content_type=KIND, content_encoding="utf-8")
    application = {"zone": "north", "iothub-creation-time-utc": CREATED}
    message = uamqp.Message(BODY.encode(), properties=properties, application_properties=application)
    client = uamqp.SendClient(target, auth=sign_in(HOST, 5671, DEVICE))
    client.send_message(message)
    client.close()


def https():
    resource = f"{HOST}/devices/{DEVICE}"
    url = f"https://{HOST}:{os.environ['HTTPS_PORT']}/devices/{urllib.parse.quote(DEVICE)}/messages/events"
    headers = {
        "Authorization": token(resource, KEY, int(time.time()) + 600),
        "iothub-messageid": ID,
        "iothub-contenttype": KIND,
        "iothub-contentencoding": "utf-8",
        "iothub-creationtimeutc": CREATED,
        "iothub-app-zone": "north",
    }
    answer = requests.post(
        url, params={"api-version": "2021-04-12"}, headers=headers, data=BODY.encode(), verify=CA_FILE, timeout=10
    )
    answer.raise_for_status()


{"mqtt": mqtt, "amqp": amqp, "https": https}[TRANSPORT]()
print("sent", flush=True)
