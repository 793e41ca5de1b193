//! Who logs in, and with what. A secret has a type that cannot be printed.

mod secret_file;

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

pub use secret_file::{SecretError, SecretFile, SecretWarning};

/// A password or another secret text. It prints as nothing and is wiped from memory when dropped.
#[derive(Clone)]
pub struct Password(SecretString);

impl Password {
    /// The password `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The text itself: for the server, for a secret's own file, for nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(hidden)")
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Password {}

/// A user and its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user's name, without a host.
    pub user: String,
    /// The user's password.
    pub password: Password,
}

impl Login {
    /// The login of `user`.
    #[must_use]
    pub fn new(user: impl Into<String>, password: Password) -> Self {
        Self {
            user: user.into(),
            password,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_does_not_print_its_password() {
        let login = Login::new("dba", Password::new("tell-nobody"));
        let printed = format!("{login:?} {login:#?} {:?}", login.password);
        assert!(printed.contains("dba"));
        assert!(!printed.contains("tell-nobody"), "{printed}");
    }
}
