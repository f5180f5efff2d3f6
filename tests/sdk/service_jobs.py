"""A back end built on Microsoft's azure-iot-hub: schedules jobs, waits for them and cancels one.

Usage: service_jobs.py, with SERVICE_CONNECTION_STRING and REQUESTS_CA_BUNDLE (the hub's CA) in the environment. The hub
has the device `dev1`, which is not connected.
Prints one JSON object with what the SDK saw: a job that writes the twin's tags, one that calls a method of the absent
device, one that is cancelled before its time, and the statuses of two refused requests.
"""

import datetime
import json
import os
import sys
import time

from azure.iot.hub import IoTHubJobManager, IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, JobRequest, Twin
from msrest.exceptions import HttpOperationError


def status_of(call, *arguments):
    try:
        call(*arguments)
    except HttpOperationError as error:
        return error.response.status_code
    return None


def ended(jobs, job_id):
    for _ in range(100):
        job = jobs.get_scheduled_job(job_id)
        if job.status in ("completed", "failed", "cancelled"):
            return job
        time.sleep(0.1)
    sys.exit(f"{job_id} does not end")


def counts(job):
    statistics = job.device_job_statistics
    return [statistics.device_count, statistics.failed_count, statistics.succeeded_count]


def main():
    connection_string = os.environ["SERVICE_CONNECTION_STRING"]
    jobs = IoTHubJobManager.from_connection_string(connection_string)
    twin = JobRequest(
        job_id="twin-1",
        type="scheduleUpdateTwin",
        update_twin=Twin(etag="*", tags={"floor": 2}),
        query_condition="*",
        start_time=datetime.datetime.utcnow().isoformat(),
        max_execution_time_in_seconds=60,
    )
    made = jobs.create_scheduled_job("twin-1", twin)
    done = ended(jobs, "twin-1")
    again = status_of(jobs.create_scheduled_job, "twin-1", twin)
    call = CloudToDeviceMethod(method_name="reboot", payload={"a": 1}, response_timeout_in_seconds=30)
    method = JobRequest(type="scheduleDeviceMethod", cloud_to_device_method=call, query_condition="deviceId = 'dev1'")
    jobs.create_scheduled_job("method-1", method)
    called = ended(jobs, "method-1")
    twin.job_id = "later"
    twin.start_time = (datetime.datetime.utcnow() + datetime.timedelta(hours=1)).isoformat()
    jobs.create_scheduled_job("later", twin)
    registry = IoTHubRegistryManager.from_connection_string(connection_string)
    seen = {
        "made": [made.job_id, made.status],
        "status": done.status,
        "counts": counts(done),
        "tags": registry.get_twin("dev1").tags,
        "method": [called.status, counts(called)],
        "cancelled": jobs.cancel_scheduled_job("later").status,
        "again": again,
        "unknown": status_of(jobs.get_scheduled_job, "none"),
    }
    print(json.dumps(seen), flush=True)
    registry.amqp_svc_client.disconnect_sync()


main()
