//! What `--json` prints, whatever the command.
//!
//! Owns: that all names have one spelling. Must not know: which objects a command has.

use serde_json::Value;

/// What `--json` printed: an object per line, whose names have one spelling, camelCase. What is below `payload` and the
/// properties of a message is not this program's.
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
