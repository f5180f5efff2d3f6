//! How `init` finds out the identity of the device, and reads the files that it is told of.
//!
//! Owns: where the identity comes from, the limits of these files. Must not know: the configuration, how a file is
//! written.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;

use anyhow::anyhow;

use super::device::{DeviceProof, Named, NewDevice, device_id, host};
use super::enrolment::{NewEnrolment, NewProof};
use super::{InitArgs, ask, variable};
use crate::cli::{Failure, check_is_no_secret};
use crate::credentials::SharedAccessKey;
use crate::provisioning::{check_id_scope, check_registration_id};
use crate::trust;

pub(super) const CONNECTION_STRING_VARIABLE: &str = "C2D_DEVICE_CONNECTION_STRING";

/// Far more than a connection string with a token, and than a certificate with its chain or a file of roots.
const MAX_STRING_BYTES: u64 = 16 * 1024;
const MAX_PEM_BYTES: u64 = 1024 * 1024;

/// Finds the device in the options, in the environment, or else by asking at the terminal.
pub(super) fn device(args: &InitArgs) -> Result<NewDevice, Failure> {
    let named = match (&args.connection_string_file, &args.hub, &args.device_id) {
        (Some(path), ..) if path == Path::new("-") && io::stdin().is_terminal() => ask::device()?,
        (Some(path), ..) if path == Path::new("-") => {
            named("standard input", &read_string(io::stdin().lock(), path)?)?
        }
        (Some(path), ..) => {
            check_is_no_secret("--connection-string-file", path).map_err(Failure::usage)?;
            let file = File::open(path).map_err(|error| unreadable(path, &error))?;
            named(&path.display().to_string(), &read_string(file, path)?)?
        }
        (None, Some(hub), Some(id)) => Named {
            hub: host(hub).map_err(|why| Failure::usage(anyhow!("--hub: {why}")))?,
            id: device_id(id).map_err(|why| Failure::usage(anyhow!("--device-id: {why}")))?,
            gateway: None,
            string: None,
        },
        (None, ..) => match variable(CONNECTION_STRING_VARIABLE) {
            Some(text) => named(CONNECTION_STRING_VARIABLE, &text)?,
            None => ask::device()?,
        },
    };
    let proof = match (named.string, args.certificate.clone(), args.private_key.clone()) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(Failure::usage(anyhow!(
                "the device has a connection string with a key, so --certificate and --private-key have no use: leave them out"
            )));
        }
        (Some(string), None, None) => DeviceProof::String(string),
        (None, Some(certificate), Some(private_key)) => DeviceProof::Certificate { certificate, private_key },
        (None, ..) if io::stdin().is_terminal() => ask::certificate()?,
        (None, ..) => {
            return Err(Failure::usage(anyhow!(
                "the connection string says x509=true: give --certificate FILE and --private-key FILE as well"
            )));
        }
    };
    Ok(NewDevice { hub: named.hub, id: named.id, gateway: named.gateway, proof })
}

/// Finds the enrolment in the options.
pub(super) fn enrolment(args: &InitArgs, id_scope: &str) -> Result<NewEnrolment, Failure> {
    check_id_scope(id_scope).map_err(|why| Failure::usage(anyhow!("--provisioning: {why}")))?;
    if let Some(id) = &args.registration_id {
        check_registration_id(id).map_err(|why| Failure::usage(anyhow!("--registration-id: {why}")))?;
    }
    if let Some(endpoint) = &args.endpoint {
        host(endpoint).map_err(|why| Failure::usage(anyhow!("--endpoint: {why}")))?;
    }
    let proof = match (&args.key_file, &args.certificate, &args.private_key) {
        (Some(path), ..) => {
            let text = if path == Path::new("-") {
                read_string(io::stdin().lock(), path)?
            } else {
                read_string(File::open(path).map_err(|error| unreadable(path, &error))?, path)?
            };
            let key = text.trim().to_owned();
            SharedAccessKey::from_base64_in_limits(&key)
                .map_err(|why| Failure::usage(anyhow!("--key-file {}: {why}", path.display())))?;
            NewProof::Key(key)
        }
        (None, Some(certificate), Some(private_key)) => {
            NewProof::Certificate { certificate: certificate.clone(), private_key: private_key.clone() }
        }
        (None, ..) => {
            let sentence = "--provisioning lacks the proof of the device: give --key-file FILE, or --certificate FILE and \
                            --private-key FILE";
            return Err(Failure::usage(anyhow!(sentence)));
        }
    };
    let (registration_id, endpoint) = (args.registration_id.clone(), args.endpoint.clone());
    Ok(NewEnrolment { id_scope: id_scope.to_owned(), registration_id, endpoint, proof })
}

fn named(origin: &str, text: &str) -> Result<Named, Failure> {
    Named::parse(text).map_err(|why| Failure::usage(anyhow!("{origin}: {why}")))
}

fn read_string(source: impl Read, path: &Path) -> Result<String, Failure> {
    let bytes = read_at_most(source, MAX_STRING_BYTES).map_err(|error| unreadable(path, &error))?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::usage(anyhow!("cannot read {}: it is not UTF-8 text", path.display())))
}

/// The bytes of a PEM file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = File::open(path).and_then(|file| read_at_most(file, MAX_PEM_BYTES));
    read.map_err(|error| unreadable(path, &error))
}

/// The certificates of a PEM file and nothing else, because everybody may read the copy.
///
/// # Errors
/// When it cannot be read, or has something else than certificates, such as a private key.
pub(super) fn read_roots(path: &Path) -> Result<Vec<u8>, Failure> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let bytes = read(path)?;
    let (mut kept, mut is_inside) = (String::new(), false);
    let is_base64 =
        |line: &str| line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
    for line in String::from_utf8_lossy(&bytes).lines().map(str::trim_end) {
        let is_mark = line.starts_with("-----");
        if (is_mark && line != if is_inside { END } else { BEGIN })
            || (is_inside && !is_mark && !is_base64(line))
        {
            return Err(Failure::usage(anyhow!(
                "{} has something else than certificates, and everybody may read the copy of it: name a file that has only \
                 the certificates of the root",
                path.display()
            )));
        }
        if is_mark || is_inside {
            kept.extend([line, "\n"]);
        }
        is_inside = is_inside != is_mark;
    }
    if kept.is_empty() || is_inside {
        return Err(Failure::usage(anyhow!(
            "{} has no whole certificate: name a PEM file of the root",
            path.display()
        )));
    }
    Ok(kept.into_bytes())
}

fn read_at_most(source: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes; is it the right file?")));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    Failure::usage(anyhow!("cannot read {name}: {}", trust::in_words(error)))
}
