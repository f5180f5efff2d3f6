//! Messages that no rule matches, or no longer: they are kept and explained, and they run when a rule matches them.

use super::*;

#[test]
fn a_message_whose_rule_is_gone_is_kept_as_a_dead_letter() {
    let house = House::new();
    let agent = house.agent();
    house.send("wait", "m-1");
    house.wait_for_state("m-1", "started");
    house.send_with("after", "m-2", &["--data", "second\n"]);
    house.wait_for_state("m-2", "accepted");
    agent.process.kill();

    let renamed = rules(house.path()).replace("action = \"after\"", "action = \"later\"");
    let agent = Agent::start(&house.emulator, "dev1", house.path(), &renamed);
    let text = house.wait_for_state("m-2", "dead")["outcome"]["text"].clone();
    assert!(
        text.as_str().is_some_and(|text| text.starts_with("refused: no rule matches it any more: ")),
        "{text}"
    );
    // The message stays unmatched if a user tries to run it again too early.
    let sentence = house.refused(&["inbox", "retry", "m-2"]);
    assert!(
        sentence.contains("is not run again, because no rule matches it: the nearest match is rule \"pump\""),
        "{sentence}"
    );
    assert_eq!(house.wait_for_state("m-2", "dead")["outcome"]["text"], text);
    assert_eq!(agent.process.terminate(), Some(0));

    write_config(house.path(), &rules(house.path()));
    house.told(&["inbox", "retry", "m-2"]);
    let agent = house.agent();
    house.wait_for_state("m-2", "finished");
    assert_eq!(fs::read_to_string(house.path().join("done")).expect("the file"), "second\n");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_message_that_no_rule_takes_is_told_with_the_nearest_rule_kept_and_run_once_a_rule_takes_it() {
    let house = House::new();
    let agent = house.agent();
    house.send_with("pumpe", "m-1", &["--property", "zone=north", "--data", "a body"]);
    house.send("pumpe", "m-2");
    let line = agent.process.stderr.wait_for("unmatched: no rule matches it").replace("\\\"", "\"");
    let nearest = "the nearest match is rule \"pump\", but action is \"pumpe\", not \"pump\"";
    assert!(line.contains(" WARN ") && line.contains(nearest), "{line}");
    assert!(line.contains("=\"action=pumpe&zone=north&$.mid=m-1&"), "{line}");
    let kept = house.wait_for_state("m-1", "dead");
    assert_eq!(
        (&kept["outcome"]["outcome"], &kept["message"]["body"]),
        (&"unmatched".into(), &"a body".into())
    );
    assert_eq!(kept["rulesNow"]["nearest"], "pump");

    let shown = house.told(&["inbox", "show", "m-1"]);
    let explained = format!("rules now   no rule matches it: {nearest}\n");
    for part in [
        "state       dead (no rule matched it: ",
        &explained,
        "  action = pumpe\n  zone = north\n",
        "  a body\n",
    ] {
        assert!(shown.contains(part), "no \"{part}\" in\n{shown}");
    }
    let refusal = format!(
        "message \"m-1\" (#1) is not run again, because no rule matches it: {nearest}; change the rules "
    );
    let sentence = house.refused(&["inbox", "retry", "m-1"]);
    assert!(sentence.contains(&refusal), "{sentence}");
    assert_eq!(house.wait_for_state("m-1", "dead")["outcome"], kept["outcome"], "it stays as it is");

    // The configuration gets a rule for the message. The agent has the rule after a reload.
    let more = format!(
        "{}[[rule]]\nname = \"pumpe\"\nwhen = {{ action = \"pumpe\" }}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID $(cat) >> {}/done\" }} ]\n",
        rules(house.path()),
        house.path().display()
    );
    write_config(house.path(), &more);
    assert!(house.told(&["inbox", "show", "m-1"]).contains("\nrules now   rule \"pumpe\" matches it: "));
    assert!(house.refused(&["inbox", "retry", "m-1"]).contains(&refusal));
    agent.process.signal(rustix::process::Signal::HUP);
    agent.process.stderr.wait_for("applied the new configuration");
    house.told(&["inbox", "retry", "m-1"]);
    let record = house.wait_for_state("m-1", "finished");
    assert_eq!((&record["outcome"]["outcome"], &record["rule"]), (&"succeeded".into(), &"pumpe".into()));
    assert_eq!(agent.process.terminate(), Some(0));

    // Without an agent, the command itself checks the rules.
    write_config(house.path(), &rules(house.path()));
    let sentence = house.refused(&["inbox", "retry", "m-2"]);
    assert!(sentence.contains(&refusal.replace("m-1\" (#1)", "m-2\" (#2)")), "{sentence}");
    write_config(house.path(), &more);
    house.told(&["inbox", "retry", "m-2"]);
    let agent = Agent::start(&house.emulator, "dev1", house.path(), &more);
    house.wait_for_state("m-2", "finished");
    assert_eq!(fs::read_to_string(house.path().join("done")).expect("the file"), "m-1 a body\nm-2\n");
    assert_eq!(agent.process.terminate(), Some(0));
}
