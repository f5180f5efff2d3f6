//! Shell-style patterns: `*`, `?`, `[abc]`, `[!a-z]`.
//!
//! Owns: their syntax, and a match with one step per character. Must not know: messages, TOML.
//!
//! The match follows all possible ways at once, with one bit for each. So the work does not depend on the pattern,
//! and no pattern is too expensive. The usual method, with backtracking, needs more time with each `*`.

/// Most characters of a pattern: one bit of a [`Bits`] for each, and one for the end.
const MAX_CHARS: usize = 100;
/// Longest text that can match a pattern, in bytes.
pub(crate) const MAX_TEXT: usize = 512;
/// From this length on, it is faster to look up all ASCII characters once before the match.
const WORTH_A_TABLE: usize = 64;

/// One bit for each number of pattern characters that the text may have matched so far.
type Bits = u128;

/// A pattern that matches a whole text. `*` matches any characters, also slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob {
    text: String,
    /// Ranges of characters, each up to the next entry, and the places of the pattern that they match.
    meets: Vec<(char, Bits)>,
    /// The places of each `*`, where any character may follow.
    stars: Bits,
    /// The end of the pattern.
    end: Bits,
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GlobError {
    #[error("a [ has no ]: write [abc], [a-z] or [!a-z], or [[] for the character itself")]
    Unclosed,
    #[error("write * in place of **: * also matches slashes")]
    Stars,
    #[error("it has {0} characters, but may have at most {MAX_CHARS}")]
    Long(usize),
}

/// What one character of a text must be.
enum CharPlace {
    Any,
    /// In one of these ranges, both ends included. If not `inside`: in none of them.
    Ranges {
        ranges: Vec<(char, char)>,
        inside: bool,
    },
}

impl Glob {
    pub(crate) fn parse(text: &str) -> Result<Self, GlobError> {
        let chars: Vec<char> = text.chars().collect();
        if chars.len() > MAX_CHARS {
            return Err(GlobError::Long(chars.len()));
        }
        let (mut places, mut stars, mut rest) = (Vec::new(), 0, chars.as_slice());
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match first {
                '*' if rest.first() == Some(&'*') => return Err(GlobError::Stars),
                '*' => stars |= 1 << places.len(),
                '?' => places.push(CharPlace::Any),
                '[' => places.push(read_class(&mut rest)?),
                one => places.push(CharPlace::Ranges { ranges: vec![(*one, *one)], inside: true }),
            }
        }
        Ok(Self { text: text.to_owned(), meets: meets(&places), stars, end: 1 << places.len() })
    }

    /// The pattern as it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches the whole text.
    pub(crate) fn matches(&self, text: &str) -> bool {
        if text.len() > MAX_TEXT {
            return false;
        }
        if text.len() < WORTH_A_TABLE {
            return self.follow(text, |one| self.meets(one));
        }
        let mut table = [0; 128];
        for (index, (first, bits)) in self.meets.iter().enumerate() {
            let next = self.meets.get(index + 1).map_or(128, |(next, _)| (*next as usize).min(128));
            // Above ASCII the range is empty or invalid, so nothing is filled.
            if let Some(part) = table.get_mut(*first as usize..next) {
                part.fill(*bits);
            }
        }
        self.follow(text, |one| table.get(one as usize).copied().unwrap_or_else(|| self.meets(one)))
    }

    fn follow(&self, text: &str, meets: impl Fn(char) -> Bits) -> bool {
        let mut ways: Bits = 1;
        for one in text.chars() {
            ways = ((ways & meets(one)) << 1) | (ways & self.stars);
            if ways == 0 {
                return false;
            }
        }
        ways & self.end != 0
    }

    fn meets(&self, one: char) -> Bits {
        let at = self.meets.partition_point(|(first, _)| *first <= one);
        at.checked_sub(1).and_then(|at| self.meets.get(at)).map_or(0, |(_, bits)| *bits)
    }
}

