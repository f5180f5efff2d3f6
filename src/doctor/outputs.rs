//! The pins: what drives them, and which process has their lines.
//!
//! Owns: the verdict on them. Must not know: chips and registers.

use super::{Check, Finding, RunningAgent};
use crate::action::{self, CONSUMER, GpioError, LineUse};
use crate::config::GpioSettings;

pub(super) fn outputs(settings: &GpioSettings, agent: &RunningAgent) -> Vec<Finding> {
    if settings.pins.is_empty() {
        return vec![Check::Gpio.skipped("no pin is configured")];
    }
    let survey = match action::survey(settings) {
        Ok(survey) => survey,
        Err(error) => {
            let mut found = vec![Check::Gpio.failed_with(error)];
            let pins = settings.pins.keys();
            found.extend(pins.map(|pin| Check::Pin.skipped("no backend can drive it").about(pin)));
            return found;
        }
    };
    let detail = format!("backend {} drives {}", survey.backend, survey.found);
    let backend = match survey.second_choice {
        None => Check::Gpio.ok(detail),
        Some(reason) => Check::Gpio.warning(
            format!("{detail}, because rppal cannot be used ({reason})"),
            "if you want that, set backend = \"cdev\" in [gpio]",
        ),
    };
    let mut found = vec![backend];
    let simulated = survey.backend == "simulated";
    found.extend(survey.pins.into_iter().map(|(pin, line)| match line {
        Ok(_) if simulated => Check::Pin.ok("simulated: nothing is switched").about(pin),
        line => self::pin(line, survey.backend, agent).about(pin),
    }));
    found
}

fn pin(line: Result<LineUse, GpioError>, backend: &str, agent: &RunningAgent) -> Finding {
    match line {
        Ok(LineUse::Free) => Check::Pin.ok("free"),
        Ok(LineUse::Untold) => Check::Pin.ok("there; whether another program uses it is not known"),
        Ok(LineUse::Held(by)) if by == CONSUMER => match agent {
            RunningAgent::Running { pid, .. } => {
                Check::Pin.ok(format!("held by the running agent, process {pid}"))
            }
            RunningAgent::NotRunning | RunningAgent::Unknown(_) => Check::Pin.failed(
                "held by a c2d-agent that runs with another configuration, or does not answer",
                "stop that one, or choose another line",
            ),
        },
        Ok(LineUse::Held(by)) => {
            let by =
                if by.is_empty() { "a program that gives no name".to_owned() } else { format!("{by:?}") };
            let (detail, remedy) = (format!("in use by {by}"), "stop that program, or choose another line");
            // Through registers, two processes can switch one line.
            if backend == "rppal" {
                Check::Pin.warning(detail, remedy)
            } else {
                Check::Pin.failed(detail, remedy)
            }
        }
        Err(error) => Check::Pin.failed_with(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Standing;

    #[test]
    fn a_line_of_the_running_agent_is_fine_and_anybody_elses_is_not() {
        let agent = RunningAgent::Running { pid: 7, disconnected: None };
        let held = |by: &str, agent: &RunningAgent| pin(Ok(LineUse::Held(by.to_owned())), "cdev", agent);
        assert_eq!(held("c2d-agent", &agent), Check::Pin.ok("held by the running agent, process 7"));
        assert_eq!(held("c2d-agent", &RunningAgent::NotRunning).status, Standing::Failed);
        assert_eq!(held("spi0 CS0", &agent).detail, "in use by \"spi0 CS0\"");
        assert_eq!(held("", &agent).detail, "in use by a program that gives no name");
        assert_eq!(pin(Ok(LineUse::Held("x".to_owned())), "rppal", &agent).status, Standing::Warning);
        assert_eq!(pin(Ok(LineUse::Free), "cdev", &agent), Check::Pin.ok("free"));
    }
}
