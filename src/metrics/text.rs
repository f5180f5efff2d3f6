//! Metrics as OpenMetrics text.
//!
//! Owns: how figures are written. Must not know: where figures come from, HTTP.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{self, Registry};

use super::{BOUNDS, Figures, Histogram, Labels, Metric, Unit};

/// The content type of the text. Source: the OpenMetrics specification, 1.0.0.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The prefix of every metric's name.
const PREFIX: &str = "c2d_agent";

/// Writes all metrics.
///
/// # Errors
/// An error would be a defect: text can always be written.
pub(super) fn encode(metrics: Vec<Metric>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(All(metrics)));
    let mut written = String::new();
    text::encode(&mut written, &registry)?;
    Ok(written)
}

#[derive(Debug)]
struct All(Vec<Metric>);

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|metric| encode_metric(metric, &mut encoder))
    }
}

fn encode_metric(metric: &Metric, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Metric { name, unit, help, figures } = metric;
    let unit = unit.map(|unit| match unit {
        Unit::Seconds => registry::Unit::Seconds,
        Unit::Bytes => registry::Unit::Bytes,
    });
    let kind = match figures {
        Figures::Counter(_) => MetricType::Counter,
        Figures::Gauge(_) => MetricType::Gauge,
        Figures::Histogram(_) => MetricType::Histogram,
        Figures::Info(_) => MetricType::Info,
    };
    let mut encoder = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
    match figures {
        Figures::Counter(all) => all.iter().try_for_each(|(labels, count)| {
            let none: Option<&Exemplar<NoLabelSet, f64>> = None;
            match given(labels) {
                Some(labels) => encoder.encode_family(labels)?.encode_counter(count, none),
                None => encoder.encode_counter(count, none),
            }
        }),
        Figures::Gauge(all) => all.iter().try_for_each(|(labels, value)| match given(labels) {
            Some(labels) => encoder.encode_family(labels)?.encode_gauge(value),
            None => encoder.encode_gauge(value),
        }),
        Figures::Histogram(all) => all.iter().try_for_each(|(labels, histogram)| {
            let Histogram { counts, sum } = histogram;
            let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            let mut encoder = encoder.encode_family(labels)?;
            encoder.encode_histogram::<NoLabelSet>(*sum, counts.iter().sum(), &buckets, None)
        }),
        Figures::Info(labels) => encoder.encode_info(labels),
    }
}

/// The labels; `None` if there are none, so that no braces are written.
fn given(labels: &Labels) -> Option<&(impl EncodeLabelSet + use<>)> {
    Some(labels).filter(|labels| !labels.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_as_the_specification_has_it() {
        let mut histogram = Histogram::default();
        histogram.observe(0.5);
        histogram.observe(7_000.0);
        let rule = |name: &str| vec![("rule", name.to_owned()), ("outcome", "failed".to_owned())];
        let text = encode(vec![
            Metric {
                name: "messages",
                unit: None,
                help: "Messages.",
                figures: Figures::Counter(vec![(rule("a \"b\"\\\n"), 3), (rule("é"), u64::MAX)]),
            },
            Metric {
                name: "plain",
                unit: None,
                help: "Plain.",
                figures: Figures::Counter(vec![(vec![], 0)]),
            },
            Metric {
                name: "start_timestamp",
                unit: Some(Unit::Seconds),
                help: "Start.",
                figures: Figures::Gauge(vec![(vec![], 1_795_479_681.25)]),
            },
            Metric {
                name: "took",
                unit: Some(Unit::Seconds),
                help: "Took.",
                figures: Figures::Histogram(vec![(vec![("rule", "a".to_owned())], histogram)]),
            },
            Metric {
                name: "build",
                unit: None,
                help: "Build.",
                figures: Figures::Info(vec![("version", "0.1.0".to_owned())]),
            },
        ]);
        let expected = "\
# HELP c2d_agent_messages Messages.
# TYPE c2d_agent_messages counter
c2d_agent_messages_total{rule=\"a \\\"b\\\"\\\\\\n\",outcome=\"failed\"} 3
c2d_agent_messages_total{rule=\"é\",outcome=\"failed\"} 18446744073709551615
# HELP c2d_agent_plain Plain.
# TYPE c2d_agent_plain counter
c2d_agent_plain_total 0
# HELP c2d_agent_start_timestamp_seconds Start.
# TYPE c2d_agent_start_timestamp_seconds gauge
# UNIT c2d_agent_start_timestamp_seconds seconds
c2d_agent_start_timestamp_seconds 1795479681.25
# HELP c2d_agent_took_seconds Took.
# TYPE c2d_agent_took_seconds histogram
# UNIT c2d_agent_took_seconds seconds
c2d_agent_took_seconds_sum{rule=\"a\"} 7000.5
c2d_agent_took_seconds_count{rule=\"a\"} 2
c2d_agent_took_seconds_bucket{le=\"0.001\",rule=\"a\"} 0
c2d_agent_took_seconds_bucket{le=\"0.01\",rule=\"a\"} 0
c2d_agent_took_seconds_bucket{le=\"0.1\",rule=\"a\"} 0
c2d_agent_took_seconds_bucket{le=\"1.0\",rule=\"a\"} 1
c2d_agent_took_seconds_bucket{le=\"10.0\",rule=\"a\"} 1
c2d_agent_took_seconds_bucket{le=\"30.0\",rule=\"a\"} 1
c2d_agent_took_seconds_bucket{le=\"60.0\",rule=\"a\"} 1
c2d_agent_took_seconds_bucket{le=\"600.0\",rule=\"a\"} 1
c2d_agent_took_seconds_bucket{le=\"3600.0\",rule=\"a\"} 1
c2d_agent_took_seconds_bucket{le=\"+Inf\",rule=\"a\"} 2
# HELP c2d_agent_build Build.
# TYPE c2d_agent_build info
c2d_agent_build_info{version=\"0.1.0\"} 1
# EOF
";
        assert_eq!(text.expect("written"), expected);
    }
}
