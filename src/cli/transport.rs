//! `--transport` of the back end's commands: which command has which transports.
//!
//! Owns: the words, and one list for each command. Must not know: what the words mean on the wire.

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Arg, ValueEnum};

/// How to connect to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TransportArg {
    /// AMQP, on port 5671 or the port in HostName.
    Amqp,
    /// AMQP over a WebSocket on the HTTPS port.
    AmqpWs,
    /// HTTPS.
    Https,
}

use TransportArg::{Amqp, AmqpWs, Https};

impl TransportArg {
    /// The word on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Amqp => "amqp",
            AmqpWs => "amqp-ws",
            Https => "https",
        }
    }
}

/// The transports of c2d-send; the first is the default, as in the other lists. Source: wire reference 4.1 and 4.6.
pub(super) const OF_SEND: &[TransportArg] = &[Amqp, AmqpWs];

/// The transports of c2d-feedback. Source: wire reference 4.4.
pub(super) const OF_FEEDBACK: &[TransportArg] = &[Amqp, AmqpWs, Https];

/// The transports of c2d-purge, invoke-method, twin, devices, query and jobs. Source: wire reference 4.5.
pub(super) const OF_REST: &[TransportArg] = &[Https];

/// The transports of monitor. Source: Microsoft's documents on the built-in endpoint; azure-eventhub 5.15 for Python.
pub(super) const OF_EVENTS: &[TransportArg] = &[Amqp, AmqpWs];

/// Restricts `--transport` to these values.
pub(super) fn only(argument: Arg, transports: &'static [TransportArg]) -> Arg {
    let values = PossibleValuesParser::new(transports.iter().filter_map(ValueEnum::to_possible_value));
    let argument =
        argument.value_parser(values.try_map(|text| <TransportArg as ValueEnum>::from_str(&text, false)));
    argument.required(false).default_value(transports.first().map(|default| default.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(transports: &'static [TransportArg], arguments: &[&str]) -> Result<TransportArg, String> {
        let argument = only(Arg::new("transport").long("transport"), transports);
        let parsed = clap::Command::new("c").arg(argument).try_get_matches_from([&["c"], arguments].concat());
        parsed.map(|found| *found.get_one("transport").expect("a default")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_is_the_default_and_what_a_command_has_not_is_refused_with_what_it_has() {
        assert_eq!(given(OF_SEND, &[]), Ok(Amqp));
        assert_eq!(given(OF_REST, &[]), Ok(Https));
        assert_eq!(given(OF_FEEDBACK, &["--transport=amqp-ws"]), Ok(AmqpWs));
        let refused = given(OF_SEND, &["--transport=https"]).expect_err("only AMQP");
        assert!(
            refused.contains("invalid value 'https'") && refused.contains("values: amqp, amqp-ws]"),
            "{refused}"
        );
    }
}
