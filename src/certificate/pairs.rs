//! The pairs of a device on its disk: the one that it signs in with, and the one that comes next.
//!
//! Owns: the two files, what is in them, and their order of change. Must not know: when to renew, what signs in.
//!
//! Key and chain of a pair are in one file, so no crash leaves a key with the chain of another one. A file is written
//! beside its place, synced and renamed, so it is whole or not there. The names say what a file is:
//!
//! | `…certificate` | `…certificate.next` | what it means |
//! |---|---|---|
//! | absent, or the current pair | absent | nothing was asked for |
//! | the same | a key alone | a certificate for it is asked for |
//! | the same | key and chain | issued; no sign-in with it has worked yet |
//! | the next pair, renamed | absent | the first sign-in with it has worked |
//!
//! The earlier pair goes with the last step, which is one rename. So at any moment a pair is there that has worked.
//!
//! A `….next` that cannot be read counts for nothing, and a new key takes its place. That costs a request, but no
//! sign-in. To keep it until it can be read could cost the device: nothing else would be asked for, and the current
//! certificate ends.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::chain::IssuedChain;
use super::facts::CertificateFacts;
use super::pem::pem_blocks;
use super::request::CertificateKey;
use crate::trust;

/// The largest file of a pair: more than a key and the longest chain.
const MOST_BYTES: u64 = 256 * 1024;

/// The pairs of one registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedPairs {
    current_file: PathBuf,
    next_file: PathBuf,
    /// The first line of both files, so that a pair of another registration counts for nothing.
    title: String,
    /// The dates of the pair that has signed in, if there is one.
    pub current: Option<CertificateFacts>,
    /// What comes after it.
    pub next: NextPair,
    /// Why a file counts for nothing, if one does.
    pub passed_over: Vec<String>,
    /// Who may own the files, apart from root and the user who runs this.
    owner: Option<u32>,
}

/// A key, and the dates of the certificate if there is one.
type KeptPair = (CertificateKey, Option<CertificateFacts>);

/// The pair that comes next, as far as it has got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NextPair {
    /// There is no key for it yet.
    #[default]
    Absent,
    /// Its key is on disk, and a certificate for it may have been asked for.
    Requested(CertificateKey),
    /// It is whole, and has never signed in.
    Issued(CertificateFacts),
}

impl NextPair {
    fn of(kept: Option<KeptPair>) -> Self {
        match kept {
            Some((_, Some(facts))) => Self::Issued(facts),
            Some((key, None)) => Self::Requested(key),
            None => Self::Absent,
        }
    }
}

impl IssuedPairs {
    /// Reads what is kept beside the inbox for a registration, which `title` names in one line. Apart from root and the
    /// user who runs this, `owner` may own the files, and gets them. `fits` says why TLS does not take a pair, in PEM: one
    /// that it does not take counts for nothing, so that the earlier one signs in.
    pub fn read(inbox: &Path, title: &str, owner: Option<u32>, fits: fn(&str) -> Result<(), String>) -> Self {
        let beside = |suffix: &str| {
            let mut file = inbox.as_os_str().to_owned();
            file.push(suffix);
            PathBuf::from(file)
        };
        let mut pairs = Self {
            current_file: beside(".certificate"),
            next_file: beside(".certificate.next"),
            title: format!("c2d-agent: {title}"),
            current: None,
            next: NextPair::Absent,
            passed_over: Vec::new(),
            owner,
        };
        let [current, next] = [&pairs.current_file, &pairs.next_file].map(|file| pairs.read_file(file, fits));
        let understood = |read: Result<_, String>, passed_over: &mut Vec<String>| {
            read.unwrap_or_else(|reason| {
                passed_over.push(reason);
                None
            })
        };
        pairs.current = understood(current, &mut pairs.passed_over).and_then(|(_, facts)| facts);
        pairs.next = NextPair::of(understood(next, &mut pairs.passed_over));
        pairs
    }

    /// The file of the pair to sign in with: the next one, so that it is tried, or the current one.
    pub fn file(&self) -> Option<&Path> {
        match self.next {
            NextPair::Issued(_) => Some(&self.next_file),
            _ => self.current.map(|_| &*self.current_file),
        }
    }

    /// The file of the pair to go back to if the hub refuses the next one.
    pub fn earlier_file(&self) -> Option<&Path> {
        matches!(self.next, NextPair::Issued(_)).then_some(())?;
        self.current.map(|_| &*self.current_file)
    }

