"""A minimal MQTT 3.1.1 publisher over plain TCP, QoS 1: quick enough not to be what is measured."""

import socket
import struct


class Publisher:
    def __init__(self, host, port, client_id="publisher"):
        """Its session is a new one: what the broker had kept for this client id is deleted."""
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.packet_id = 0
        name = client_id.encode()
        variable = b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack("!H", len(name)) + name
        self.socket.sendall(b"\x10" + _length(len(variable)) + variable)
        if self._read(4) != b"\x20\x02\x00\x00":
            raise OSError("the broker refused the publisher")

    def send(self, topic, payload=b""):
        """Sends one message without waiting for the broker."""
        self.packet_id = self.packet_id % 65535 + 1
        topic = topic.encode()
        body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", self.packet_id) + payload
        self.socket.sendall(b"\x32" + _length(len(body)) + body)

    def confirm(self, count=1):
        """Waits until the broker has acknowledged `count` more messages."""
        self._read(4 * count)

    def send_all(self, messages):
        """Sends (topic, payload) pairs, some hundred at a time."""
        waiting = 0
        for topic, payload in messages:
            self.send(topic, payload)
            waiting += 1
            if waiting == 500:
                self.confirm(waiting)
                waiting = 0
        self.confirm(waiting)

    def close(self):
        self.socket.sendall(b"\xe0\x00")
        self.socket.close()

    def _read(self, size):
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise OSError("the broker closed the publisher's connection")
            data += chunk
        return data


def _length(size):
    encoded = bytearray()
    while True:
        size, digit = divmod(size, 128)
        encoded.append(digit | (0x80 if size else 0))
        if not size:
            return bytes(encoded)
