//! A configuration with the twin's rules after its own.
//!
//! Owns: where the twin's rules come from, when they count, and that they count all together or not at all. Must not
//! know: how the twin is read.
//!
//! Each text of the twin is read like a drop-in after all files. So if a local rule matches a message, it is the first
//! match. Places in a text are `twin:NAME:line:column`. Only `[[rule]]` may stand in it, and its steps are checked
//! against `[allow]`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::rules::Rules;
use crate::trust;

use super::report::{Place, Report};
use super::rule::TwinRule;
use super::sources::Sources;
use super::twin_rules::TwinRules;
use super::{Config, Inspection, TwinSettings, inspect, merge, read_rules, table};

/// Which rules of the twin to use with a configuration.
#[derive(Debug, Clone, Copy)]
pub enum Remote<'a> {
    /// The rules in the file beside the inbox, as an agent does when it starts.
    Stored,
    /// The rules in that file, only to show them: root also reads a file of the user who owns the inbox's directory.
    Shown,
    /// These rules.
    Given(&'a TwinRules),
}

/// What happened to the twin's rules.
#[derive(Debug, Clone)]
pub enum TwinPart {
    /// There are none.
    Absent,
    /// The configuration includes them.
    Used {
        /// The texts.
        rules: TwinRules,
        /// What is doubtful about them; often empty.
        warnings: Report,
    },
    /// The configuration has only the local files' rules.
    Refused {
        /// The texts.
        rules: TwinRules,
        /// All problems.
        report: Report,
    },
    /// The file that keeps them cannot be read.
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why, in words.
        reason: String,
    },
}

/// The texts that a configuration is made from.
#[derive(Clone, Default)]
pub struct Texts(pub(super) Arc<Sources>);

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|source| &source.path)).finish()
    }
}

/// Reads a configuration file and its drop-ins from the disk, and adds the twin's rules. `env` as in [`super::load`].
///
/// # Errors
/// All problems of the local files. Problems of the twin's rules are in [`TwinPart::Refused`].
pub fn load_with(
    path: &Path,
    remote: Remote<'_>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, TwinPart), Report> {
    let (inspection, part) = inspect_with(path, remote, env);
    Ok((inspection.into_config()?, part))
}

/// Reads a configuration file and its drop-ins as far as possible, and adds the twin's rules if the files have no
/// problem.
pub fn inspect_with(
    path: &Path,
    remote: Remote<'_>,
    env: &dyn Fn(&str) -> Option<String>,
) -> (Inspection, TwinPart) {
    let mut inspection = inspect(path, env);
    if !matches!(remote, Remote::Shown) {
        inspection.keep_own_files();
    }
    let Some(inbox) = inspection.inbox.as_ref().filter(|_| inspection.report.problems() == 0) else {
        return (inspection, TwinPart::Absent);
    };
    let rules = match remote {
        Remote::Given(rules) => rules.clone(),
        Remote::Stored | Remote::Shown => {
            let file = TwinRules::file(&inbox.path);
            let owner = matches!(remote, Remote::Shown).then(|| trust::owner_for_root(&inbox.path)).flatten();
            match TwinRules::stored(&file, owner) {
                Ok(None) => return (inspection, TwinPart::Absent),
                Ok(Some(rules)) => rules,
                // The file may not even be for this program, and its rules would not be used.
                Err(_) if !inspection.twin.accepts_rules => return (inspection, TwinPart::Absent),
                Err(reason) => return (inspection, TwinPart::Unreadable { file, reason }),
            }
        }
    };
    if rules.is_empty() {
        return (inspection, TwinPart::Absent);
    }
    match judge(&inspection.twin, &inspection.texts, &rules) {
        Ok(judged) => {
            inspection.rules = Some(judged.rules);
            inspection.twin_rules = judged.twin_rules;
            inspection.texts = judged.texts;
            (inspection, TwinPart::Used { rules, warnings: judged.warnings })
        }
        Err(report) => (inspection, TwinPart::Refused { rules, report }),
    }
}

impl Config {
    /// This configuration, with its files as they were when they were read, but with these rules of the twin; and what
    /// is doubtful about the rules. It looks at the programs of `[allow]` and of all rules again, so it may block.
    ///
    /// # Errors
    /// All problems.
    pub fn with_twin(&self, rules: &TwinRules) -> Result<(Self, Report), Report> {
        if rules.is_empty() {
            return Ok((self.without_twin(), Report::default()));
        }
        let judged = judge(&self.twin, &self.texts, rules)?;
        let (rules, twin_rules, texts) = (judged.rules, judged.twin_rules, judged.texts);
        Ok((Self { rules, twin_rules, texts, ..self.clone() }, judged.warnings))
    }

    /// This configuration without the twin's rules.
    #[must_use]
    pub fn without_twin(&self) -> Self {
        let rules = own(&self.rules, &self.twin_rules);
        Self { rules, twin_rules: Vec::new(), texts: Texts(Arc::new(self.texts.0.local())), ..self.clone() }
    }

    /// Twelve hexadecimal digits that change with each text of the configuration, also with each text of the twin.
    pub fn digest(&self) -> String {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for source in self.texts.0.iter() {
            context.update(&(source.text.len() as u64).to_be_bytes());
            context.update(source.text.as_bytes());
        }
        context.finish().as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The rules without the twin's, which stand after all others.
pub(super) fn own(rules: &Rules, twin_rules: &[TwinRule]) -> Rules {
    let own = rules.len() - twin_rules.len().min(rules.len());
    Rules::new(rules.iter().take(own).cloned().collect())
}

struct Judged {
    rules: Rules,
    twin_rules: Vec<TwinRule>,
    texts: Texts,
    warnings: Report,
}

/// Reads the twin's rules together with the local texts.
fn judge(settings: &TwinSettings, texts: &Texts, remote: &TwinRules) -> Result<Judged, Report> {
    let mut report = Report::default();
    if !settings.accepts_rules {
        let message = "this device does not accept rules from its twin: to allow them, its owner writes \
                       [twin] accept = [\"rules\"] in its configuration, with [allow]";
        report.problem(Place::File("twin".into()), message);
        return Err(report);
    }
    let mut sources = texts.0.local();
    for (name, text) in &remote.texts {
        sources.push_remote(name, text.as_str());
    }
    let sources = Arc::new(sources);
    report.set_sources(Arc::clone(&sources));
    let merge::Merged { root, rules, .. } = merge::read(&sources, &mut report);
    let mut found = None;
    if report.problems() == 0 {
        let directory = sources.main().and_then(Path::parent).unwrap_or(Path::new(""));
        let mut root = table::Table::new("the configuration", 0..0, &root);
        found = Some(read_rules(&mut root, &rules, directory, &sources, &mut report));
    }
    report.sort();
    match found.and_then(|part| Some((part.rules?, part.twin_rules))) {
        Some((rules, twin_rules)) if report.problems() == 0 => {
            report.only_of_the_twin();
            Ok(Judged { rules, twin_rules, texts: Texts(sources), warnings: report })
        }
        _ => Err(report),
    }
}
