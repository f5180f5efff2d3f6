"""A back end built on Microsoft's azure-iot-hub: queries twins page by page.

Usage: service_query.py, with SERVICE_CONNECTION_STRING and REQUESTS_CA_BUNDLE (the hub's CA) in the environment.
Prints one JSON object with what the SDK saw: the ids of each page of two twins whose tag `floor` is above 0, what it says
of the first page and the first twin, a count, and the status of a query that is wrong.
"""

import json
import os

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import QuerySpecification
from msrest.exceptions import HttpOperationError


def main():
    service = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"])
    query = QuerySpecification(query="SELECT * FROM devices WHERE tags.floor > 0")
    results, token = [], None
    while not results or token:
        result = service.query_iot_hub(query, token, 2)
        results.append(result)
        token = result.continuation_token
    count = service.query_iot_hub(QuerySpecification(query="SELECT COUNT() AS n FROM devices"))
    wrong = None
    try:
        service.query_iot_hub(QuerySpecification(query="SELECT * FROM nothing"))
    except HttpOperationError as error:
        wrong = error.response.status_code
    seen = {
        "pages": [[twin.device_id for twin in result.items] for result in results],
        "type": results[0].type,
        "tags": results[0].items[0].tags,
        "count": [item.additional_properties for item in count.items],
        "count_type": count.type,
        "wrong": wrong,
    }
    print(json.dumps(seen), flush=True)
    service.amqp_svc_client.disconnect_sync()


main()