    /// The key for which a certificate can be asked.
    pub fn key(&self) -> Option<&CertificateKey> {
        match &self.next {
            NextPair::Requested(key) => Some(key),
            _ => None,
        }
    }

    /// The certificate of the next pair, if it has one.
    pub fn untried(&self) -> Option<CertificateFacts> {
        match self.next {
            NextPair::Issued(facts) => Some(facts),
            _ => None,
        }
    }

    /// Keeps a new key, in place of the next pair if there is one. May block.
    ///
    /// # Errors
    /// Why there is no key on disk, in one sentence. What was there before still is, or a power cut may bring it back, as
    /// [`Self::next`] says.
    pub fn begin(&mut self) -> Result<(), String> {
        let key = CertificateKey::generate().map_err(|error| format!("there is no new key: {error}"))?;
        self.write(&key.to_pem())?;
        self.next = NextPair::Requested(key);
        self.sync(&self.next_file)
    }

    /// Whether the next pair has this chain already, in base64 of DER: the hub may send it twice.
    pub fn has(&self, chain: &[String]) -> bool {
        let own = chain.first().and_then(|own| BASE64_STANDARD.decode(own).ok());
        let facts = own.and_then(|own| CertificateFacts::read(&own));
        matches!((&self.next, facts), (NextPair::Issued(next), Some(facts)) if *next == facts)
    }

    /// Keeps the chain that was issued for the key. May block.
    ///
    /// # Errors
    /// As [`Self::begin`], and when there is no key.
    pub fn issued(&mut self, chain: &IssuedChain) -> Result<(), String> {
        let key = self.key().ok_or("there is no key that it could be for")?;
        self.write(&(key.to_pem() + &chain.to_pem()))?;
        self.next = NextPair::Issued(chain.facts());
        self.sync(&self.next_file)
    }

    /// Reads the next pair again if it is issued: a command beside the agent may have put another one, or a key, there.
    /// `fits` is as for [`Self::read`]. May block.
    ///
    /// # Errors
    /// That it is another one now, as [`Self::next`] says, in one sentence.
    pub fn read_next_again(&mut self, fits: fn(&str) -> Result<(), String>) -> Result<(), String> {
        let NextPair::Issued(facts) = self.next else { return Ok(()) };
        let found = self.read_file(&self.next_file, fits);
        if matches!(found, Ok(Some((_, Some(found)))) if found == facts) {
            return Ok(());
        }
        self.next = NextPair::of(found.clone().unwrap_or_default());
        found.and_then(|_| Err(format!("{} was written by another process", self.next_file.display())))
    }

    /// The next pair has signed in: it becomes the current one. May block.
    ///
    /// # Errors
    /// As [`Self::begin`]. If only the sync fails, the pair has its new name all the same, as [`Self::current`] says. If
    /// another process has written the next pair, that one is [`Self::next`].
    pub fn take_up(&mut self) -> Result<(), String> {
        let NextPair::Issued(facts) = self.next else { return Ok(()) };
        let found = self.read_file(&self.next_file, |_| Ok(()))?;
        if !matches!(found, Some((_, Some(found))) if found == facts) {
            self.next = NextPair::of(found);
            let file = self.next_file.display();
            return Err(format!(
                "{file} has another pair than the one that signed in: another process wrote it"
            ));
        }
        fs::rename(&self.next_file, &self.current_file)
            .map_err(|error| unwritten(&self.current_file, &error))?;
        (self.current, self.next) = (Some(facts), NextPair::Absent);
        self.sync(&self.current_file)
    }

    fn write(&self, text: &str) -> Result<(), String> {
        let text = format!("{}\n{text}", self.title);
        trust::replace_as(&self.next_file, text.as_bytes(), self.owner)
            .map_err(|error| unwritten(&self.next_file, &error))
    }

    /// Until the new name of a file is on disk, a power cut may bring the earlier one back.
    fn sync(&self, file: &Path) -> Result<(), String> {
        trust::sync_directory(trust::directory_of(file)).map_err(|error| unwritten(file, &error))
    }

    /// The key in a file, and the dates of the certificate if one follows it. None if there is no file.
    fn read_file(
        &self,
        file: &Path,
        fits: fn(&str) -> Result<(), String>,
    ) -> Result<Option<KeptPair>, String> {
        let read = trust::read_own(file, MOST_BYTES, self.owner)
            .and_then(|text| text.map(|text| self.understand(&text, fits)).transpose());
        read.map_err(|reason| format!("{} counts for nothing: {reason}", file.display()))
    }

