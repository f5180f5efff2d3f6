"""A back end on Microsoft's azure-eventhub: reads the D2C messages of a hub.

Usage: event_hub_consumer.py CA_FILE COUNT POSITION [PARTITION], with EVENTHUB_CONNECTION_STRING in the environment.
POSITION is -1, @latest, offset=OFFSET, number=NUMBER or time=MILLISECONDS; the last three are exclusive, and with ==
they are inclusive. With ASYNC in the environment it uses the client for asyncio, with WEBSOCKETS it dials port 443, and
with PORT it dials that AMQP port instead of 5671,
with RETRIES it tries again so often.
Prints the Event Hub and its partitions as JSON, then `reading`, then each message, and ends after COUNT messages.
"""

import asyncio
import datetime
import json
import os
import sys
import threading

from azure.eventhub import EventHubConsumerClient, TransportType
from azure.eventhub.aio import EventHubConsumerClient as AsyncEventHubConsumerClient

CA_FILE, COUNT, POSITION = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PARTITION = sys.argv[4] if len(sys.argv) > 4 else None


def arguments():
    kind, _, value = POSITION.partition("=")
    position = {
        "offset": lambda text: text,
        "number": int,
        "time": lambda text: datetime.datetime.fromtimestamp(int(text) / 1000, datetime.timezone.utc),
    }.get(kind, lambda _: POSITION)(value.lstrip("="))
    found = {"starting_position": position, "starting_position_inclusive": value.startswith("=")}
    if PARTITION is not None:
        found["partition_id"] = PARTITION
    return found


def options():
    found = {"consumer_group": "$Default", "connection_verify": CA_FILE, "retry_total": int(os.environ.get("RETRIES", "0"))}
    if "WEBSOCKETS" in os.environ:
        found["transport_type"] = TransportType.AmqpOverWebsocket
    if "PORT" in os.environ:
        found["transport_type"] = TransportType.Amqp
        found["custom_endpoint_address"] = f"sb://localhost:{os.environ['PORT']}"
    return found


def show(partition, event):
    def text(value):
        return value.decode() if isinstance(value, bytes) else value

    seen = {
        "partition": partition,
        "body": event.body_as_str(),
        "number": event.sequence_number,
        "offset": event.offset,
        "enqueued": event.system_properties[b"x-opt-enqueued-time"],
        "properties": {text(name): text(value) for name, value in event.properties.items()},
        "system": {text(name): text(value) for name, value in event.system_properties.items()},
    }
    print(json.dumps(seen), flush=True)


def about(event_hub, partitions):
    names = ["beginning_sequence_number", "last_enqueued_sequence_number", "last_enqueued_offset", "is_empty"]
    seen = {id: {name: found[name] for name in names} for id, found in partitions.items()}
    print(json.dumps({"name": event_hub["eventhub_name"], "partitions": seen}), flush=True)
    print("reading", flush=True)


def main():
    client = EventHubConsumerClient.from_connection_string(os.environ["EVENTHUB_CONNECTION_STRING"], **options())
    event_hub = client.get_eventhub_properties()
    about(event_hub, {id: client.get_partition_properties(id) for id in event_hub["partition_ids"]})
    done, left, failed = threading.Event(), [COUNT], []

    def on_event(context, event):
        if left[0] > 0:
            show(context.partition_id, event)
            left[0] -= 1
        if left[0] == 0:
            done.set()

    def on_error(_context, error):
        failed.append(error)
        done.set()

    reading = threading.Thread(
        target=client.receive, args=(on_event,), kwargs={"on_error": on_error, **arguments()}, daemon=True
    )
    reading.start()
    done.wait(30)
    client.close()
    reading.join(10)
    sys.exit(repr(failed) if failed or left[0] else 0)


async def main_async():
    client = AsyncEventHubConsumerClient.from_connection_string(
        os.environ["EVENTHUB_CONNECTION_STRING"], **options()
    )
    async with client:
        event_hub = await client.get_eventhub_properties()
        about(event_hub, {id: await client.get_partition_properties(id) for id in event_hub["partition_ids"]})
        done, left, failed = asyncio.Event(), [COUNT], []

        async def on_event(context, event):
            if left[0] > 0:
                show(context.partition_id, event)
                left[0] -= 1
            if left[0] == 0:
                done.set()

        async def on_error(_context, error):
            failed.append(error)
            done.set()

        reading = asyncio.create_task(client.receive(on_event, on_error=on_error, **arguments()))
        await asyncio.wait_for(done.wait(), 30)
        reading.cancel()
    sys.exit(repr(failed) if failed or left[0] else 0)


if "ASYNC" in os.environ:
    asyncio.run(main_async())
else:
    main()
