//! Secrets with which nobody can log in to the data.

use mysql_client::Error;

/// The secrets are not those with which the data was made.
#[derive(Debug, thiserror::Error)]
#[error(
    "root_passwd of the secrets does not fit the data: {0}. Put the password back with which the data was made"
)]
pub struct SecretsMisfit(String);

impl SecretsMisfit {
    /// What it means when root could not log in over the socket: a misfit when the server answered and refused.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        matches!(error, Error::AccessDenied { .. }).then(|| Self(error.to_string()))
    }
}
