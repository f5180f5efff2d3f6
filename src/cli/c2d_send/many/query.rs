//! The devices that a query finds.
//!
//! Owns: what may be given to `--query`, pages, a hub that throttles queries. Must not know: the messages.

use std::time::Duration;

use anyhow::anyhow;
use serde_json::Value;

use crate::cli::back_end::HubArgs;
use crate::cli::{Failure, tell};
use crate::fleet::{EntryList, MAX_ENTRIES};
use crate::service::{ServiceError, TOKEN_LIFETIME};

/// A hub takes 20 queries a minute for each unit.
const THROTTLED: Duration = Duration::from_secs(10);
/// As long as ten minutes.
const MOST_TRIES: usize = 60;

/// Asks the hub, page by page.
///
/// # Errors
/// When the hub does not answer, refuses the query, or finds something without a `deviceId`.
pub(super) async fn devices(hub: &HubArgs, sql: &str) -> Result<EntryList, Failure> {
    let query = whole(sql);
    let mut service =
        hub.rest().map_err(Failure::usage)?.service(TOKEN_LIFETIME).map_err(anyhow::Error::new)?;
    let (mut lines, mut count, mut continuation, mut tries) = (Vec::new(), 0, None, 0);
    loop {
        let page = match service.query(&query, continuation.clone()).await {
            Err(ServiceError::Throttled(_)) if tries < MOST_TRIES => {
                tries += 1;
                tell(format_args!("the hub throttles queries: asking again in {} s", THROTTLED.as_secs()));
                tokio::time::sleep(THROTTLED).await;
                continue;
            }
            Err(error @ ServiceError::Query(_)) => return Err(Failure::usage(error)),
            page => page.map_err(anyhow::Error::new)?,
        };
        count += page.items.len();
        if count > MAX_ENTRIES {
            return Err(Failure::usage(anyhow!("the query finds more than {MAX_ENTRIES} devices: split it")));
        }
        for item in &page.items {
            if item.get("deviceId").and_then(Value::as_str).is_none() {
                return Err(Failure::usage(anyhow!(
                    "the query finds something without a deviceId: select deviceId, as in SELECT deviceId FROM devices"
                )));
            }
            lines.push(item.to_string());
        }
        continuation = page.continuation;
        if continuation.is_none() {
            break;
        }
    }
    if lines.is_empty() {
        return Err(Failure::usage(anyhow!("the query finds no device: {query}")));
    }
    EntryList::of_devices(lines.join("\n").as_bytes(), "what the query finds").map_err(Failure::usage)
}

/// A condition is made a whole query.
fn whole(sql: &str) -> String {
    let first = sql.split_whitespace().next().unwrap_or_default();
    if first.eq_ignore_ascii_case("select") {
        return sql.to_owned();
    }
    let condition =
        if first.eq_ignore_ascii_case("where") { sql.trim_start().get(first.len()..) } else { Some(sql) };
    format!("SELECT deviceId FROM devices WHERE {}", condition.unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn a_condition_is_made_a_query() {
        let query = "SELECT deviceId FROM devices WHERE tags.site = '12'";
        for text in ["tags.site = '12'", "WHERE tags.site = '12'", "  where  tags.site = '12' ", query] {
            assert_eq!(whole(text), query);
        }
    }
}