    fn understand(&self, text: &str, fits: fn(&str) -> Result<(), String>) -> Result<KeptPair, String> {
        let (title, blocks) = text.split_once('\n').unwrap_or((text, ""));
        if title != self.title {
            let whose: String = title.chars().take(120).flat_map(char::escape_debug).collect();
            return Err(format!("it is of another registration (\"{whose}\")"));
        }
        let damaged = || "it is damaged".to_owned();
        let pair = blocks;
        let mut blocks = pem_blocks(pair).ok_or_else(damaged)?.into_iter();
        let key =
            blocks.next().and_then(|(_, der)| CertificateKey::from_pkcs8(&der).ok()).ok_or_else(damaged)?;
        let Some((_, own)) = blocks.next() else { return Ok((key, None)) };
        let (facts, subject) = super::facts::read(&own).ok_or_else(damaged)?;
        if subject.public != key.public() {
            return Err("its certificate is for another key".to_owned());
        }
        fits(pair)?;
        Ok((key, Some(facts)))
    }
}

fn unwritten(file: &Path, error: &io::Error) -> String {
    format!("{} cannot be written: {}", file.display(), trust::in_words(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, Issuer, KeyPair};

    fn read(inbox: &Path, title: &str) -> IssuedPairs {
        IssuedPairs::read(inbox, title, None, crate::tls::check_pem_pair)
    }

    fn chain(key: &CertificateKey) -> IssuedChain {
        let own = KeyPair::from_pem(&key.to_pem()).expect("a key");
        let authority = Issuer::new(CertificateParams::default(), KeyPair::generate().expect("a key"));
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "d");
        let der = params.signed_by(&own, &authority).expect("signed").der().to_vec();
        let members = [BASE64_STANDARD.encode(der)];
        IssuedChain::read(&members, key, &["d"]).expect("a chain")
    }

    fn issue(pairs: &mut IssuedPairs) -> CertificateFacts {
        pairs.begin().expect("a key");
        let chain = chain(pairs.key().expect("a key"));
        pairs.issued(&chain).expect("kept");
        chain.facts()
    }

    /// Whether the file has a key and the certificate of it, as TLS takes it.
    fn works(file: &Path) -> bool {
        let pair = crate::tls::ClientCertificate { certificate: file.into(), private_key: file.into() };
        crate::tls::check_client_certificate(&pair).is_ok()
    }

    #[test]
    fn each_step_is_read_again_and_always_leaves_a_pair_that_works() {
        let dir = tempfile::tempdir().expect("a directory");
        let inbox = dir.path().join("inbox.journal");
        let again = || read(&inbox, "reg-01 of 0ne1");
        let mut pairs = again();
        assert_eq!((pairs.file(), pairs.next.clone()), (None, NextPair::Absent));
        let first = issue(&mut pairs);
        assert_eq!(again(), pairs);
        assert!(pairs.file().is_some_and(works) && pairs.earlier_file().is_none());
        pairs.take_up().expect("renamed");
        assert_eq!((again(), pairs.current), (pairs.clone(), Some(first)));

        // From here on, a pair that has signed in is there after each step.
        pairs.begin().expect("a key");
        assert_eq!(again(), pairs);
        assert!(pairs.file().is_some_and(works) && pairs.key().is_some());
        let next = chain(pairs.key().expect("a key"));
        pairs.issued(&next).expect("kept");
        assert_eq!(again(), pairs);
        assert!(pairs.file().is_some_and(works) && pairs.earlier_file().is_some_and(works));
        assert_ne!(pairs.file(), pairs.earlier_file());
        let members = |chain: &IssuedChain| {
            let text = chain.to_pem();
            let blocks = pem_blocks(&text).expect("PEM").into_iter();
            blocks.map(|(_, der)| BASE64_STANDARD.encode(der)).collect::<Vec<_>>()
        };
        assert!(pairs.has(&members(&next)), "a chain that comes twice");
        let another = chain(&CertificateKey::generate().expect("a key"));
        assert!(!pairs.has(&members(&another)) && !pairs.has(&[]));
        pairs.take_up().expect("renamed");
        assert_eq!(again(), pairs);
        assert_eq!((pairs.current, pairs.next.clone()), (Some(next.facts()), NextPair::Absent));
        assert!(pairs.file().is_some_and(works));

        // A refused pair is replaced by a new key, and the current one stays.
        issue(&mut pairs);
        pairs.begin().expect("a key");
        assert_eq!((again().current, pairs.file().is_some_and(works)), (Some(next.facts()), true));
    }

    #[test]
    fn a_pair_that_tls_does_not_take_counts_for_nothing_and_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let inbox = dir.path().join("inbox.journal");
        let mut pairs = read(&inbox, "r");
        let first = issue(&mut pairs);
        pairs.take_up().expect("renamed");
        issue(&mut pairs);
        let refuse = |_: &str| Err("TLS does not take it (a reason)".to_owned());
        let read = IssuedPairs::read(&inbox, "r", None, refuse);
        assert_eq!((read.file(), &read.next), (None, &NextPair::Absent));
        assert_eq!(read.passed_over.len(), 2);
        assert!(
            read.passed_over[1]
                .ends_with("certificate.next counts for nothing: TLS does not take it (a reason)")
        );
        assert_eq!(pairs.current, Some(first));
    }

    #[test]
    fn another_pair_in_the_place_of_the_one_that_signed_in_is_not_taken_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let inbox = dir.path().join("inbox.journal");
        let [mut own, mut other] = [(); 2].map(|()| read(&inbox, "r"));
        issue(&mut own);
        let written = issue(&mut other);
        let mut again = own.clone();
        assert!(again.read_next_again(|_| Ok(())).is_err_and(|said| said.ends_with("by another process")));
        assert_eq!(again.next, other.next);
        assert_eq!((again.read_next_again(|_| Ok(())), again.next), (Ok(()), other.next.clone()));
        let said = own.take_up().expect_err("it never signed in");
        assert!(said.ends_with("another process wrote it"), "{said}");
        assert_eq!((own.current, own.next.clone()), (None, NextPair::Issued(written)));
        own.take_up().expect("now it is the one");
        assert_eq!(own.current, Some(written));
    }

    /// A crash within a write leaves the beginning of `NAME.new`, whose rename has not happened.
    #[test]
    fn a_torn_write_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let inbox = dir.path().join("inbox.journal");
        let mut pairs = read(&inbox, "reg-01 of 0ne1");
        issue(&mut pairs);
        pairs.take_up().expect("renamed");
        for step in [false, true] {
            if step {
                issue(&mut pairs);
            }
            let torn = dir.path().join("inbox.journal.certificate.next.new");
            let whole = fs::read(pairs.file().expect("a pair")).expect("read");
            for length in [0, 1, whole.len() / 2, whole.len()] {
                fs::write(&torn, &whole[..length]).expect("written");
                assert_eq!(read(&inbox, "reg-01 of 0ne1"), pairs);
            }
            pairs.begin().expect("what is left over is no obstacle");
        }
    }

    #[test]
    fn files_of_others_and_damaged_ones_count_for_nothing_and_are_named() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let inbox = dir.path().join("inbox.journal");
        let mut pairs = read(&inbox, "reg-01 of 0ne1");
        issue(&mut pairs);
        let file = pairs.next_file.clone();
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        let other = read(&inbox, "reg-02 of 0ne1");
        assert_eq!(other.next, NextPair::Absent);
        assert!(other.passed_over[0].contains("of another registration"), "{:?}", other.passed_over);

        let whole = fs::read_to_string(&file).expect("read");
        let said = |text: &str| {
            fs::write(&file, text).expect("written");
            let read = read(&inbox, "reg-01 of 0ne1");
            assert_eq!(read.next, NextPair::Absent);
            read.passed_over.concat()
        };
        assert!(said(&whole[..whole.len() / 2]).ends_with("it is damaged"));
        assert!(said("c2d-agent: reg-01 of 0ne1\n").ends_with("it is damaged"));
        let another = CertificateKey::generate().expect("a key");
        let mixed = "c2d-agent: reg-01 of 0ne1\n".to_owned()
            + &another.to_pem()
            + &chain(pairs.key().unwrap_or(&CertificateKey::generate().expect("a key"))).to_pem();
        assert!(said(&mixed).ends_with("its certificate is for another key"));
        fs::write(&file, &whole).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).expect("changed");
        let read = read(&inbox, "reg-01 of 0ne1");
        assert!(read.passed_over.concat().contains("is writable by users other than its owner"));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_one_sentence_and_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let inbox = dir.path().join("none/inbox.journal");
        let mut pairs = read(&inbox, "r");
        let before = pairs.clone();
        let said = pairs.begin().expect_err("no directory");
        assert!(
            said.ends_with("inbox.journal.certificate.next cannot be written: there is no such file"),
            "{said}"
        );
        assert_eq!(pairs, before);
    }
}