/// Reads a class. `rest` begins after its `[`. A `]` in first place is one of the characters, as in a shell.
fn read_class(rest: &mut &[char]) -> Result<CharPlace, GlobError> {
    let inside = rest.first() != Some(&'!');
    let all = if inside { *rest } else { &rest[1..] };
    let close = all.iter().skip(1).position(|one| *one == ']').ok_or(GlobError::Unclosed)? + 1;
    let (mut inner, behind) = all.split_at(close);
    let mut ranges = Vec::new();
    loop {
        match inner {
            [first, '-', last, after @ ..] => {
                ranges.push((*first, *last));
                inner = after;
            }
            [one, after @ ..] => {
                ranges.push((*one, *one));
                inner = after;
            }
            [] => break,
        }
    }
    *rest = &behind[1..];
    Ok(CharPlace::Ranges { ranges, inside })
}

fn meets(places: &[CharPlace]) -> Vec<(char, Bits)> {
    let mut firsts = vec!['\0'];
    for place in places {
        let CharPlace::Ranges { ranges, .. } = place else { continue };
        for (first, last) in ranges {
            firsts.push(*first);
            firsts.extend((*last..=char::MAX).nth(1));
        }
    }
    firsts.sort_unstable();
    firsts.dedup();
    let bits = |one: char| {
        let met = places.iter().enumerate().filter(|(_, place)| place.is_met_by(one));
        met.fold(0, |bits, (at, _)| bits | 1 << at)
    };
    firsts.into_iter().map(|first| (first, bits(first))).collect()
}

impl CharPlace {
    fn is_met_by(&self, one: char) -> bool {
        match self {
            Self::Any => true,
            Self::Ranges { ranges, inside } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&one)) == *inside
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::parse(pattern).expect("a pattern").matches(text)
    }

    #[test]
    fn patterns_are_those_of_a_shell_and_a_star_also_matches_slashes() {
        for (pattern, text, expected) in [
            ("*.txt", "/a/b.txt", true),
            ("?.txt", "/a/b.txt", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "a", true),
            ("a*b*c", "a-bb-b-c", true),
            ("a*b*c", "a-bb-b", false),
            ("zone-[1-39]", "zone-9", true),
            ("zone-[1-39]", "zone-4", false),
            ("zone-[!1-3]", "zone-4", true),
            ("zone-[!1-3]", "zone-", false),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[a-]", "-", true),
            ("[z-a]", "m", false),
            ("[?][*][[]", "?*[", true),
            ("a]", "a]", true),
            ("?", "ü", true),
            ("[à-ü]*", "ëx", true),
            ("[!\u{10ffff}]", "\u{10ffff}", false),
            ("[\u{d7ff}-\u{e000}]", "\u{e000}", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_text_longer_than_a_pattern_looks_at_does_not_match() {
        assert!(matches("*b", &format!("{}b", "a".repeat(MAX_TEXT - 1))));
        assert!(!matches("*", &"a".repeat(MAX_TEXT + 1)));
    }

    #[test]
    fn a_bad_pattern_is_told_with_its_remedy() {
        let error = |pattern: &str| Glob::parse(pattern).expect_err("no pattern").to_string();
        for open in ["[", "a[bc", "[]", "[!]", "[!"] {
            assert!(error(open).starts_with("a [ has no ]"), "{open}");
        }
        assert_eq!(error("a**b"), "write * in place of **: * also matches slashes");
        assert_eq!(error(&"a".repeat(101)), "it has 101 characters, but may have at most 100");
        assert!(matches(&"a".repeat(100), &"a".repeat(100)));
    }

    proptest! {
        #[test]
        fn what_matches_is_what_the_glob_crate_says(
            pattern in r"[ab?*\[\]!é-]{0,8}|(\*?[ab?é]\*?){0,6}|\[!?[a-eé]-?[a-eé]{0,2}\][*?a]{0,3}",
            text in "[abcé/\\]!-]{0,8}",
            copies in 1..40usize,
        ) {
            prop_assume!(!pattern.contains("**"));
            let reference = glob::Pattern::new(&pattern).ok();
            let own = Glob::parse(&pattern).ok();
            prop_assert_eq!(own.is_some(), reference.is_some(), "{}", pattern);
            // Long texts are tested, too, because they use the table. The reference backtracks, so the texts must not
            // be too long.
            let copies = if pattern.matches('*').count() > 2 { 1 } else { copies };
            let text = text.repeat(copies);
            if let (Some(own), Some(reference)) = (own, reference) {
                prop_assert_eq!(own.matches(&text), reference.matches(&text), "{} {}", pattern, text);
            }
        }
    }
}
