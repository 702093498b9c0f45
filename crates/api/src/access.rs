//! Who may use the service over the network, and what was done, as the host service shows and takes it.
use crate::contract::Role;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use viv_model::ProjectName;

/// By what somebody shows who he is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PassKind {
    /// `Authorization: Bearer …`.
    Token,
    /// A client's certificate in TLS.
    Certificate,
}

/// A token or a certificate that was given to somebody; never its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pass {
    /// Whose it is; unique.
    pub name: String,
    /// What he may do.
    pub role: Role,
    /// The project that he is bound to, and besides which he sees nothing; none: he sees all of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// What it is.
    pub kind: PassKind,
    /// Since when.
    pub created_at: Timestamp,
    /// Until when; `None`: until it is removed.
    pub expires_at: Option<Timestamp>,
}

/// A token or a certificate to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PassCreate {
    /// For whom: 1 to 63 letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// What he may do.
    pub role: Role,
    /// The project that he is bound to; none: he sees all of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// How long it lasts, seconds. A token: until it is removed, if nothing is said; a certificate: a year.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub expires_s: Option<u64>,
}

impl Default for PassCreate {
    fn default() -> PassCreate {
        PassCreate { name: String::new(), role: Role::Viewer, project: None, expires_s: None }
    }
}

/// A new token: the only time that it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenMade {
    /// Whose it is, and what it lets him do.
    pub pass: Pass,
    /// The secret.
    pub token: String,
}

/// A new certificate: the only time that its key is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CertificateMade {
    /// Whose it is, and what it lets him do.
    pub pass: Pass,
    /// The certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM (PKCS #8).
    pub key: String,
}

/// A ticket to make, for the one who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TicketCreate {
    /// The path of the WebSocket that it is to open, without a query: `/v1/vms/web/console`.
    pub path: String,
}

/// A ticket: it opens one WebSocket, in the place of a token. Whoever shows it has used it, whatever he is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ticket {
    /// The secret, for `?ticket=`.
    pub ticket: String,
    /// How long it lasts, seconds.
    pub expires_s: u64,
}

/// What a client has to know to trust the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Authority {
    /// The certificate of the authority that has signed the service's own, PEM.
    pub ca: String,
    /// Where the service listens besides its Unix socket.
    pub listens_at: Vec<String>,
    /// The names and addresses by which it may be called.
    pub names: Vec<String>,
}

/// Something that was done: a line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// Which it is, from 1.
    pub number: u64,
    /// When it was answered.
    pub at: Timestamp,
    /// Who did it: `uid:1000`, `token:ci`, `certificate:ann`; `nobody`: who was refused.
    pub who: String,
    /// From where, if over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What: the operation's name in the contract.
    pub operation: String,
    /// To what: the path as it was asked for.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// How many before it could not be written down.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// SHA-256 of the line before, hexadecimal; of the first line 64 zeroes.
    pub before: String,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What a look through all of the audit log has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditVerified {
    /// Lines that were read, up to the first that is wrong.
    pub lines: u64,
    /// The first line that is wrong, with the reason.
    pub broken: Option<String>,
    /// Lines that a crash cut off, and that the service has taken away when it started again.
    pub cut_off: u64,
    /// Hash of the last line: whoever keeps it elsewhere can tell that lines were taken off the end.
    pub last: String,
}
