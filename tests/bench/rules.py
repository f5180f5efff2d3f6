"""What 1,000 rules cost that stand before those that are measured."""

import statistics

from table import at_most

RULES = 1_000
ROUNDS = 5


def measure_rules(agent, table, backlog):
    """In turns without and with them. Most gateways' rules are like these: one property, one pin."""
    cpu, memory, starts = {}, {}, {}
    for round_ in range(ROUNDS):
        for rules in (0, RULES):
            agent.use_inbox(agent.inbox, rules=rules)
            cpu.setdefault(rules, []).append(agent.drain(backlog, "pin")[1])
            if round_ < 3:
                agent.forget()
                memory.setdefault(rules, []).append(agent.idle_memory())
                starts.setdefault(rules, []).append(agent.start_ms())
    agent.use_inbox(agent.inbox)

    def more(figures):
        return statistics.median(figures[RULES]) - statistics.median(figures[0])

    table.row(f"{RULES:,} rules more: CPU per 1,000 messages, ms", more(cpu), at_most(5))
    table.row("the same, memory, idle, MiB RSS", more(memory), at_most(1.5))
    table.row("the same, process start to subscribed, ms", more(starts))
