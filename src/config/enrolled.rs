//! What came of an enrolment: the assignment and the certificates that earlier registrations have left beside the
//! inbox.
//!
//! Owns: their files, and who signs in with them. Must not know: how a registration is made, keys of the configuration.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::certificate::{CertificateFacts, IssuedChain, IssuedPairs, NextPair};
use crate::credentials::{DeviceAuth, DeviceIdentity, Transport};
use crate::provisioning::{Assignment, Enrolment};
use crate::tls;
use crate::trust;

use super::report::{Place, Report};

/// The largest file of an assignment.
const MAX_ASSIGNMENT_BYTES: u64 = 64 * 1024;

/// How the device is enrolled, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioning {
    /// What the service is asked.
    pub enrolment: Enrolment,
    /// The file that keeps the assignment.
    pub file: PathBuf,
    /// The assignment, and when it was made, in seconds since 1970. Absent: the service must be asked.
    pub assigned: Option<(Assignment, u64)>,
    /// Whether the file has it.
    pub is_kept: bool,
    /// The certificates that the service has issued; absent if it is not asked for any.
    pub pairs: Option<IssuedPairs>,
    /// Who may own the files, apart from root and the user who runs this.
    owner: Option<u32>,
}

impl Provisioning {
    /// Reads what an earlier registration has left beside `inbox`. A file that does not count is a warning. If root runs
    /// this, the files may belong to the owner of their directory: root examines and prepares a service that runs as
    /// another user.
    pub(super) fn kept(enrolment: Enrolment, inbox: &Path, report: &mut Report) -> Self {
        Self::kept_by(trust::owner_for_root(inbox), enrolment, inbox, report)
    }

    /// As an agent reads it: an agent of root must not believe another user, who could name a hub of his own.
    pub(super) fn of_own_files(self, inbox: &Path, report: &mut Report) -> Self {
        match self.owner {
            None | Some(0) => self,
            Some(_) => Self::kept_by(None, self.enrolment, inbox, report),
        }
    }

    fn kept_by(owner: Option<u32>, enrolment: Enrolment, inbox: &Path, report: &mut Report) -> Self {
        let mut file = inbox.as_os_str().to_owned();
        file.push(".assignment");
        let file = PathBuf::from(file);
        let kept = trust::read_own(&file, MAX_ASSIGNMENT_BYTES, owner).and_then(|text| match text {
            Some(text) => {
                Assignment::from_file(&text, &enrolment).map(Some).map_err(|error| error.to_string())
            }
            None => Ok(None),
        });
        let assigned = kept.unwrap_or_else(|reason| {
            let message = format!("{reason}; the provisioning service is asked anew");
            report.warning(Place::File(file.clone()), message);
            None
        });
        let title = format!("{} of {}", enrolment.registration_id, enrolment.id_scope);
        let pairs = enrolment
            .request_certificate
            .then(|| IssuedPairs::read(inbox, &title, owner, tls::check_pem_pair));
        for reason in pairs.iter().flat_map(|pairs| &pairs.passed_over) {
            report.warning(
                Place::File(file.clone()),
                format!("{reason}; the service is asked for a certificate anew"),
            );
        }
        Self { enrolment, file, assigned, is_kept: true, pairs, owner }
    }

    /// Reads the files again: another process may have changed them since.
    pub(super) fn read_again(&self, inbox: &Path, report: &mut Report) -> Self {
        Self::kept_by(self.owner, self.enrolment.clone(), inbox, report)
    }

    /// Keeps what `present` has and the file has not: a full disk may have kept it from the file.
    pub fn or_present(&mut self, present: Option<&Self>) {
        let Some(present) = present.filter(|present| present.enrolment.is_registered_as(&self.enrolment))
        else {
            return;
        };
        if !present.is_kept {
            self.assigned.clone_from(&present.assigned);
            self.is_kept = false;
        }
    }

    /// When the assignment was made. A time that no clock can show counts as 1970.
    pub fn assigned_at(&self) -> Option<SystemTime> {
        let (_, at) = self.assigned.as_ref()?;
        let epoch = SystemTime::UNIX_EPOCH;
        Some(epoch.checked_add(Duration::from_secs(*at)).unwrap_or(epoch))
    }

    /// Takes an assignment that was made at `at`, in seconds since 1970.
    pub fn assign(&mut self, assignment: Assignment, at: u64) {
        (self.assigned, self.is_kept) = (Some((assignment, at)), false);
    }

