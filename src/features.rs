//! The parts of this program that a smaller build lacks, and where to get them.
//!
//! Owns: which part is in this build, and the sentence about a missing part. Must not know: what a part does.

/// A part of the program that is a Cargo feature, or needs several.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Feature {
    /// The value for `--features`.
    feature: &'static str,
    is_built: bool,
    /// Whether the full packages have the part.
    is_packaged: bool,
}

const fn part(feature: &'static str, is_built: bool) -> Feature {
    Feature { feature, is_built, is_packaged: true }
}

/// What the small image lacks: the identity of a module, AMQP, WebSockets, `[metrics]`, `doctor`, the commands of the
/// back end.
pub(crate) const FULL: Feature = part("full", cfg!(feature = "full"));
/// `schema`, which `manual` needs, too.
pub(crate) const SCHEMA: Feature = part("full", cfg!(any(feature = "full", feature = "manual")));
/// `emulator` and `demo`.
pub(crate) const EMULATOR: Feature = part("emulator", cfg!(feature = "emulator"));
/// `manual`, which only packagers build.
pub(crate) const MANUAL: Feature = Feature { is_packaged: false, ..part("manual", cfg!(feature = "manual")) };

impl Feature {
    /// Whether this build has the part.
    pub(crate) const fn is_built(self) -> bool {
        self.is_built
    }

    /// Says that `what`, which belongs to the part, is not in this program, and where to get it.
    pub(crate) fn lacks(self, what: &str) -> String {
        let who = match self.is_packaged {
            true => {
                "the Debian package c2d-agent has it, and so has a build by scripts/build-arm.sh with --full"
            }
            false => "no package has it, so build it",
        };
        format!("{what} is not in this program: {who}; its Cargo feature is {}", self.feature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_feature_and_the_package_that_has_it() {
        assert_eq!(
            FULL.lacks("doctor"),
            "doctor is not in this program: the Debian package c2d-agent has it, and so has a build by \
             scripts/build-arm.sh with --full; its Cargo feature is full"
        );
    }
}
