#!/usr/bin/env bash
# Prints how exposed systemd finds packaging/c2d-agent.service, and fails above 3.0 (of 10; less is better).
# Needs systemd-analyze, but no running systemd.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

require_packages systemd-analyze:systemd
systemd-analyze security --offline=true --threshold=30 --no-pager packaging/c2d-agent.service
