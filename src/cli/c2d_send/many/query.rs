//! The devices that a query finds.
//!
//! Owns: what may be given to `--query`, pages, a hub that throttles queries. Must not know: the messages.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use anyhow::anyhow;
use serde_json::Value;

use crate::cli::back_end::HubArgs;
use crate::cli::shown::plain;
use crate::cli::{Failure, tell};
use crate::fleet::{EntryList, MAX_ENTRIES};
use crate::service::{ServiceError, TOKEN_LIFETIME};

/// A hub takes 20 queries a minute for each unit.
const THROTTLED: Duration = Duration::from_secs(10);
/// As long as ten minutes, for all pages together.
const MOST_TRIES: usize = 60;
/// A page may be empty although more follow, but not for ever.
const MOST_EMPTY: usize = 100;
/// All rows together; as much as a list may have.
const MOST_BYTES: usize = 256 * 1024 * 1024;

/// Asks the hub, page by page.
///
/// # Errors
/// When the hub does not answer, refuses the query, or finds something without a `deviceId`.
pub(super) async fn devices(hub: &HubArgs, sql: &str) -> Result<EntryList, Failure> {
    let query = whole(sql).map_err(Failure::usage)?;
    let mut service =
        hub.rest().map_err(Failure::usage)?.service(TOKEN_LIFETIME).map_err(anyhow::Error::new)?;
    let mut rows = Rows::default();
    let (mut continuation, mut tries, mut empty) = (None, 0, 0);
    loop {
        let page = match service.query(&query, continuation.clone()).await {
            Err(error) if error.is_passing() && tries < MOST_TRIES => {
                tries += 1;
                let seconds = THROTTLED.as_secs();
                tell(format_args!("the query has no answer yet, asking again in {seconds} s: {error}"));
                tokio::time::sleep(THROTTLED).await;
                continue;
            }
            Err(error @ ServiceError::Query(_)) => return Err(Failure::usage(error)),
            page => page.map_err(anyhow::Error::new)?,
        };
        empty = if page.items.is_empty() { empty + 1 } else { 0 };
        if empty > MOST_EMPTY {
            return Err(anyhow!("the hub gives one empty page after another: try again later").into());
        }
        page.items.iter().try_for_each(|item| rows.add(item)).map_err(Failure::usage)?;
        continuation = page.continuation;
        if continuation.is_none() {
            break;
        }
    }
    if rows.seen.is_empty() {
        return Err(Failure::usage(anyhow!("the query finds no device: {}", plain(&query))));
    }
    if rows.doubled > 0 {
        tell(format_args!("the query finds {} devices twice: each gets one message", rows.doubled));
    }
    EntryList::of_devices(rows.text.as_bytes(), "what the query finds").map_err(Failure::usage)
}

/// What a query has found so far.
#[derive(Default)]
struct Rows {
    /// A line each.
    text: String,
    /// A digest of the row of each device.
    seen: HashMap<String, u64>,
    doubled: usize,
}

impl Rows {
    /// The hub may find a device again on a later page, when its twin changes meanwhile.
    fn add(&mut self, item: &Value) -> anyhow::Result<()> {
        let Some(device) = item.get("deviceId").and_then(Value::as_str) else {
            return Err(anyhow!(
                "the query finds something without a deviceId: select deviceId, as in SELECT deviceId FROM devices"
            ));
        };
        let row = item.to_string();
        let mut hasher = DefaultHasher::new();
        row.hash(&mut hasher);
        match self.seen.insert(device.to_owned(), hasher.finish()) {
            None => {}
            Some(first) if first == hasher.finish() => {
                self.doubled += 1;
                return Ok(());
            }
            Some(_) => {
                return Err(anyhow!(
                    "the query finds the device \"{}\" twice, with different columns: select columns that a device has \
                     once, or send to a list",
                    plain(device)
                ));
            }
        }
        if self.seen.len() > MAX_ENTRIES || self.text.len() + row.len() > MOST_BYTES {
            let most = MOST_BYTES / 1024 / 1024;
            return Err(anyhow!("the query finds more than {MAX_ENTRIES} devices or {most} MiB: split it"));
        }
        self.text.push_str(&row);
        self.text.push('\n');
        Ok(())
    }
}

/// A condition is made a whole query.
///
/// # Errors
/// When it selects whole twins.
fn whole(sql: &str) -> anyhow::Result<String> {
    let mut words = sql.split_whitespace();
    let first = words.next().unwrap_or_default();
    if first.eq_ignore_ascii_case("select") {
        // Its "properties" would be taken for those of the message.
        if words.next().is_some_and(|columns| columns.starts_with('*')) {
            return Err(anyhow!(
                "SELECT * finds whole twins: name the columns that the message needs, as in SELECT deviceId, tags.site FROM \
                 devices"
            ));
        }
        return Ok(sql.to_owned());
    }
    let condition =
        if first.eq_ignore_ascii_case("where") { sql.trim_start().get(first.len()..) } else { Some(sql) };
    Ok(format!("SELECT deviceId FROM devices WHERE {}", condition.unwrap_or_default().trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_condition_is_made_a_query() {
        let query = "SELECT deviceId FROM devices WHERE tags.site = '12'";
        for text in ["tags.site = '12'", "WHERE tags.site = '12'", "  where  tags.site = '12' ", query] {
            assert_eq!(whole(text).expect("a query"), query);
        }
        assert!(whole("SELECT * FROM devices").is_err() && whole("select *, deviceId").is_err());
    }

    #[test]
    fn a_device_that_is_found_again_gets_one_message_if_its_row_is_the_same() {
        let mut rows = Rows::default();
        for row in [json!({"deviceId": "a"}), json!({"deviceId": "b", "x": 1}), json!({"deviceId": "a"})] {
            rows.add(&row).expect("a row");
        }
        assert_eq!(
            (rows.text.as_str(), rows.doubled),
            ("{\"deviceId\":\"a\"}\n{\"deviceId\":\"b\",\"x\":1}\n", 1)
        );
        let error = rows.add(&json!({"deviceId": "b", "x": 2})).expect_err("two rows").to_string();
        assert!(
            error.starts_with("the query finds the device \"b\" twice, with different columns"),
            "{error}"
        );
        assert!(rows.add(&json!({"x": 2})).expect_err("no id").to_string().contains("without a deviceId"));
    }
}