    /// Makes sure that there is a key for which a certificate can be asked, if the service is asked for one and has not
    /// issued the next one. May block.
    ///
    /// # Errors
    /// Why there is no key on disk. Then no certificate is asked for.
    pub fn prepare(&mut self) -> Result<(), String> {
        match &mut self.pairs {
            Some(pairs) if pairs.next == NextPair::Absent => pairs.begin(),
            _ => Ok(()),
        }
    }

    /// As [`Self::prepare`]; also makes a key in place of the next pair if that has the certificate `refused`.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn begin(&mut self, refused: Option<CertificateFacts>) -> Result<(), String> {
        match &mut self.pairs {
            Some(pairs) if matches!(pairs.next, NextPair::Issued(next) if Some(next) == refused) => {
                pairs.begin()
            }
            _ => self.prepare(),
        }
    }

    /// The next pair has signed in. May block.
    ///
    /// # Errors
    /// Why it could not become the current one. It is still the next one then, and signs in again at the next start.
    pub fn take_up(&mut self) -> Result<(), String> {
        self.pairs.as_mut().map_or(Ok(()), IssuedPairs::take_up)
    }

    /// Reads the next pair again: see [`IssuedPairs::read_next_again`]. May block.
    ///
    /// # Errors
    /// That another process has written it.
    pub fn read_next_again(&mut self) -> Result<(), String> {
        self.pairs.as_mut().map_or(Ok(()), |pairs| pairs.read_next_again(tls::check_pem_pair))
    }

    /// The request for a certificate that goes along with a registration, in base64 of its DER.
    pub fn csr(&self) -> Option<String> {
        let key = self.pairs.as_ref()?.key()?;
        key.request(&self.enrolment.registration_id).ok()
    }

    /// Keeps a chain that was issued for the key, in base64 of DER. May block.
    ///
    /// # Errors
    /// Why the chain cannot be used or kept. Then what was there before stays in force.
    pub fn issued(&mut self, chain: &[String]) -> Result<(), String> {
        let Some(pairs) = self.pairs.as_mut().filter(|pairs| !pairs.has(chain)) else { return Ok(()) };
        let key = pairs.key().ok_or("a certificate was issued, but none was asked for")?;
        let names =
            [Some(&self.enrolment.registration_id), self.assigned.as_ref().map(|(of, _)| &of.device_id)];
        let names: Vec<_> = names.into_iter().flatten().map(String::as_str).collect();
        let unfit =
            |reason: String| format!("the certificate chain that was issued cannot be used: {reason}");
        let chain = IssuedChain::read(chain, key, &names).map_err(|error| unfit(error.to_string()))?;
        // Before it is written: what TLS does not take could never sign in.
        tls::check_pem_pair(&(key.to_pem() + &chain.to_pem())).map_err(unfit)?;
        pairs.issued(&chain)
    }

    /// Writes the file. After the return, a power cut does not undo that. If root does this for a service that runs as
    /// another user, the file belongs to that user. May block.
    ///
    /// # Errors
    /// Why it cannot be written; then the earlier file is still there.
    pub fn write(&mut self) -> Result<(), String> {
        let Some((assignment, at)) = &self.assigned else { return Ok(()) };
        let text = assignment.to_file(&self.enrolment, *at);
        let written = trust::replace_as(&self.file, text.as_bytes(), self.owner)
            .and_then(|()| trust::sync_directory(trust::directory_of(&self.file)));
        self.is_kept = written.is_ok();
        written.map_err(|error| {
            format!("{} cannot be written: {}", self.file.display(), trust::in_words(&error))
        })
    }

    /// Who signs in, over `transport`: with a certificate that the service has issued, if there is one. Before there
    /// is an assignment, it only says who asks for one.
    pub fn identity(&self, transport: Transport) -> DeviceIdentity {
        let Some((assignment, _)) = &self.assigned else { return self.unassigned() };
        let identity = assignment.identity(&self.enrolment, transport);
        match self.pairs.as_ref().and_then(IssuedPairs::file) {
            None => identity,
            Some(file) => {
                let auth =
                    DeviceAuth::Certificate { certificate: file.to_owned(), private_key: file.to_owned() };
                DeviceIdentity { auth, ..identity }
            }
        }
    }

    /// Who asks the provisioning service for an assignment.
    pub fn unassigned(&self) -> DeviceIdentity {
        let Enrolment { endpoint, registration_id, auth, .. } = &self.enrolment;
        DeviceIdentity {
            hub: endpoint.clone(),
            device_id: registration_id.clone(),
            module_id: None,
            gateway: None,
            auth: auth.into(),
        }
    }
}
