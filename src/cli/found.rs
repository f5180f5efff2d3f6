//! The devices that a query finds.
//!
//! Owns: what may be given to `--query`, what is found twice, the most that may be found. Must not know: what is done at
//! the devices.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;
use std::time::SystemTime;

use anyhow::anyhow;
use serde_json::Value;

use super::back_end::HubArgs;
use super::shown::plain;
use super::{Failure, rows, tell};
use crate::fleet::{EntryList, MAX_ENTRIES};
use crate::service::{HttpsService, ServiceIdentity, TOKEN_LIFETIME};

/// Pages in a row on which no device is new.
const MOST_STALE: usize = 100;
/// All rows together; as much as a list may have.
const MOST_BYTES: usize = 256 * 1024 * 1024;

/// Asks the hub, page by page.
///
/// # Errors
/// When the hub does not answer, refuses the query, or finds something without a `deviceId`.
pub(super) async fn devices(
    hub: &HubArgs,
    identity: &ServiceIdentity,
    sql: &str,
) -> Result<EntryList, Failure> {
    let query = of_devices(sql).map_err(Failure::usage)?;
    let (way, ca_file) = (hub.https().map_err(Failure::usage)?, hub.ca_file());
    let service = HttpsService::new(identity, way, ca_file.as_deref(), TOKEN_LIFETIME, SystemTime::now);
    let mut service = service.map_err(anyhow::Error::new)?;
    let mut rows = Rows::default();
    let mut stale = 0;
    rows::pages(&mut service, &query, |page, _| {
        let before = rows.seen.len();
        page.iter().try_for_each(|item| rows.add(item)).map_err(Failure::usage)?;
        stale = if rows.seen.len() == before { stale + 1 } else { 0 };
        if stale > MOST_STALE {
            return Err(anyhow!("the hub gives the same devices page after page: try again later").into());
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    if rows.seen.is_empty() {
        return Err(Failure::usage(anyhow!(
            "the query finds no device: {}; look at it with c2d-agent query, and know that the hub's index is some seconds to \
             minutes behind",
            plain(&query)
        )));
    }
    if rows.doubled > 0 {
        tell(format_args!("the query finds {} devices twice: each counts once", rows.doubled));
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
                     once, or give a list",
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

/// A condition without the word WHERE. `None` if it is a whole query.
pub(super) fn condition(sql: &str) -> Option<&str> {
    let sql = sql.trim();
    let first = sql.split_whitespace().next().unwrap_or_default();
    match first {
        first if first.eq_ignore_ascii_case("select") => None,
        first if first.eq_ignore_ascii_case("where") => sql.get(first.len()..).map(str::trim),
        _ => Some(sql),
    }
}

/// A condition is made a whole query, which finds the ids of devices.
pub(super) fn whole(sql: &str) -> String {
    match condition(sql) {
        Some(condition) => format!("SELECT deviceId FROM devices WHERE {condition}"),
        None => sql.to_owned(),
    }
}

/// A whole query for devices of which each gets something.
///
/// # Errors
/// When it selects whole twins.
fn of_devices(sql: &str) -> anyhow::Result<String> {
    let query = whole(sql);
    // The "properties" of a twin would be taken for those of a message.
    anyhow::ensure!(
        !query.split_whitespace().nth(1).is_some_and(|columns| columns.starts_with('*')),
        "SELECT * finds whole twins: name the columns that are needed, as in SELECT deviceId, tags.site FROM devices"
    );
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_condition_is_made_a_query() {
        let query = "SELECT deviceId FROM devices WHERE tags.site = '12'";
        for text in ["tags.site = '12'", "WHERE tags.site = '12'", "  where  tags.site = '12' ", query] {
            assert_eq!((whole(text).as_str(), of_devices(text).expect("a query").as_str()), (query, query));
        }
        assert!(of_devices("SELECT * FROM devices").is_err() && of_devices("select *, deviceId").is_err());
    }

    #[test]
    fn a_device_that_is_found_again_counts_once_if_its_row_is_the_same() {
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
