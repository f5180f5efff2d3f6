"""The table of a run: each figure beside the peers' of the same run, its goal, and whether that is met."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path


def note(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def cell(value):
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Goal:
    """What a figure must be. `words` say where the bound comes from."""

    def __init__(self, sign, bound, words):
        self.bound, self.is_lower = bound, sign == "≥"
        self.text = f"{sign} {words} = {cell(bound)}" if words else f"{sign} {cell(bound)}"

    def is_met(self, value):
        return value >= self.bound if self.is_lower else value <= self.bound


def at_most(bound, words=""):
    return Goal("≤", bound, words)


def at_least(bound, words=""):
    return Goal("≥", bound, words)


class Table:
    def __init__(self):
        self.rows, self.missed, self.goals = [], [], 0

    def row(self, figure, agent, goal=None, sub=None, sdk=None):
        """A figure that is a text could not be measured, so it meets no goal."""
        met = "–"
        if goal:
            self.goals += 1
            met = "yes" if not isinstance(agent, str) and goal.is_met(agent) else "no"
            if met == "no":
                self.missed.append(figure)
        cells = [figure, cell(agent), cell(sub), cell(sdk), goal.text if goal else "–", met]
        self.rows.append(f"| {' | '.join(cells)} |")
        note("; ".join(cells))

    def print(self):
        model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        versions = [first_line("rustc", "--version"), first_line("mosquitto", "-h")]
        print(f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, Linux {platform.release()}; {', '.join(versions)}.")
        print("Medians; loopback TLS; all receivers in turns, round by round.\n")
        print("| Figure | c2d-agent | mosquitto_sub | Python azure-iot-device | Goal | Met |")
        print("|---|---|---|---|---|---|")
        print("\n".join(self.rows))
        print(f"\n{self.goals - len(self.missed)} of {self.goals} goals are met.")


def first_line(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0]
