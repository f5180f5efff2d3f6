"""Reads OpenMetrics text from standard input with the Prometheus project's own parser, which is strict, and prints each
sample as a line of JSON: metric, type, unit, help, name, labels, value."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

for metric in text_string_to_metric_families(sys.stdin.read()):
    for sample in metric.samples:
        print(json.dumps({
            "metric": metric.name, "type": metric.type, "unit": metric.unit, "help": metric.documentation,
            "name": sample.name, "labels": sample.labels, "value": sample.value,
        }))
