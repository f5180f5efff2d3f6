"""Signs a device in with uamqp, by CBS: for the programs beside this one.

DEVICE_KEY (base64) and SSL_CERT_FILE (the hub's CA) must be in the environment. With WEBSOCKETS there, too, AMQP goes over a
WebSocket, which uamqp dials on port 443.
"""

import base64
import hashlib
import hmac
import os
import time
import urllib.parse

from uamqp import TransportType, authentication


def token(resource, key, expiry):
    quoted = urllib.parse.quote_plus(resource)
    signed = hmac.new(base64.b64decode(key), f"{quoted}\n{expiry}".encode(), hashlib.sha256).digest()
    signature = urllib.parse.quote_plus(base64.b64encode(signed))
    return f"SharedAccessSignature sr={quoted}&sig={signature}&se={expiry}"


def sign_in(host, port, device):
    audience = f"{host}/devices/{device}"
    expiry = int(time.time()) + 3600
    return authentication.SASTokenAuth(
        audience=audience,
        uri=f"amqps://{host}:{port}",
        token=token(audience, os.environ["DEVICE_KEY"], expiry),
        expires_at=expiry,
        port=port,
        verify=os.environ["SSL_CERT_FILE"],
        transport_type=TransportType.AmqpOverWebsocket if "WEBSOCKETS" in os.environ else TransportType.Amqp,
    )
