//! What `--json` prints, for all commands.
//!
//! Owns: that all names have one spelling. Must not know: which objects a command has.

use serde_json::Value;

/// Parses the output of `--json`: an object per line, with names in camelCase. Names below `payload` and the properties
/// of a message are not checked, because they come from others.
pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    fn check(value: &Value) {
        for (name, below) in value.as_object().into_iter().flatten() {
            let is_camel_case =
                name.starts_with(char::is_lowercase) && name.chars().all(char::is_alphanumeric);
            assert!(is_camel_case, "\"{name}\" in {value}");
            if !["payload", "systemProperties", "applicationProperties", "pins", "totals"]
                .contains(&name.as_str())
            {
                check(below);
            }
        }
        value.as_array().into_iter().flatten().for_each(check);
    }
    let lines: Vec<_> = text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    lines.iter().for_each(check);
    lines
}
