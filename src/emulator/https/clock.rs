//! The emulator's own routes that show and move its clock.
//!
//! Owns: their JSON. Must not know: what follows the clock.
//!
//! They are only for peers on this machine, with a token of the service policy.

use serde::Deserialize;
use serde_json::json;

use super::call::HttpCall;
use super::reply::{self, HttpResult};
use crate::emulator::clock::{ClockError, ClockOffset, ClockSetting};
use crate::message::{excerpt, format_time, parse_time};

/// Most bytes of a setting.
const MAX_SETTING: usize = 256;

/// One of these says how to set the clock.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingForm {
    now: Option<String>,
    offset: Option<String>,
    advance: Option<String>,
}

/// `GET /emulator/clock`.
pub(super) fn show(call: &HttpCall) -> HttpResult {
    let (real, offset) = call.hub.clock();
    Ok(reply::ok(&json!({
        "now": format_time(offset.of(real)),
        "realTime": format_time(real),
        "offsetMs": offset.as_millis(),
    })))
}

/// `PUT /emulator/clock`: `{"now": TIME}`, `{"offset": "+48h"}` or `{"advance": "48h"}`.
pub(super) async fn set(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_SETTING).await?;
    let setting = serde_json::from_slice(&body).map_err(|error| error.to_string()).and_then(setting);
    let setting = setting.map_err(|sentence| reply::bad_argument(&sentence))?;
    move_to(call, setting)
}

/// `DELETE /emulator/clock`: the real time again.
pub(super) fn reset(call: &HttpCall) -> HttpResult {
    move_to(call, ClockSetting::Offset(ClockOffset::default()))
}

fn move_to(call: &HttpCall, setting: ClockSetting) -> HttpResult {
    call.hubs.move_clock(setting).map_err(|error| reply::bad_argument(&error.to_string()))?;
    show(call)
}

fn setting(form: SettingForm) -> Result<ClockSetting, String> {
    let setting = match form {
        SettingForm { now: Some(text), offset: None, advance: None } => {
            parse_time(&text).map(ClockSetting::At).ok_or_else(|| ClockError::Setting(excerpt(&text)))
        }
        SettingForm { now: None, offset: Some(text), advance: None } => {
            text.parse().map(ClockSetting::Offset)
        }
        SettingForm { now: None, offset: None, advance: Some(text) } => ClockSetting::advance(&text),
        _ => return Err("name one of now, offset and advance".to_owned()),
    };
    setting.map_err(|error| error.to_string())
}
