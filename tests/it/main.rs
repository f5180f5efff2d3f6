//! All integration tests, in one target: what a user would notice, with real processes and real sockets.

#[cfg(all(feature = "service", feature = "emulator"))]
mod action;
#[cfg(all(feature = "service", feature = "emulator"))]
mod agent;
#[cfg(all(feature = "service", feature = "emulator"))]
mod agent_methods;
#[cfg(all(feature = "service", feature = "emulator"))]
mod agent_module;
#[cfg(all(feature = "service", feature = "emulator"))]
mod agent_websocket;
#[cfg(all(feature = "service", feature = "emulator"))]
mod alone;
#[cfg(all(feature = "service", feature = "emulator", feature = "amqp"))]
mod amqp_conditions;
#[cfg(all(feature = "service", feature = "emulator", feature = "amqp"))]
mod amqp_device;
#[cfg(all(feature = "service", feature = "emulator", feature = "amqp"))]
mod amqp_nesting;
#[cfg(all(feature = "service", feature = "emulator", feature = "amqp"))]
mod amqp_peer;
#[cfg(all(feature = "service", feature = "emulator", feature = "amqp"))]
mod amqp_silence;
mod architecture;
#[cfg(feature = "service")]
mod back_end_help;
#[cfg(all(feature = "service", feature = "emulator"))]
mod back_end_proxy;
#[cfg(all(feature = "service", feature = "emulator"))]
mod bad_input;
#[cfg(all(feature = "service", feature = "emulator"))]
mod c2d_feedback;
#[cfg(all(feature = "service", feature = "emulator"))]
mod c2d_purge;
#[cfg(all(feature = "service", feature = "emulator"))]
mod c2d_send;
#[cfg(all(feature = "service", feature = "emulator"))]
mod c2d_send_outcome;
mod check;
mod check_doors;
mod citations;
mod clock;
mod config;
#[cfg(all(feature = "service", feature = "emulator"))]
mod conformance;
mod corpora;
#[cfg(all(feature = "service", feature = "emulator"))]
mod demo;
mod deployment;
#[cfg(all(feature = "service", feature = "emulator", feature = "doctor"))]
mod doctor;
mod drop_ins;
#[cfg(all(feature = "service", feature = "emulator"))]
mod edge_gateway;
#[cfg(all(feature = "service", feature = "emulator"))]
mod edge_module;
#[cfg(feature = "emulator")]
mod emulator_cli;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_faults;
#[cfg(feature = "emulator")]
mod emulator_https;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_https_device;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_methods;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_modules;
#[cfg(feature = "emulator")]
mod emulator_mqtt;
#[cfg(feature = "emulator")]
mod emulator_page;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_registry;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_running;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_state;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_twins;
#[cfg(all(feature = "service", feature = "emulator"))]
mod emulator_websocket;
#[cfg(all(feature = "service", feature = "emulator"))]
mod examples;
mod faults;
#[cfg(all(feature = "service", feature = "emulator"))]
mod frames;
#[cfg(all(feature = "service", feature = "emulator"))]
mod guards;
mod harness;
#[cfg(all(feature = "service", feature = "emulator"))]
mod healthcheck;
#[cfg(all(feature = "service", feature = "emulator"))]
mod held_up;
mod help;
#[cfg(all(feature = "service", feature = "emulator"))]
mod identity;
#[cfg(all(feature = "service", feature = "emulator"))]
mod inbox_cli;
#[cfg(all(feature = "service", feature = "emulator"))]
mod init;
#[cfg(all(feature = "service", feature = "emulator"))]
mod invoke_method;
#[cfg(all(feature = "service", feature = "emulator"))]
mod json_lines;
mod layering;
#[cfg(all(feature = "service", feature = "emulator"))]
mod log;
mod machine;
#[cfg(all(feature = "service", feature = "emulator"))]
mod method_soak;
#[cfg(all(feature = "service", feature = "emulator"))]
mod method_traps;
mod metrics;
mod mosquitto;
mod names;
#[cfg(all(feature = "service", feature = "emulator", feature = "doctor"))]
mod new_user;
#[cfg(all(feature = "service", feature = "emulator"))]
mod obstacles;
#[cfg(all(feature = "service", feature = "emulator"))]
mod over;
#[cfg(all(feature = "service", feature = "emulator"))]
mod places;
#[cfg(all(feature = "service", feature = "emulator"))]
mod proxied;
#[cfg(all(feature = "service", feature = "emulator"))]
mod readme;
#[cfg(all(feature = "service", feature = "emulator"))]
mod recovery;
#[cfg(all(feature = "service", feature = "emulator"))]
mod reload;
#[cfg(all(feature = "service", feature = "emulator"))]
mod reports;
#[cfg(feature = "emulator")]
mod rest;
#[cfg(all(feature = "service", feature = "emulator"))]
mod rest_ask;
mod rule_tests;
#[cfg(feature = "schema")]
mod schema;
mod sdk;
#[cfg(all(feature = "service", feature = "emulator"))]
mod sdk_invokes;
#[cfg(all(feature = "service", feature = "emulator"))]
mod sdk_twins;
#[cfg(all(feature = "service", feature = "emulator"))]
mod sender_websocket;
#[cfg(all(feature = "service", feature = "emulator"))]
mod service_conditions;
#[cfg(all(feature = "service", feature = "emulator"))]
mod service_peer;
#[cfg(all(feature = "service", feature = "emulator"))]
mod settlement;
#[cfg(all(feature = "service", feature = "emulator"))]
mod soak;
#[cfg(all(feature = "service", feature = "emulator"))]
mod systemd;
#[cfg(all(feature = "service", feature = "emulator"))]
mod transports;
#[cfg(all(feature = "service", feature = "emulator"))]
mod traps;
#[cfg(all(feature = "service", feature = "emulator"))]
mod trusted;
mod twin_check;
#[cfg(all(feature = "service", feature = "emulator"))]
mod twin_cli;
#[cfg(all(feature = "service", feature = "emulator"))]
mod twin_rules;
